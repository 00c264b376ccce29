"""Results that another experiment has already."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from training.experiments.predictions import KEPT_FILE, PREDICTIONS_FILE
from training.experiments.spec import RunSpec

RESULT_FILE: Final = "result.json"


def adopted(
    spec: RunSpec, content: Mapping[str, Any], results: Path, output: Path
) -> dict[str, Any] | None:
    """The result of a run with the same configuration that answered all that `spec` asks.

    Its predictions are copied along; one that kept none is no such result. The run's name, a part
    of its configuration, may differ.

    Args:
        spec: the run that is wanted.
        content: of its configuration, as results carry it.
        results: folder of all experiments.
        output: the run's own folder.

    Returns:
        The result under the run's own names, `made_in` naming the other experiment; None: no
        experiment has made it.
    """
    for path in sorted(results.glob(f"*/*/*/*/{RESULT_FILE}")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if _unnamed(found["config"]) != _unnamed(content) or not _answers(found, spec):
            continue
        if spec.task.score_test and not path.with_name(KEPT_FILE).exists():
            continue
        for name in (KEPT_FILE, PREDICTIONS_FILE):
            if path.with_name(name).exists():
                shutil.copy2(path.with_name(name), output / name)
        wanted = {shift.task for shift in spec.task.shifts}
        result: dict[str, Any] = {
            **found,
            "experiment": spec.experiment.name,
            "task": spec.task.name,
            "variant": spec.variant.name,
            "config": dict(content),
            "made_in": found.get("made_in", found["experiment"]),
        }
        if "shifts" in found:
            result["shifts"] = {k: v for k, v in found["shifts"].items() if k in wanted}
        if not spec.task.inputs:
            result.pop("inputs", None)
        if not spec.task.plane:
            result.pop("plane", None)
        if not spec.task.tempered:
            result.pop("tempered", None)
        return result
    return None


def _unnamed(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "name"}


def _answers(found: Mapping[str, Any], spec: RunSpec) -> bool:
    """Whether a result has all that `spec` asks; shifts are compared by name and size."""
    if ("test" in found) != spec.task.score_test:
        return False
    shifts = found.get("shifts", {})
    asked = [answer["input"] for answer in found.get("inputs", [])]
    return (
        all(
            shift.task in shifts and shift.limit == shifts[shift.task]["n"]
            for shift in spec.task.shifts
        )
        and (not spec.task.inputs or list(spec.task.inputs) == asked)
        and (not spec.task.plane or "plane" in found)
        and (not spec.task.tempered or "tempered" in found)
    )
