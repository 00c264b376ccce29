"""Answers of a run to labelled examples, and the parquet file that keeps all of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dalorra.decision.predictive import Prediction
from training.tasks import Example

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
