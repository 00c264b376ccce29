"""What is to be scored, and all that its answers depend on."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from dalorra.adapter.directory import Adapter
from dalorra.base.quantized import Quantize
from dalorra.scoring.outputs import Output, output_for
from dalorra.scoring.questions import BATCH_ROWS, Columns

OnError = Literal["stop", "record"]


@dataclass(frozen=True, slots=True)
class Job:
    """One file to score into another.

    Attributes:
        source: `.jsonl`, `.json`, `.csv` or `.parquet` file.
        out: the finished file, which must not be there yet.
        output: its form.
        columns: where the records hold the template's fields.
        on_error: what happens to a record that does not fit: `stop` before anything is answered,
            or `record` in its place what is wrong with it.
        batch_rows: packed rows of one forward.
        identity: what the answers depend on besides, by the words for it: a run with another one
            is not resumed.
    """

    source: Path
    out: Path
    output: Output
    columns: Columns
    on_error: OnError = "stop"
    batch_rows: int = BATCH_ROWS
    identity: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def for_adapter(
        cls,
        adapter: Adapter,
        source: Path,
        out: Path,
        *,
        names: Mapping[str, str],
        on_error: OnError = "stop",
        keep_columns: bool = True,
        batch_rows: int = BATCH_ROWS,
        dtype: str = "auto",
        quantize: Quantize | None = None,
    ) -> Self:
        """The job of asking `adapter` about every record.

        Args:
            adapter: as read from disk; the model itself is not needed yet.
            source: see the class.
            out: likewise.
            names: field of the template → column, where they differ.
            on_error: see the class.
            keep_columns: whether the finished file has the records' own columns, too.
            batch_rows: see the class.
            dtype: of the base model.
            quantize: likewise; None: as the adapter was trained.

        Raises:
            ConfigError: `names` has an unknown field, or `out` an unknown suffix.
        """
        prompt_format = adapter.manifest.labelled
        labels = tuple(prompt_format.labels)
        policy = adapter.policy.model_dump_json() if adapter.policy else ""
        return cls(
            source,
            out,
            output_for(out, labels, source if keep_columns else None),
            Columns(prompt_format, names),
            on_error,
            batch_rows,
            {
                "adapter": adapter.digest,
                "policy": hashlib.sha256(policy.encode()).hexdigest(),
                "novelty score": adapter.novelty.digest if adapter.novelty else None,
                "dtype": dtype,
                "quantize": quantize,
            },
        )

    @property
    def journal(self) -> Path:
        """Where the answers are until all of them are there."""
        return self.out.with_name(f"{self.out.name}.partial")
