"""Scores slowly, for a test that kills it: `python -m tests.killed_scoring IN OUT`."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dalorra.decision.predictive import Prediction
from dalorra.prompts import Prompt
from dalorra.scoring.job import Job
from dalorra.scoring.outputs import output_for
from dalorra.scoring.questions import Columns
from dalorra.scoring.run import locally, score_file
from tests.fakes import FakePredictor
from tests.tiny import FORMAT


class Slow(FakePredictor):
    """Takes its time for each input."""

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        time.sleep(0.02 * len(prompts))
        return super().predict(prompts)


def slow_job(source: Path, out: Path) -> Job:
    output = output_for(out, ("negative", "positive"), source)
    return Job(source, out, output, Columns(FORMAT, {}), batch_rows=320)


if __name__ == "__main__":
    score_file(slow_job(Path(sys.argv[1]), Path(sys.argv[2])), locally(Slow))
