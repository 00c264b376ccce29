"""An evaluation for people: a table for the terminal, and the adapter's model card."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from training.figures import reliability_figure
from training.orthography import VARIANTS

CARD_FILE = "README.md"
DIAGRAM_FILE = "reliability.png"
IMPORTED = "imported"
"""Where `Manifest.training` says what an adapter is made of that was not trained here."""

_ROWS = (
    # name, key, whether it is a share
    ("accuracy", "accuracy", True),
    ("ECE (15 bins)", "ece", True),
    ("… by chance, if calibrated", "ece_by_chance", True),
    ("NLL (nats)", "nll", False),
    ("Brier score", "brier", False),
    ("AURC by probability", "aurc_confidence", False),
    ("AURC by variance", "aurc_variance", False),
    ("AUROC of 1 − probability for errors", "auroc_confidence", False),
    ("AUROC of variance for errors", "auroc_variance", False),
    ("Spearman's ρ, variance and error", "spearman_variance", False),
    ("the same over variance deciles", "spearman_variance_deciles", False),
)


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """The scores of `training.evaluate.evaluate`, M samples beside the mean mask."""
    task = metrics.get("task") or "evaluation"
    table = Table(title=f"{metrics['adapter']} on {task}: {_counted(metrics)}")
    table.add_column("score")
    table.add_column(f"M = {metrics['samples']}", justify="right")
    table.add_column("mean mask", justify="right")
    for row in _score_rows(metrics):
        table.add_row(*row)
    table.add_section()
    for row in _acceptance_rows(metrics):
        table.add_row(*row)
    table.add_section()
    for decision, part in metrics["decisions"].items():
        cell = f"{_share(part['share'])}, {_share(part['accuracy'])}"
        table.add_row(f"{decision}: share, of it right", cell, "")
    for kind, *cells in kind_rows(metrics) if "kinds" in metrics else ():
        table.add_row(f"{kind}: accuracy, NLL, ECE", ", ".join(cells[1:4]), "")
    if outside := metrics.get("out_of_scope"):
        table.add_row(f"out of scope, {outside['n']:,}: accepted", _share(outside["accepted"]), "")
    return table


def _counted(metrics: Mapping[str, Any]) -> str:
    """How many examples there were, and what is to be known of some of them."""
    parts = [f"{metrics['n']:,} examples"]
    if metrics.get("truncated"):
        parts.append(f"{metrics['truncated']:,} of them cut to fit")
    if metrics.get("used"):
        parts.append(used_in_words(metrics))
    return ", ".join(parts)


def used_in_words(metrics: Mapping[str, Any]) -> str:
    """How many of the examples are no fair test."""
    return f"{metrics['used']:,} with inputs that it was trained, selected or calibrated on"


def write_model_card(
    adapter_dir: Path, manifest: Mapping[str, Any], metrics: Mapping[str, Any]
) -> Path:
    """Writes `README.md` and its reliability diagram into an adapter's directory.

    Args:
        adapter_dir: the adapter.
        manifest: content of its `dalorra.json`.
        metrics: what `training.evaluate.evaluate` returned for it.

    Returns:
        Path of the card.
    """
    reliability_figure(
        {"M samples": metrics["reliability"], "mean mask": metrics["mean_mask"]["reliability"]},
        adapter_dir / DIAGRAM_FILE,
    )
    card = adapter_dir / CARD_FILE
    card.write_text("\n".join(_card(manifest, metrics)) + "\n", encoding="utf-8")
    return card


def _asked(prompt: Mapping[str, Any]) -> dict[str, str]:
    """How an input becomes a question; an encoder is asked none."""
    if "question" in prompt:
        cue = prompt["answer_cue"]
        return {
            "Prompt": _code(prompt["state"] + prompt["question"] + cue),
            "Answer cue": _code(cue),
            "Options are": {"texts": "read by their words", "letters": "read by letters"}[
                prompt["readout"]
            ],
        }
    if prompt["answer_cue"] is None:
        return {"Text": _code(prompt["template"]), "Labels": ", ".join(prompt["labels"])}
    texts = [f"{name} ({_code(text)})" for name, text in prompt["labels"].items()]
    by_head = prompt.get("labels_by") == "head"
    return {
        "Prompt": _code(prompt["template"] + prompt["answer_cue"]),
        "Answer cue": _code(prompt["answer_cue"]),
        "Labels": ", ".join(prompt["labels"] if by_head else texts),
        **({"Labels are": "classes of a head at the end of the cue"} if by_head else {}),
    }


def write_import_card(adapter_dir: Path, manifest: Mapping[str, Any]) -> Path:
    """Writes `README.md` of an adapter that was made of plain LoRAs, and is not scored yet."""
    found = manifest["training"]
    anchors = f" Its noise was set on {found['anchors']:,} anchors." if found["anchors"] else ""
    lines = [
        *_head(manifest, "A low-rank adapter made of a plain LoRA."),
        "",
        "## Data",
        "",
        f"Made of {found[IMPORTED]}, which was trained elsewhere.{anchors} Neither scores nor",
        "thresholds come with it: `dalorra evaluate` scores it, and it accepts nothing before",
        "`dalorra calibrate`.",
    ]
    card = adapter_dir / CARD_FILE
    card.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return card


def _head(manifest: Mapping[str, Any], what: str) -> list[str]:
    """Metadata for the hub, name, and how it answers."""
    bank, base = manifest["bank"], manifest["base_model"]
    parameters = ", ".join(
        f"{k} {v:g}" if isinstance(v, int | float) else f"{k} {v}"
        for k, v in manifest["method_parameters"].items()
    )
    fields = {
        "Base model": f"{base['name']} (weight digest `{base['digest'][:12]}…`)",
        "Method": manifest["method"] + (f" ({parameters})" if parameters else ""),
        "Scope": f"`{manifest['scope']}`",
        "Mask bank": f"M = {bank['samples']}, seed {bank['seed']}, {bank['sampler']}",
        **_asked(manifest["prompt"]),
        "Longest input": f"{manifest['max_tokens']} tokens, template included",
    }
    return [
        "---",
        "library_name: peft",
        f"base_model: {json.dumps(base['name'], ensure_ascii=False)}",
        "pipeline_tag: text-classification",
        "tags: [dalorra, lora, uncertainty]",
        "---",
        "",
        f"# {manifest['name']}",
        "",
        what,
        "It answers with a label, its probability averaged over fixed samples of its posterior,",
        "and the variance between them. `dalorra serve --adapter` takes its folder, or its id on",
        "the hub.",
        "",
        *markdown_table(("", ""), fields.items()),
    ]


def _card(manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    return [
        *_head(manifest, "A low-rank adapter with a posterior over what it adds."),
        "",
        "## Data",
        "",
        *markdown_table(("examples", "", "what they chose"), _data_rows(manifest, metrics)),
        "",
        "## Scores",
        "",
        f"On {metrics.get('task') or 'held-out data'}, {_counted(metrics)}.",
        "",
        *markdown_table(
            ("score", f"M = {metrics['samples']}", "mean mask"),
            [*_score_rows(metrics), *_acceptance_rows(metrics)],
        ),
        "",
        f"![Reliability diagram]({DIAGRAM_FILE})",
        "",
        *_kinds(metrics),
        "## Policy",
        "",
        *_policy(metrics),
        "",
        "## Limits",
        "",
        "The scores hold for inputs like those it was scored on. An input that the adapter's",
        "low-rank update cannot feel has a variance of zero whatever the answer is worth, so a low",
        "variance alone is no proof that an input belongs to the task.",
    ]


def _data_rows(
    manifest: Mapping[str, Any], metrics: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Which examples the adapter depends on, and which it was only measured on."""
    training, used = manifest["training"], metrics.get("used", 0)
    config = training["config"]
    augmented = config["data"].get("augment", "none") == "orthography"
    all_spellings, one = (
        (f", in {VARIANTS} spellings each", f", in one of {VARIANTS} spellings each")
        if augmented
        else ("", "")
    )
    novelty = ", and what is usual for the novelty score"
    rows = [
        (training["examples"], f"trained on{all_spellings}", "the weights and the posterior"),
        (
            training["held_out"],
            f"held out{one}",
            "the checkpoint" + (novelty if config["evaluation"]["novelty"] else ""),
        ),
        (training["calibration"], f"set aside{one}", "the thresholds"),
        (
            metrics["n"],
            metrics.get("task") or "evaluated",
            f"nothing, but {used:,} of them are among the others" if used else "nothing",
        ),
    ]
    return [(f"{n:,}", what, chose) for n, what, chose in rows if n]


