import weakref
from typing import Any

import pytest
import torch

from dalorra.adapter.layer import attach, lora_config, mask_logits, stochastic_layers
from dalorra.prompts import PromptTokenizer
from tests.tiny import FORMAT, MODULES, tiny_base
from training.config import TrainingConfig
from training.objective import Loss, Objective
from training.trainer import AdapterTrainer, LikeTails, TrainablePeftModel, parameter_groups

WORDS = ("good", "bad", "fun", "dull", "odd", "long", "short", "new", "old", "warm", "cold", "dry")


def config(tmp_path, **sections: Any) -> TrainingConfig:
    optimizer = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "warmup": 0.0}
    return TrainingConfig.model_validate(
        {
            "name": "tiny",
            "output_dir": str(tmp_path),
            "task": "sst2",
            "device": "cpu",
            "optimizer": optimizer | sections.pop("optimizer", {}),
            "evaluation": {"every": 100, "keep_best": False},
            **sections,
        }
    )


def new_model(settings: TrainingConfig, size: int) -> TrainablePeftModel:
    base = tiny_base()
    torch.manual_seed(0)
    model = attach(
        base.model,
        lora_config(2, 4.0, MODULES, "t"),
        settings.method.posterior(),
        TrainablePeftModel,
    )
    assert isinstance(model, TrainablePeftModel)
    label_ids = torch.tensor(PromptTokenizer(base.tokenizer, FORMAT).label_ids)
    model.objective = Objective(settings.method, label_ids, settings.adapter.scope, size, None)
    return model


def trained(settings: TrainingConfig, count: int = 12) -> tuple[TrainablePeftModel, AdapterTrainer]:
    model = new_model(settings, count)
    tokenizer = PromptTokenizer(tiny_base().tokenizer, FORMAT)
    examples = [(tokenizer.encode(word), i % 2) for i, word in enumerate(WORDS[:count])]
    trainer = AdapterTrainer(
        settings, model, examples, lambda: {"nll": 1.0}, settings.output_dir / "checkpoints"
    )
    trainer.train()
    return model, trainer


def adapter_of(model: TrainablePeftModel) -> list[torch.Tensor]:
    layers = stochastic_layers(model).values()
    return [t.detach().clone() for layer in layers for t in (layer.down, layer.up)]


# --- the optimiser ---


def test_mask_logits_have_a_rate_of_their_own_and_no_decay(tmp_path):
    settings = config(
        tmp_path,
        optimizer={"learning_rate": 3e-4, "weight_decay": 0.1},
        method={"mask_learning_rate": 0.02},
    )
    model = new_model(settings, 12)
    weights, logits = parameter_groups(model, settings)
    layers = stochastic_layers(model).values()
    assert (weights["lr"], weights["weight_decay"]) == (3e-4, 0.1)
    assert (logits["lr"], logits["weight_decay"]) == (0.02, 0.0)
    assert {id(p) for p in logits["params"]} == {id(layer.mask_logits) for layer in layers}
    assert {id(p) for p in weights["params"]} == {
        id(p) for layer in layers for p in (layer.down, layer.up)
    }


def test_the_trainer_uses_those_groups_with_linear_decay_and_warmup(tmp_path):
    settings = config(tmp_path, optimizer={"steps": 10, "warmup": 0.15, "weight_decay": 0.1})
    _, trainer = trained(settings)
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [0.01, 0.01]
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.0, 0.0]
    rate = trainer.lr_scheduler.lr_lambdas[1]
    assert [rate(step) for step in (0, 1, 2, 6, 10)] == [0.0, 0.5, 1.0, 0.5, 0.0]


