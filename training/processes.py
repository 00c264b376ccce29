"""The processes of one run: `accelerate launch` starts several and tells each its place."""

import os
from dataclasses import dataclass
from typing import Self

from dalorra.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Process:
    """This process among those that train together; the only one where no launcher says otherwise.

    Attributes:
        index: from 0, which is the main process: it writes files and prints.
        local_index: among those on this machine.
        count: of all of them.
    """

    index: int
    local_index: int
    count: int

    @classmethod
    def this(cls) -> Self:
        """The process that runs this code."""
        return cls(
            int(os.environ.get("RANK", "0")),
            int(os.environ.get("LOCAL_RANK", "0")),
            int(os.environ.get("WORLD_SIZE", "1")),
        )

    @property
    def is_main(self) -> bool:
        """Whether it is the process that writes files."""
        return self.index == 0

    def device(self, wanted: str) -> str:
        """The device to use: of several processes that want `auto` or `cuda`, each its own GPU.

        Raises:
            ConfigError: several want the same GPU.
        """
        if self.count == 1 or wanted == "cpu":
            return wanted
        import torch

        if wanted not in ("auto", "cuda"):
            raise ConfigError(
                f"device: {self.count} processes cannot share {wanted}; write auto, and each "
                "takes a GPU of its own"
            )
        return f"cuda:{self.local_index}" if torch.cuda.is_available() else "cpu"
