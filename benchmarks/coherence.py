"""Whether answers to typed questions agree with one another, and whether doubt tells where not.

    python -m benchmarks.coherence --cache FOLDER

JevBench (`pip install jevbench`) asks about 240 states what must hang together: a question and its
negation, options in another order, a conjunction and its parts. This runs one of its suites against
a server of its own, `dalorra serve` with the bundled adapters unless told otherwise after `--`, and
asks of each broken law how doubtful the answers were that broke it. With a cache a run goes on
where another one ended.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.broken_laws import DOUBTS, Tried, among, by_thirds, judged
from benchmarks.report import Line, arguments, print_table, write_json
from benchmarks.soak_load.server import Server
from dalorra.errors import DalorraError

_SECONDS: Final = 3600
"""For one answer: the suite measures no speed, and a busy machine must not spoil it."""


class CoherenceError(DalorraError):
    """The suite cannot be run, or was not answered whole."""


def main() -> None:
    """Runs the suite and writes its JSON."""
    options = _options()
    jevbench = suites()
    suite = jevbench.suites.load_suite(options.suite)
    flags = ["--set", f"request_timeout_seconds={_SECONDS}", *options.serve]
    with (
        tempfile.TemporaryDirectory(prefix="dalorra-coherence-") as scratch,
        Server(flags, Path(scratch) / "server.log") as server,
    ):
        served = _served(server.url, options.adapter)
        model = jevbench.systemone(
            f"{server.url}/v1/systemone", model=options.model, timeout=_SECONDS
        )
        model.name = f"{options.adapter} {served['digest']}"  # of the cache: the port changes
        cache = options.cache or Path(scratch) / "cache"
        report = jevbench.evaluate(
            model, suite, domains=options.domains, cache=cache, progress=True
        )
        if report.errors:
            raise CoherenceError(f"{len(report.errors)} requests failed: {report.errors[0]}")
        cases = set(report.result["cases"])
        asked = jevbench.backends.Executor(model, cache_dir=cache)
        tests = judged(suite, asked.ask, cases)
    context = {
        "suite": options.suite,
        "jevbench": jevbench.__version__,
        "cases": len(cases),
        "adapter_digest": served["digest"],
        "policy_digest": served["policy_digest"],
    }
    lines = [{**line, **context} for line in (*scores(report), *doubt(tests))]
    print_table("Coherence", [x for x in lines if x["measure"] == "score"], ("name", "n", "score"))
    write_json(options.json, lines)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__, "coherence")
    parser.add_argument("--suite", default="jevbench-mini")
    parser.add_argument("--domains", nargs="+", help="of the cases; all")
    parser.add_argument("--model", default="jev-latest", help="as clients name it")
    parser.add_argument("--adapter", default="questions", help="that answers under this name")
    parser.add_argument("--cache", type=Path, help="folder for answers")
    parser.add_argument("serve", nargs="*", help="after --: options for dalorra serve")
    return parser.parse_args()


def suites() -> Any:
    """JevBench, with the modules that are used here.

    Raises:
        CoherenceError: it is not installed.
    """
    try:
        for module in ("suites", "backends", "engine", "relations", "taxonomy"):
            import_module(f"jevbench.{module}")
    except ModuleNotFoundError:
        raise CoherenceError(
            "the suite is a package that is not installed: pip install 'dalorra-service[protocols]'"
        ) from None
    return import_module("jevbench")


def _served(url: str, adapter: str) -> Mapping[str, Any]:
    adapters = httpx.get(f"{url}/adapters", trust_env=False).raise_for_status().json()["adapters"]
    found: Mapping[str, Any] | None = next((x for x in adapters if x["name"] == adapter), None)
    if found is None:
        names = ", ".join(one["name"] for one in adapters)
        raise CoherenceError(f"no adapter {adapter!r} is served: choose one of {names}")
    return found


def scores(report: Any) -> list[Line]:
    """What the suite makes of the answers: the share of tests that hold, means over its laws."""
    registry, tests = suites().relations.REGISTRY, Counter[str]()
    for check, row in report.scores["checks"].items():
        group = registry[check.partition("/")[0]].group
        for name in ("overall", group.partition(".")[0], group):
            tests[name] += row["n"]
    parts = suites().taxonomy
    found = {"overall": report.overall, **report.dimensions, **report.groups}
    titles = {"overall": "Overall"}
    for dimension in parts.PILLARS:
        titles[dimension.id] = dimension.title
        titles |= {x.id: x.title for x in parts.GROUPS if x.pillar == dimension.id}
    lines = [
        {"measure": "score", "name": name, "title": title, "n": tests[name], "score": found[name]}
        for name, title in titles.items()
    ]
    return [{**lines[0], "interval": report.interval}, *lines[1:]]


def doubt(tests: list[Tried]) -> list[Line]:
    """Broken laws among accepted answers and others, and by how doubtful the answers are."""
    accepted = [
        {"measure": "accepted", "accepted": own, **among([x for x in tests if x.accepted is own])}
        for own in (True, False)
    ]
    by_doubt = [{"measure": "doubt", "doubt": name, **by_thirds(tests, name)} for name in DOUBTS]
    return [*accepted, *by_doubt]


if __name__ == "__main__":
    main()
