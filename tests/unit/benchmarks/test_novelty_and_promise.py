"""The pure parts of the benchmarks of novelty and of the promise."""

import json
import re

import numpy as np
import pytest
import torch

from benchmarks import novelty, novelty_scores, promise
from benchmarks.foreign_section import section
from benchmarks.promise import Half, halves, summary
from benchmarks.rank_activations import ObservedBank
from benchmarks.shifts import DEVELOPMENT, FAR, NEAR, shifted
from dalorra.adapter.directory import read_adapter
from dalorra.adapter.layer import stochastic_layers
from dalorra.decision.metrics import auroc
from dalorra.decision.novelty import Novelty
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import Prediction
from tests.tiny import (
    SENTENCES,
    packed,
    predictor_on,
    save_tiny_adapter,
    tiny_adapter,
    tiny_bank,
    tiny_base,
    tiny_prompts,
)
from training.calibrate import AnsweredExamples
from training.promise import Promise
from training.tasks import Example

PROMISE = Promise(0.1, 0.9)


# --- the promise ---


def test_a_violation_is_above_target_and_chance_is_told_from_it():
    found = [
        Half(100, 10, 200, qualified=True),  # at target
        Half(100, 11, 200, qualified=True),  # above, as likely as not
        Half(100, 30, 200, qualified=True),  # above, beyond chance
        Half(0, 0, 200, qualified=True),
        Half(0, 0, 200, qualified=False),
    ]
    line = summary(found, PROMISE, 0.0)
    assert (line["violations"], line["above_chance"], line["nothing_qualifies"]) == (2, 1, 1)
    assert line["mean_accepted"] == pytest.approx(0.3)
    assert line["mean_error"] == pytest.approx(0.17)
    # P(Binomial(5, 0.1) ≥ 2) = 1 − 0.9⁵ − 5 · 0.1 · 0.9⁴
    assert line["p_value"] == pytest.approx(1 - 0.9**5 - 0.5 * 0.9**4)


def world(n: int) -> AnsweredExamples:
    """Calibrated answers; every tenth input is novel, and its answer wrong."""
    rng = np.random.default_rng(0)
    predictions, examples = [], []
    for i in range(n):
        p, novel = rng.uniform(0.5, 1.0), i % 10 == 0
        right = not novel and rng.random() < p
        one = {"variance": 0.0, "entropy": 0.0, "mutual_information": 0.0, "samples": 5}
        predictions.append(
            Prediction(
                "a", p, probabilities={"a": p, "b": 1 - p}, novelty=0.001 if novel else 0.5, **one
            )
        )
        examples.append(Example({"text": f"{i}"}, "a" if right else "b"))
    return AnsweredExamples(predictions, examples)


def test_halves_calibrate_on_one_and_count_on_the_other(monkeypatch):
    answered = world(2000)
    seen = []
    plain = promise.points_of
    monkeypatch.setattr(
        promise, "points_of", lambda *parts: seen.append(parts[1:3]) or plain(*parts)
    )
    found = halves(answered, PROMISE, 0.01, splits=3)
    for pilot, tested in seen:
        inputs = [e.input["text"] for part in (pilot, tested) for e in part.examples]
        assert len(pilot.examples) == 100
        assert len(inputs) == len(set(inputs)) == 1000
    assert all(half.asked == 1000 and half.qualified and half.accepted > 300 for half in found)
    assert len({half.accepted for half in found}) > 1, "other splits, other halves"
    without = halves(answered, PROMISE, 0.0, splits=3)
    assert sum(h.accepted for h in without) < 0.5 * sum(h.accepted for h in found)


# --- novelty ---


def part(n: int, seed: int, shift: float = 0.0) -> novelty_scores.Part:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((n, 40), generator=generator) + shift
    doubts = {name: torch.rand(n, generator=generator) / 5 for name in novelty_scores.DOUBTS}
    thirds = torch.stack([x, x.flip(1), x], dim=1)
    features = {"thirds": thirds, "prompt": x.flip(1), "ranks": x[:, 1:]}
    return {**features, "label": (x[:, 0] > shift).long(), **doubts}


