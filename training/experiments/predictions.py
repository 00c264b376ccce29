"""Every answer of a run, as one parquet file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dalorra.decision.predictive import Prediction
from training.tasks import Example


def write_predictions(
    path: Path, answers: Mapping[str, tuple[Sequence[Example], Sequence[Prediction]]]
) -> None:
    """One row per answer: which data, which example, its label, and the prediction.

    Args:
        path: parquet file.
        answers: name of the data → its examples and the answers to them, in the same order.
    """
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
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
    parquet.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
