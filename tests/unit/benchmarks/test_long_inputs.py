"""The benchmark of long inputs: what it writes, and that the samples share the prompt."""

import json
import mmap
import sys

import pytest

from benchmarks import long_inputs
from dalorra.forward.llama.base import ArrangedLlama
from tests.tiny import tiny_folders


def test_a_line_for_each_scope_and_size(tmp_path, monkeypatch):
    adapter, base = tiny_folders(tmp_path)
    out, rows, embed = tmp_path / "out.json", [], ArrangedLlama.embed

    def embedded(self, ids):
        rows.append(ids.numel())
        return embed(self, ids)

    monkeypatch.setattr(ArrangedLlama, "embed", embedded)
    options = {
        "--adapter": adapter, "--base-model": base, "--row-budget": 50, "--repeats": 1,
        "--json": out,
    }  # fmt: skip
    flags = [str(word) for pair in options.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["long_inputs", *flags, "--tokens", "120", "60"])
    long_inputs.main()
    lines = json.loads(out.read_text())
    assert [(line["scope"], line["tokens"]) for line in lines] == [
        ("answer_tokens", 60), ("answer_tokens", 120), ("all_tokens", 60), ("all_tokens", 120),
    ]  # fmt: skip
    assert all(line["seconds"] > 0 for line in lines)
    assert all(line["memory_mib"] < 1_000 for line in lines)  # less than none, if others free some
    assert max(rows) <= 50, "no forward has more"


def test_a_peak_is_seen_and_forgotten():
    before = long_inputs.memory()
    long_inputs.forget_peak()
    with mmap.mmap(-1, 64 * 2**20) as block:  # never memory that is resident already
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    assert long_inputs.peak() - before > 50 * 2**20
    long_inputs.forget_peak()
    assert long_inputs.peak() == pytest.approx(long_inputs.memory(), abs=4 * 2**20)
