"""Digests for policies that were calibrated before calibration wrote any.

    python -m training.old_policies ADAPTER …

Vouches for the thresholds as they are, so it is for whoever made the adapter and knows that nobody
has changed them since. Others calibrate again.
"""

import argparse
from pathlib import Path

from rich.console import Console

from dalorra.adapter.directory import adapter_digest
from dalorra.decision.policy import POLICY_FILE, Policy
from dalorra.decision.policy_digest import with_digest
from dalorra.decision.question_policies import keep_question_policy, read_question_policies
from dalorra.errors import ConfigError


def add_digests(folder: Path) -> int:
    """Gives the calibrated policies of an adapter directory their digests; says to how many.

    Raises:
        AdapterError: a policy is damaged.
        ConfigError: a policy without a digest was not calibrated, or for another adapter.
    """
    of_all = [Policy.load(folder)] if (folder / POLICY_FILE).exists() else []
    of_questions = read_question_policies(folder).values()
    for policy in (*of_all, *(one.policy for one in of_questions)):
        if policy.data_digest is None or policy.date is None:
            raise ConfigError(f"{folder} has a policy that nobody calibrated")
        if policy.adapter_digest != adapter_digest(folder):
            raise ConfigError(f"{folder} has a policy of another adapter: calibrate it again")
    for policy in (old_ones := [one for one in of_all if one.digest is None]):
        with_digest(policy).save(folder)
    asked = [one for one in of_questions if one.policy.digest is None]
    for one in asked:
        keep_question_policy(folder, one.question, one.policy)
    return len(old_ones) + len(asked)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("adapters", metavar="ADAPTER", type=Path, nargs="+")
    for folder in parser.parse_args().adapters:
        Console().print(f"{folder}: {add_digests(folder)} policies got their digest")


if __name__ == "__main__":
    main()
