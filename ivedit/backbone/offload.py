"""One part of a backbone on the GPU at a time, for cards that do not hold text encoder, transformer and VAE together.

A part comes when it is used and goes when another one is. Its weights stay in the computer's memory all the while, and
a part that goes drops its copy instead of sending it back: frozen weights have not changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["Offload"]


class Offload:
    """Keeps at most one of several modules on a device.

    Args:
        modules: by name, all on the CPU.
        device: where each one is used; on the CPU itself nothing is copied.

    Attributes:
        here: the name of the module that is on the device.
        moves: (name, "in" or "out") of every move so far.
    """

    def __init__(self, modules: Mapping[str, nn.Module], device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.here: str | None = None
        self.moves: list[tuple[str, str]] = []
        # Parameters and buffers with what they hold at home; a tensor that is used twice is one entry.
        self._home: dict[str, list[tuple[Tensor, Tensor]]] = {
            name: [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
            for name, module in modules.items()
        }

    def use(self, name: str) -> None:
        """Bring a module to the device, sending away the one that is there.

        Raises:
            KeyError: a name that is not among the modules.
        """
        if name == self.here:
            return
        coming = self._home[name]
        if self.here is not None:
            for tensor, home in self._home[self.here]:
                tensor.data = home
            self.moves.append((self.here, "out"))
            self.here = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # the next part needs blocks of other sizes
        for tensor, home in coming:
            tensor.data = self.copy(home)
        self.moves.append((name, "in"))
        self.here = name

    def copy(self, home: Tensor) -> Tensor:
        """What a weight is on the device."""
        return home.to(self.device)
