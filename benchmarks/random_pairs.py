"""What the benchmarks of real training share: pairs of true size made up on the spot, and when a loss was known."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["NO_DATA", "Told", "pair_batch"]

NO_DATA = ("data.reader=sprites", "data.path=null", "data.height=480", "data.width=480", "data.cache=memory")
"""In place of the data set that an experiment names; pairs are random here, of whatever size `pair_batch` is asked."""


class Told:
    """A tracker that keeps the logged losses, and when each was known: the device has done all steps before by then."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Once in ``train.log_every`` steps."""
        if "train/loss" in values:
            self.losses.append(values["train/loss"])
            self.seconds.append(time.perf_counter())


def pair_batch(
    backbone: Any, count: int, size: tuple[int, int], device: Any, *, seed: int, words: int = 24
) -> dict[str, Any]:
    """A batch as `PairDataModule` gives it, the same for one seed on every device.

    Args:
        backbone: says the shapes.
        count: pairs.
        size: height and width of the pictures in pixels.
        device: where the batch is.
        seed: of everything random in it.
        words: real tokens of each instruction; the text of the sources is one token, as an empty one is.
    """
    import torch

    from ivedit.backbone import TextStates

    spec, generator = backbone.spec, torch.Generator().manual_seed(seed)
    shape = (count, spec.latent_channels, 1, size[0] // spec.space_factor, size[1] // spec.space_factor)

    def latents() -> Any:
        return torch.randn(shape, generator=generator).to(device)

    def texts(real: int) -> Any:
        states = torch.zeros(count, spec.text_length, spec.text_dim)
        states[:, :real] = torch.randn(count, real, spec.text_dim, generator=generator)
        mask = (torch.arange(spec.text_length) < real)[None].expand(count, -1).contiguous()
        return TextStates(states, mask).to(device)

    words_of_edit = texts(words)
    return {
        "source": latents(), "target": latents(), "text_target": words_of_edit, "text_gate": words_of_edit,
        "text_source": texts(1),
    }  # fmt: skip
