"""Shapes and constants of a backbone, and the token grid of a clip.

Nothing here is a constant of one model: patch, head size, latent channels, compression factors and flow shift are
all read from the folder's config files (`ivedit.config.wan_folder`, which also says which folders are refused).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["BackboneSpec", "Grid"]


class Grid(NamedTuple):
    """Token grid of a clip: latent frames F, token rows and token columns of one frame."""

    frames: int
    rows: int
    columns: int

    @property
    def per_frame(self) -> int:
        """N, the number of tokens of one frame."""
        return self.rows * self.columns


@dataclass(frozen=True)
class BackboneSpec:
    """Shapes and constants of a backbone, all read from its configs.

    Attributes:
        name: folder or hub name it came from.
        blocks, width, heads, head_dim, ffn_width: of the transformer; width C = heads * head_dim.
        text_dim: width of the text encoder's states.
        latent_channels: Z.
        patch: (1, ph, pw).
        space_factor, time_factor: pixels per latent cell and frames per latent frame (after the first).
        shift: flow shift k of the folder's scheduler.
        text_length: tokens that texts are padded to.
    """

    name: str
    blocks: int
    width: int
    heads: int
    head_dim: int
    ffn_width: int
    text_dim: int
    latent_channels: int
    patch: tuple[int, int, int]
    space_factor: int
    time_factor: int
    shift: float
    text_length: int
    _fingerprint: Callable[[], str] = field(repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """sha256 of the transformer's weights; computed at the first use, as it reads every weight."""
        return self._fingerprint()

    @property
    def size_multiple(self) -> int:
        """Heights and widths in pixels must divide by it: a token's side, and 16 as diffusers' Wan pipelines ask."""
        return math.lcm(16, self.space_factor * self.patch[1], self.space_factor * self.patch[2])

    def nearest_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) in pixels nearest to ``size`` that whole tokens fill: ``size`` itself where they do."""
        near = [max(1, round(side / self.space_factor / patch)) * self.space_factor * patch
                for side, patch in zip(size, self.patch[1:], strict=True)]  # fmt: skip
        return near[0], near[1]

    def shapes(self) -> dict[str, Any]:
        """What an editor's weights depend on: stored beside them and compared on load."""
        return {
            "blocks": self.blocks,
            "width": self.width,
            "heads": self.heads,
            "ffn_width": self.ffn_width,
            "text_dim": self.text_dim,
            "latent_channels": self.latent_channels,
            "patch": list(self.patch),
        }