def _policy(metrics: Mapping[str, Any]) -> list[str]:
    policy = metrics["policy"]
    if policy["min_probability"] > 1.0:
        return [f"Nothing is accepted ({policy['source']})."]
    target = policy["target_error"]
    promise = f", for at most {_share(target)} error among accepted" if target is not None else ""
    if policy["confidence"] is not None:
        promise += f" with {100 * policy['confidence']:.6g} % confidence"
    rows = [
        (name, _share(part["share"]), _share(part["error"]))
        for name, part in metrics["decisions"].items()
    ]
    return [
        f"Accept when the probability is at least {policy['min_probability']:.4g} and the variance",
        f"at most {policy['max_variance']:.4g}; otherwise clarify when the input is more familiar",
        "than a fifth of the usual ones, and escalate when it is not." + _novelty_level(policy),
        f"Picked on {policy['source']}{promise}. On the examples above:",
        "",
        *markdown_table(("decision", "share", "error"), rows),
        *_outside(metrics.get("out_of_scope")),
    ]


def _kinds(metrics: Mapping[str, Any]) -> list[str]:
    """Scores by kind of question, of an adapter that answers questions."""
    if "kinds" not in metrics:
        return []
    return [
        "## Kinds of questions",
        "",
        *markdown_table(KINDS_HEAD, kind_rows(metrics)),
        "",
        "Kinds in italics were not trained on. The last two columns are of thresholds that were",
        "chosen on the other kinds in italics.",
        *_order(metrics["order"]),
        "",
    ]


