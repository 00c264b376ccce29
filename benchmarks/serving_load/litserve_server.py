"""LitServe with batching around the loop: what is waiting is padded and answered together."""

import argparse
import sys
from typing import Any

# LitServe 0.2 fails to start where mcp is installed and fastmcp is not; it is not used here.
sys.modules["mcp"] = None  # type: ignore[assignment]

import litserve  # noqa: E402

from benchmarks.serving_load.looping import (  # noqa: E402
    Answer,
    LoopedLora,
    server_arguments,
)

BATCH_TIMEOUT_SECONDS = 0.01


class LoopedApi(litserve.LitAPI):  # type: ignore[misc]  # litserve ships no types
    """`LoopedLora` on batches of up to `--max-batch` inputs."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(max_batch_size=options.max_batch, batch_timeout=BATCH_TIMEOUT_SECONDS)
        self._options = options

    def setup(self, device: str) -> None:
        self._looped = LoopedLora(self._options)

    def decode_request(self, request: dict[str, Any]) -> tuple[str, float]:
        return request["input"], request["until"]

    def predict(self, questions: list[tuple[str, float]]) -> list[Answer]:
        texts, until = zip(*questions, strict=True)
        return self._looped.answer(texts, max(until))

    def encode_response(self, output: Answer) -> Answer:
        return output


if __name__ == "__main__":
    options = server_arguments().parse_args()
    server = litserve.LitServer(LoopedApi(options), devices=1, timeout=False)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False)
