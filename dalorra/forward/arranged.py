"""A base model made ready for its adapters, and the network of an adapter on it, by its kind."""

from typing import cast

from torch import nn
from transformers import PreTrainedModel

from dalorra.adapter.layer import StochasticPeftModel, class_head, low_rank_updates
from dalorra.base.families import is_encoder
from dalorra.errors import AdapterError
from dalorra.forward.encoder import ArrangedEncoder, EncoderNetwork
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.llama.questions import QuestionLlama
from dalorra.forward.llama.recorded import RecordedNetwork, row_step
from dalorra.forward.llama.staging import Recorder
from dalorra.forward.network import Network
from dalorra.labels import Labels
from dalorra.posteriors.bank import NoiseBank
from dalorra.prompts import Scope

ArrangedBase = ArrangedLlama | ArrangedEncoder
"""What all adapters of a base share."""


def arrange(
    model: nn.Module, prefix_cache: PrefixCache | None = None, record: Recorder | None = None
) -> ArrangedBase:
    """Arranges a base model, once; an adapter may be attached to it.

    Args:
        model: in evaluation mode.
        prefix_cache: for a language model's prompts; an encoder has no use for it.
        record: of short forwards; without effect on an encoder.
    """
    if is_encoder(model):
        return ArrangedEncoder(cast(PreTrainedModel, model))
    return ArrangedLlama(model, prefix_cache, record)


def network_on(
    base: ArrangedBase,
    model: StochasticPeftModel,
    labels: Labels,
    bank: NoiseBank,
    scope: Scope,
) -> Network:
    """The network of the adapter that is attached to `model`, as it is now.

    Args:
        base: of the same model.
        model: base with the adapter.
        labels: where they are read off; classes are those of the adapter's head.
        bank: what the network runs under.
        scope: which rows the adapter acts on; an encoder's acts on all.
    """
    if isinstance(base, ArrangedEncoder):
        return EncoderNetwork(model, bank)
    head = class_head(model)
    network = PackedLlama(base, low_rank_updates(model), labels, bank, scope, head)
    if base.record is None:
        return network
    return RecordedNetwork(network, base.record, base.device, row_step(base.layer_weights))


def question_network_on(
    base: ArrangedBase, model: StochasticPeftModel, bank: NoiseBank, scope: Scope
) -> QuestionLlama:
    """The network of an adapter that answers questions, see `network_on`.

    Raises:
        AdapterError: the base is an encoder.
    """
    if isinstance(base, ArrangedEncoder):
        raise AdapterError(
            "questions whose options come with them need a language model, and this base is an "
            "encoder, whose labels are those of its head"
        )
    return QuestionLlama(base, low_rank_updates(model), bank, scope)
