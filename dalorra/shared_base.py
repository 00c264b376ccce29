"""One base model in memory, and any number of adapters on it."""

from pathlib import Path

from dalorra.adapter.directory import Adapter, attached, bundled_adapter, read_adapter
from dalorra.base.model import BaseModel, load_base_model
from dalorra.base.quantized import Quantize
from dalorra.errors import ConfigError
from dalorra.forward.arranged import arrange
from dalorra.forward.batches import DEFAULT_ROW_BUDGET
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.llama.recorded import CudaGraphs
from dalorra.golden import check_golden
from dalorra.hardware import without_team
from dalorra.predictor import Predictor
from dalorra.prompts import Overflow


class SharedBase:
    """A base model arranged once; each adapter on it costs its A, B and noise.

    Args:
        base: no adapter may be attached to it.
        on_overflow, max_tokens, row_budget: see `Predictor.of`; the same for every adapter.
        prefix_cache_bytes: memory for the keys and values of prompt prefixes, which all adapters
            under `answer_tokens` share; 0 turns it off.
        cuda_graphs: whether to record short forwards, see `RecordedNetwork`; None: on a GPU, where
            the base is not quantised.
        hand_made_policies: see `read_adapter`.

    Raises:
        ConfigError: graphs are wanted, but the base is not on a GPU, or quantised.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        on_overflow: Overflow = "truncate",
        max_tokens: int | None = None,
        row_budget: int = DEFAULT_ROW_BUDGET,
        prefix_cache_bytes: int = 0,
        cuda_graphs: bool | None = None,
        hand_made_policies: bool = False,
    ) -> None:
        recordable = base.device.type == "cuda" and base.bits is None
        if cuda_graphs and not recordable:
            where = f"{base.bits} weights" if base.bits else f"the device {base.device}"
            raise ConfigError(f"cuda_graphs is for unquantised weights on a GPU, not for {where}")
        self._base = base
        self._arranged = arrange(
            base.model,
            PrefixCache(prefix_cache_bytes) if prefix_cache_bytes else None,
            CudaGraphs() if recordable and cuda_graphs is not False else None,
        )
        self._on_overflow: Overflow = on_overflow
        self._max_tokens = max_tokens
        self._row_budget = row_budget
        self._hand_made_policies = hand_made_policies

    @classmethod
    def load(
        cls,
        base_model: str | None = None,
        adapter_dir: Path | str | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Quantize | None = None,
        on_overflow: Overflow = "truncate",
        max_tokens: int | None = None,
        row_budget: int = DEFAULT_ROW_BUDGET,
        prefix_cache_bytes: int = 0,
        cuda_graphs: bool | None = None,
        hand_made_policies: bool = False,
    ) -> "SharedBase":
        """Loads a base model: the named one, or that of an adapter (the bundled one by default).

        It is quantised as it was in the adapter's training, unless `quantize` says otherwise.

        Raises:
            AdapterError: the adapter's directory is damaged.
            BaseModelError: the base model cannot be had.
            ConfigError: see the class.
        """
        trained_on = read_adapter(adapter_dir or bundled_adapter()).manifest.base_model
        base = load_base_model(
            base_model or trained_on.name,
            device=device,
            dtype=dtype,
            quantize=quantize or trained_on.quantized or "none",
        )
        return cls(
            base,
            on_overflow=on_overflow,
            max_tokens=max_tokens,
            row_budget=row_budget,
            prefix_cache_bytes=prefix_cache_bytes,
            cuda_graphs=cuda_graphs,
            hand_made_policies=hand_made_policies,
        )

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """Shared by all adapters."""
        return self._arranged.prefix_cache

    def read(self, path: Path | str | None = None) -> Adapter:
        """Reads and verifies a directory or an adapter of the hub (the bundled one by default).

        On any thread: one that is not the model's takes no cores from it.

        Raises:
            AdapterError: see `read_adapter`.
        """
        with without_team():
            return read_adapter(
                path or bundled_adapter(), hand_made_policies=self._hand_made_policies
            )

    def bind(self, adapter: Adapter, name: str | None = None) -> Predictor:
        """A predictor of this adapter, which passed its golden check; the base stays as it was.

        One caller at a time, and none of its predictors may run meanwhile.

        Args:
            adapter: what `read` returned.
            name: what answers call it; its own name by default.

        Raises:
            AdapterError: it does not fit this base model, or answers otherwise than it.
        """
        with attached(adapter, self._base) as model:
            predictor = Predictor.of(
                adapter,
                self._base,
                model,
                name=name,
                on_overflow=self._on_overflow,
                max_tokens=self._max_tokens,
                row_budget=self._row_budget,
                arranged=self._arranged,
            )
            check_golden(predictor, model)
        return predictor