@pytest.fixture(scope="module")
def lines():
    usual = {"train": part(300, 0), "reference": part(300, 1), "held_out": part(200, 2)}
    parts = usual | {"usual": part(200, 3), "respelt": part(100, 4)}
    parts |= {name: part(60, 5, shift=2.0) for name in (*FAR, *NEAR, *DEVELOPMENT)}
    fitted = Novelty.fit(
        parts["train"]["thirds"], parts["held_out"]["thirds"], adapter_digest="", components=32
    )
    policy = Policy(min_probability=0.85, max_variance=0.15, source="a test", min_novelty_p=0.01)
    choice = [
        *novelty_scores.chosen_on(parts, DEVELOPMENT),
        *novelty_scores.spelling_cost(parts),
    ]
    return novelty_scores.compared(parts, (*FAR, *NEAR), fitted, policy), choice


def test_a_shift_that_only_the_features_tell(lines):
    found, choice = lines
    by = {(line["shift"], line["score"]): line for line in found}
    for shift in (*FAR, *NEAR):
        assert by[shift, "novelty"]["auroc"] > 0.99
        assert by[shift, "combined"]["auroc"] > 0.9
        assert 0.35 < by[shift, "variance"]["auroc"] < 0.65
        assert by[shift, "novelty"]["fpr_at_95"] < 0.05 < by[shift, "variance"]["fpr_at_95"]
        assert by[shift, "combined"]["accepted"] < 0.1
        low, high = by[shift, "combined"]["ahead"]
        assert low <= by[shift, "combined"]["auroc"] - by[shift, "novelty"]["auroc"] <= high
        assert low > -0.1, "the best single score is novelty, and the policy is near it"
        assert by[shift, "max_probability"]["accepted"] > 0.3
    usual = by["arc", "combined"]["accepted_in_distribution"]
    assert by["arc", "variance"]["accepted_in_distribution"] == pytest.approx(usual, abs=0.01)
    mahalanobis = [line for line in choice if line["score"] == "thirds, Mahalanobis, 32"]
    assert len(mahalanobis) == len(DEVELOPMENT)
    assert all(line["detected_at_2"] > 0.9 for line in mahalanobis)


def test_the_policy_is_compared_with_the_single_score_that_is_best():
    generator = torch.Generator().manual_seed(0)
    usual, other = (
        {"x": draw[0] + far, "y": draw[1] + 0.3 * far, "both": draw.mean(dim=0) + far}
        for far in (0.0, 1.0)
        for draw in torch.randn((1, 2, 400), generator=generator)
    )

    def lead(**names: str) -> list[float]:
        scores = {name: (lambda part, key=key: part[key]) for name, key in names.items()}
        return novelty_scores.lead_over_best(scores, usual, other)

    low, _ = lead(combined="both", weak="y", strong="x")
    assert low > 0.0
    x, y = (auroc(torch.cat([usual[k], other[k]]), torch.arange(800) < 400) for k in "xy")
    low, high = lead(combined="x", weak="y")
    assert 0.05 < low < x - y < high
    assert lead(combined="x", weak="y", same="x") == [0.0, 0.0], "the one that equals it, not y"
    _, high = lead(combined="y", weak="y", strong="x")
    assert high < -0.05


def test_the_combined_doubt_is_the_order_in_which_a_loosening_policy_accepts(lines):
    asked = part(400, 6)
    fitted = Novelty.fit(part(300, 0)["thirds"], part(200, 2)["thirds"], adapter_digest="")
    asked["variance"] = asked["variance"] / 10
    policy = Policy(min_probability=0.9, max_variance=0.02, source="a test", min_novelty_p=0.2)
    doubt = novelty_scores.leniency_needed(asked, fitted, policy)
    p_values = torch.tensor(fitted.p_values(asked["thirds"]))
    checked = 0
    for tau in (0.99, 0.97, 0.9, 0.87, 0.82):
        limit = 0.02 / (0.9 * 0.1) * tau * (1 - tau)
        looser = policy.model_copy(update={"min_probability": tau, "max_variance": limit})
        asked_now = novelty_scores.predictions(asked, p_values.tolist())
        verdicts = [looser.decide(one).decision == "accept" for one in asked_now]
        checked += sum(verdicts)
        assert verdicts == (doubt <= 1.0 - tau).tolist()
    assert checked > 100
    assert torch.equal(doubt > 2.0, p_values < 0.2)


