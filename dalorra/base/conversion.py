"""One-time conversion of a GGUF file to bf16 safetensors: 25 s once instead of at every start.

It runs in a process of its own: the parent's progress display keeps moving and is not written over
by the libraries' own bars, an interruption stops it at once, and the memory goes back afterwards.
"""

import os
import subprocess
import sys
from pathlib import Path

from dalorra.errors import BaseModelError

# Nothing to look up on the hub either: the file is complete.
_SURROUNDINGS = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file to `folder`, weights in bfloat16.

    Raises:
        BaseModelError: the file is no readable GGUF file of a known language model.
    """
    command = [sys.executable, "-m", "dalorra.base.conversion", str(gguf), str(folder)]
    done = subprocess.run(
        command, env={**os.environ, **_SURROUNDINGS}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BaseModelError(f"{gguf.name} could not be converted: {said[-1]}")


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from dalorra.base.families import require_known

    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    require_known(config, gguf.name, encoders=False)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),  # a packed model cannot be saved
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    try:
        _convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except BaseModelError as error:
        sys.exit(str(error))
