"""Answers of a run to labelled examples, and the files that keep them.

One, for analysis, has all answers with the probability of each sample. The other stays beside the
result, where methods are compared on the same examples: the test set's probabilities alone, in some
kilobytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dalorra.decision.predictive import Prediction
from dalorra.errors import ConfigError
from training.tasks import Example, data_digest

PREDICTIONS_FILE: Final = "predictions.parquet"
KEPT_FILE: Final = "test.npz"

LabelledAnswers = tuple[Sequence[Example], Sequence[Prediction]]
"""Examples and the answers to them, in the same order."""


def write_predictions(path: Path, answers: Mapping[str, LabelledAnswers]) -> None:
    """One record per answer: which data, which example, its label, and the prediction.

    Args:
        path: parquet file.
        answers: by the name of the data.
    """
    import pyarrow as pa
    from pyarrow import parquet

    records = [
        {
            "data": name,
            "index": index,
            "true_label": example.label,
            "label": p.label,
            "probability": p.probability,
            "variance": p.variance,
            "entropy": p.entropy,
            "mutual_information": p.mutual_information,
            "probabilities": list(p.probabilities.values()),
            "sample_probabilities": list(p.sample_probabilities),
        }
        for name, (examples, predictions) in answers.items()
        for index, (example, p) in enumerate(zip(examples, predictions, strict=True))
    ]
    parquet.write_table(pa.Table.from_pylist(records), path, compression="zstd")


@dataclass(frozen=True, slots=True)
class KeptAnswers:
    """The probabilities that one run gave every label of every test example.

    Attributes:
        path: file they were read from.
        examples: digest of the examples in their order, see `training.tasks.data_digest`.
        targets: `[n]`, index of the true label.
        log_probabilities: name of the scores (`test`, or `tempered`) → `[n, K]`, nats.
    """

    path: Path
    examples: str
    targets: NDArray[np.int64]
    log_probabilities: Mapping[str, NDArray[np.float64]]

    def losses(self, scored: str) -> NDArray[np.float64]:
        """NLL (nats) and Brier score of each example, `[2, n]`; see `dalorra.decision.metrics`."""
        log_p = self.log_probabilities[scored]
        rows, p = np.arange(len(log_p)), np.exp(log_p)
        p /= p.sum(axis=1, keepdims=True)
        nll = -np.maximum(log_p[rows, self.targets], np.log(np.finfo(np.float64).tiny))
        truth = np.eye(p.shape[1])[self.targets]
        return np.stack([nll, np.square(p - truth).sum(axis=1)])

    def require_same_examples(self, other: "KeptAnswers") -> None:
        """Refuses, with `ConfigError`, answers to other examples or in another order."""
        if self.examples != other.examples:
            raise ConfigError(
                f"{self.path} and {other.path} answer different test examples, or the same in "
                "another order: remove the folder of the older one and run the experiment again"
            )


def write_kept_answers(
    folder: Path, examples: Sequence[Example], answers: Mapping[str, Sequence[Prediction]]
) -> None:
    """Keeps a run's answers to the test set as logarithms in float16, to one part in 2,000.

    Args:
        folder: of the run's result.
        examples: the test set.
        answers: name of the scores → an answer to each example, all with the same labels.
    """
    labels = list(next(iter(answers.values()))[0].probabilities)
    with np.errstate(divide="ignore"):  # log 0 = −∞
        kept: dict[str, Any] = {
            name: np.log([[p.probabilities[label] for label in labels] for p in predictions])
            for name, predictions in answers.items()
        }
    np.savez_compressed(
        folder / KEPT_FILE,
        examples=np.array(data_digest(examples)),
        targets=np.array([labels.index(example.label) for example in examples], dtype=np.int16),
        **{name: log_p.astype(np.float16) for name, log_p in kept.items()},
    )


def read_kept_answers(folder: Path) -> KeptAnswers | None:
    """What `write_kept_answers` wrote in that folder; None: nothing."""
    path = folder / KEPT_FILE
    if not path.exists():
        return None
    with np.load(path) as file:
        return KeptAnswers(
            path,
            str(file["examples"]),
            file["targets"].astype(np.int64),
            {
                name: file[name].astype(np.float64)
                for name in file.files
                if name not in ("examples", "targets")
            },
        )