def test_the_page_has_every_measured_number_and_only_those(lines, tmp_path):
    found, choice = lines
    for name, content in (("novelty", found), ("novelty_choice", choice)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    page = section(tmp_path)
    assert "## The promise" not in page, "not measured"
    assert page.count("| school exams (arc) |") == 4
    shown = next(x for x in found if (x["shift"], x["score"]) == ("trec", "combined"))
    (line,) = re.findall(r"\| questions \(trec\) \|(.*%.*%.*%) \|\n", page.split("accepted of")[1])
    assert line.split("|")[-1].strip() == f"{shown['accepted']:.0%}"
    lead = re.findall(r"\| novelty \| [+-]\d\.\d{3} \| [+-]\d\.\d{3} to [+-]\d\.\d{3} \|", page)
    assert len(lead) == len((*FAR, *NEAR)), "beside the best single score of each"
    counts = re.findall(r"(?:ahead of|level with|behind) it on (\d)", page)
    assert sum(map(int, counts)) == len((*FAR, *NEAR))
    assert "The probability alone has a higher AUROC than it on 0 of 7." in page
    assert page.count("answer, Mahalanobis") == 3


class Tokenizer:
    def get_vocab_size(self) -> int:
        return 60

    def decode(self, ids) -> str:
        assert all(50 <= i < 60 for i in ids)
        return " ".join(map(str, ids))


def test_shifts_leave_out_what_is_known_in_another_spelling(tmp_path):
    columns = {"arc_easy/test": "question", "openbookqa/test": "question_stem",
               "winogrande/validation": "sentence", "boolq/validation": "question",
               "boolq_passage/train": "passage"}  # fmt: skip
    for file in ("ag_news/validation", "trec/train", "rotten_tomatoes/test", *columns):
        path = tmp_path / f"{file}.jsonl"
        path.parent.mkdir(exist_ok=True)
        records = [{columns.get(file, "text"): f"It's text {i} ."} for i in range(9)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    usual = ["one two three four five"] * 4
    found = shifted(tmp_path, usual, ["it 's text 3"], Tokenizer(), n=20, seed=0)
    assert found.keys() == {*FAR, *NEAR, *DEVELOPMENT}
    assert sorted(found["rotten_tomatoes"]) == [f"It's text {i} ." for i in range(9) if i != 3]
    assert all(sorted(t.split()) == sorted(usual[0].split()) for t in found["shuffled"])
    assert found["shuffled"] != usual
    assert min(len(t.split()) for t in found["random"]) >= 5
    assert found == shifted(tmp_path, usual, ["it 's text 3"], Tokenizer(), n=20, seed=0)


def test_rank_activations_are_those_that_the_noise_acts_on():
    """Of the first layer's query: A · norm(embedding of the cue's last token), by hand."""
    base = tiny_base()
    model = tiny_adapter(base, modules=("q_proj", "v_proj"))
    network, prompts = (
        packed(model, torch.tensor([260, 270]), tiny_bank(model, 6)),
        tiny_prompts(base),
    )
    observed = ObservedBank(network.bank)
    states = network.under(observed).hidden_states(prompts, range(6))
    torch.testing.assert_close(states, network.hidden_states(prompts, range(6)))
    modules = stochastic_layers(model)
    assert observed.activations.shape == (len(prompts), 4 * len(modules))
    trunk = base.model.model
    end = trunk.embed_tokens(torch.tensor([prompts[0].cue_ids[-1]]))
    expected = next(iter(modules.values())).down @ trunk.layers[0].input_layernorm(end)[0]
    torch.testing.assert_close(observed.activations[0, :4], expected.detach())
    later = observed.activations[:, -4:]
    assert later.std(dim=0).min() > 0, "above the first layer they depend on the prompt"


def test_a_prompt_ends_where_the_last_layer_reads_the_frozen_model(tmp_path):
    base = tiny_base()
    adapter = read_adapter(save_tiny_adapter(tmp_path, base))
    reader, prompts = novelty.Reader(adapter, base), tiny_prompts(base)
    found, read = reader.prompt_ends(prompts), []
    plain = tiny_base().model.model
    plain.layers[-1].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0, -1]))
    for prompt in prompts:
        plain(torch.tensor([prompt.prompt_ids]))
    torch.testing.assert_close(found, torch.stack(read))

    part = reader.read(list(SENTENCES))
    torch.testing.assert_close(part["prompt"], found)
    predictor = predictor_on(adapter, tiny_base())
    torch.testing.assert_close(part["thirds"], predictor.novelty_features(prompts))
    variances = torch.tensor([one.variance for one in predictor.predict(prompts)])
    torch.testing.assert_close(part["variance"].float(), variances)
