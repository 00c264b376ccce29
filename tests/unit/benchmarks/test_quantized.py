import json
import sys

from benchmarks import quantized
from tests.tiny import tiny_folders


def test_a_line_for_each_way_and_size(tmp_path, monkeypatch):
    adapter, base = tiny_folders(tmp_path)
    out = tmp_path / "out.json"
    flags = ["--adapter", str(adapter), "--base-model", str(base), "--json", str(out)]
    flags += ["--quantize", "none", "--tokens", "30", "60", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", ["quantized", *flags])
    quantized.main()
    lines = json.loads(out.read_text())
    assert [(line["quantize"], line["tokens"]) for line in lines] == [("none", 30), ("none", 60)]
    for line in lines:
        assert 0 < line["fastest"] <= line["seconds"] <= line["slowest"]
        assert 0 < line["weights_mib"] < 1