def _order(order: Mapping[str, Any]) -> list[str]:
    if not order["n"]:
        return []
    return [
        "",
        f"In {order['n']:,} questions the options were reversed and rotated: a probability",
        f"changed by {order['mean_change']:.2g} on average, and {_share(order['changed'])} of the",
        "answers became another one.",
    ]


KINDS_HEAD = ("kind", "n", "accuracy", "NLL", "ECE", "accepted", "error", "… elsewhere", "error")
"""Of `kind_rows`."""


def kind_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each kind of question, those that were not trained on in italics and last."""
    rows: list[tuple[str, ...]] = []
    for kind, found in sorted(metrics["kinds"].items(), key=lambda item: -item[1]["trained_on"]):
        across = metrics["across_kinds"].get(kind, {})
        rows.append(
            (
                kind if found["trained_on"] else f"*{kind}*",
                f"{found['n']:,}",
                _share(found["accuracy"]),
                _number(found["nll"]),
                _share(found["ece"]),
                _share(found["accepted"]),
                _share(found["error"]),
                _share(across.get("accepted")),
                _share(across.get("error")),
            )
        )
    return rows


def _outside(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    low, high = found["interval"]
    return [
        "",
        f"Of {found['n']:,} inputs that no label answers it accepts {_share(found['accepted'])}",
        f"(95 % interval {_share(low)} to {_share(high)}).",
    ]


def _novelty_level(policy: Mapping[str, Any]) -> str:
    level = policy.get("min_novelty_p")
    if not level:
        return ""
    return (
        f" An input whose novelty p-value is below {level:.3g} is escalated before, whatever the\n"
        "probability and the variance say of it."
    )


def _score_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    mean = metrics["mean_mask"]
    rows = []
    for name, key, share in _ROWS:
        show = _share if share else _number
        rows.append((name, show(metrics[key]), show(mean[key]) if key in mean else ""))
    return rows


def _acceptance_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    mean = metrics["mean_mask"]["acceptance"]
    return [
        (f"acceptable at {_share(float(level), 0)} error", _share(share), _share(mean[level]))
        for level, share in metrics["acceptance"].items()
    ]


def _share(value: float | None, decimals: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{decimals}f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _code(text: str) -> str:
    """Text in backticks with its line breaks visible."""
    escaped = text.replace("\n", "\\n").replace("|", "\\|")
    return f"`` {escaped} ``" if "`" in escaped else f"`{escaped}`"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
