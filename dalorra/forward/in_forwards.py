"""Any number of prompts, in the forwards that `Batching` splits them into."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dalorra.decision.predictive import PosteriorSamples
from dalorra.forward.batches import Batching, by_state, packed_row_count, tree_row_count
from dalorra.forward.llama.questions import QuestionLlama
from dalorra.forward.network import Answers, Network
from dalorra.prompts import Prompt, Scope


@torch.inference_mode()
def posterior_samples(
    network: Network, prompts: Sequence[Prompt], batching: Batching, scope: Scope
) -> tuple[PosteriorSamples, Tensor]:
    """Distributions over the labels, and what novelty is told from, on the CPU.

    Args:
        network: of an adapter with labels of its own.
        prompts: B of them, one at least.
        batching: which of them share a forward.
        scope: of the adapter.

    Returns:
        The samples of all prompts, and features averaged over them, `[B, D, d]` float32.
    """
    every, budget = range(network.bank.samples), batching.budget
    rows = [packed_row_count(prompt, len(every), scope) for prompt in prompts]
    parts, features, weights = [], [], torch.ones(1)
    order: list[int] = []
    for places in batching.forwards(rows):
        group = [prompts[i] for i in places]
        if rows[places[0]] > budget:  # it is alone
            answers = network.in_pieces(group[0], every, budget)
        else:
            answers = network.answers(group, every)
        weights = answers.weights
        parts.append(answers.probabilities)
        features.append(answers.features.mean(dim=1))
        order += places
    back = torch.tensor(order).argsort()  # on the host, and only now a GPU is waited for
    samples = PosteriorSamples(torch.cat(parts).cpu()[back], weights.cpu())
    return samples, torch.cat(features).cpu()[back]


@torch.inference_mode()
def question_samples(
    network: QuestionLlama, prompts: Sequence[Prompt], batching: Batching, scope: Scope
) -> tuple[list[PosteriorSamples], Tensor]:
    """The same where each prompt has options of its own: the samples of each, B = 1.

    Questions about one state go together. If they are too many for a forward it is read first.
    """
    every, budget = range(network.bank.samples), batching.budget
    trees = list(by_state(prompts).values())
    rows = [tree_row_count([prompts[i] for i in tree], len(every), scope) for tree in trees]
    found: dict[int, Answers] = {}
    for together in batching.of_trees.forwards(rows):
        places = [i for tree in together for i in trees[tree]]
        group = [prompts[i] for i in places]
        if rows[together[0]] > budget:  # it is alone
            answers = network.in_turn(group, every, budget)
        else:
            answers = network.answers(group, every)
        found |= zip(places, answers, strict=True)
    in_order = [found[i] for i in range(len(prompts))]
    features = torch.cat([answers.features.mean(dim=1) for answers in in_order]).cpu()
    return [PosteriorSamples(a.probabilities.cpu(), a.weights.cpu()) for a in in_order], features