def test_training_changes_the_adapter_and_nothing_else(tmp_path):
    settings = config(tmp_path)
    before = new_model(settings, 12)
    model, _ = trained(settings)
    changed = {
        name
        for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert changed == {name for name, _ in model.named_parameters() if "lora_" in name}


# --- masks by step ---


def draws_of(settings: TrainingConfig, monkeypatch, count: int = 12) -> list[int]:
    draws = []
    forward = TrainablePeftModel.forward

    def spy(self, prompts, labels, draw):
        draws.append(draw)
        return forward(self, prompts, labels, draw)

    monkeypatch.setattr(TrainablePeftModel, "forward", spy)
    trained(settings, count)
    monkeypatch.undo()
    return draws


def test_every_micro_step_draws_masks_of_its_own_decided_by_the_seed(tmp_path, monkeypatch):
    optimizer = {"accumulation": 2, "batch_size": 2}
    first = draws_of(config(tmp_path, optimizer=optimizer), monkeypatch)
    assert len(first) == 6
    assert len(set(first)) == 6
    assert first == draws_of(config(tmp_path, optimizer=optimizer), monkeypatch)
    other = draws_of(config(tmp_path, seed=2, optimizer=optimizer), monkeypatch)
    assert not set(first) & set(other)


def test_a_step_with_fewer_micro_steps_does_not_shift_the_masks_of_later_steps(
    tmp_path, monkeypatch
):
    """A resumed run starts counting at its own first step, so a step's masks must be its own."""
    # 12 examples in batches of 4: three micro-steps per epoch, two per step, one in the last.
    draws = draws_of(config(tmp_path, optimizer={"steps": 4, "accumulation": 2}), monkeypatch)
    even = draws_of(
        config(tmp_path, optimizer={"steps": 4, "accumulation": 2}), monkeypatch, count=8
    )
    assert len(draws) == 6
    assert [even[0], even[1], even[2], even[4], even[5], even[6]] == draws


# --- accumulation ---


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_accumulation_equals_one_larger_batch(tmp_path, scope):
    """Where all masks are on; otherwise each micro-step draws its own."""
    certain = {"prior": 1 - 1e-7, "temperature": 0.1, "noise_per": "batch"}
    (large, large_log), (small, small_log) = (
        trained(
            config(
                tmp_path / str(size),
                method=certain,
                adapter={"scope": scope},
                optimizer={"batch_size": size, "accumulation": 12 // size, "max_grad_norm": 1e9},
            )
        )
        for size in (12, 4)
    )
    for one, other in zip(adapter_of(large), adapter_of(small), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
    assert torch.stack([t.abs().max() for t in adapter_of(large)[1::2]]).min() > 0.01
    # AdamW forgives a gradient that is a sum instead of a mean; clipping does not.
    for key in ("grad_norm", "loss"):
        one, other = (
            [entry[key] for entry in trainer.state.log_history if key in entry]
            for trainer in (large_log, small_log)
        )
        assert len(one) == 3
        assert one == pytest.approx(other, rel=1e-3)


# --- what is logged ---


def test_the_log_holds_the_means_of_both_parts_of_the_loss(tmp_path, monkeypatch):
    settings = config(tmp_path, optimizer={"steps": 40, "batch_size": 2, "accumulation": 2})
    parts = []
    call = Objective.__call__

    def spy(self, *args) -> Loss:
        loss = call(self, *args)
        parts.append((loss.nll.item(), loss.penalty.item()))
        return loss

    monkeypatch.setattr(Objective, "__call__", spy)
    _, trainer = trained(settings)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(parts) == 80
    assert [entry["step"] for entry in logged] == list(range(4, 41, 4))
    per_entry = 8
    for number, entry in enumerate(logged):
        own = parts[number * per_entry : (number + 1) * per_entry]
        assert entry["nll"] == pytest.approx(sum(p[0] for p in own) / per_entry)
        assert entry["penalty"] == pytest.approx(sum(p[1] for p in own) / per_entry)


def test_the_initial_mask_logits_are_those_of_the_prior(tmp_path):
    settings = config(tmp_path, method={"prior": 0.8})
    torch.testing.assert_close(
        torch.sigmoid(mask_logits(new_model(settings, 12))), torch.full((5, 2), 0.8)
    )


# --- several processes ---


def test_the_wrapped_model_is_gone_before_the_processes_part(tmp_path, monkeypatch):
    """PyTorch may otherwise destroy the process group inside it, and wait for ever."""
    model, trainer = trained(config(tmp_path))
    wrapped = torch.nn.Sequential(model)  # in the place of DistributedDataParallel
    trainer.model_wrapped = wrapped
    trainer.accelerator.prepare_model(wrapped)
    alive, seen = weakref.ref(wrapped), []
    del wrapped
    monkeypatch.setattr(trainer.accelerator, "end_training", lambda: seen.append(alive()))
    trainer.leave_group()
    assert seen == [None]
    assert trainer.model_wrapped is model


@pytest.mark.parametrize("count", [320, 325])
def test_prompts_with_tails_alike_share_a_batch_and_batches_come_in_any_order(count: int):
    torch.manual_seed(0)
    tails = torch.randint(3, 90, (count,)).tolist()
    sampler = LikeTails(4, tails)
    order = list(sampler)
    assert sorted(order) == list(range(count)) != order
    assert list(sampler) != order, "another epoch"
    batches = [[tails[at] for at in order[i : i + 4]] for i in range(0, count, 4)]
    rows = sum(len(batch) * max(batch) for batch in batches)
    assert rows < 1.15 * sum(tails), "padding is little"
    longest = torch.tensor([max(batch) for batch in batches[: count // 4]])
    assert (longest.diff() > 0).float().mean() > 0.3, "not from the longest to the shortest"
