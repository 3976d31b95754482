"""Reads shapes, colours and places back from pixels: a small convolutional network trained on rendered frames.

It says of every cell of a 32 x 32 grid which shape and which colour is there, so that one pass answers
whether a captioned object is in a frame, where it is and, over frames, which way it moves. It is an
instrument for measuring generated and edited clips; nothing is trained against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivedit.sprites.vocabulary import COLOURS, SHAPES

__all__ = ["ReadBack", "SpriteReader", "load_reader"]

#: An object counts as present when this many cells (2 x 2 pixels each) show its shape and its colour. The smallest
#: shape, a small star, covers about 14 cells.
PRESENT_CELLS = 6


@dataclass(frozen=True)
class ReadBack:
    """What the reader saw.

    Attributes:
        cells: (B, T, S, C) number of grid cells that show shape s in colour c.
        centres: (B, T, S, C, 2) their mean (x, y) in pixels of a 64 x 64 frame; NaN where there are none.
    """

    cells: Tensor
    centres: Tensor

    def present(self, shape: Tensor, colour: Tensor) -> Tensor:
        """(B, T) bool: is there a shape (B,) in a colour (B,) in each frame?"""
        rows = torch.arange(len(self.cells), device=self.cells.device)
        return self.cells[rows, :, shape, colour] >= PRESENT_CELLS

    def place(self, shape: Tensor, colour: Tensor) -> Tensor:
        """(B, T, 2) centre of a shape (B,) in a colour (B,); NaN where there is none."""
        rows = torch.arange(len(self.cells), device=self.cells.device)
        return self.centres[rows, :, shape, colour]


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class SpriteReader(nn.Module):
    """A U-shaped network from (B, 3, 64, 64) in [0, 1] to shape and colour logits on a 32 x 32 grid."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.down = nn.ModuleList([_stage(3, width, 2), _stage(width, 2 * width, 2), _stage(2 * width, 3 * width, 2)])
        self.middle = _stage(3 * width, 3 * width, 1)
        self.up = nn.ModuleList([_stage(5 * width, 2 * width, 1), _stage(3 * width, width, 1)])
        self.head = nn.Conv2d(width, len(SHAPES) + 1 + len(COLOURS) + 1, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S + 1, 32, 32) and (B, C + 1, 32, 32); the last class is "no object"."""
        a = self.down[0](frames * 2 - 1)
        b = self.down[1](a)
        c = self.middle(self.down[2](b))
        b = self.up[0](torch.cat((F.interpolate(c, scale_factor=2.0), b), dim=1))
        a = self.up[1](torch.cat((F.interpolate(b, scale_factor=2.0), a), dim=1))
        shape, colour = self.head(a).split((len(SHAPES) + 1, len(COLOURS) + 1), dim=1)
        return shape, colour

    @torch.no_grad()
    def read(self, pixels: Tensor) -> ReadBack:
        """Read clips (B, T, 3, H, W) in [0, 1]; other sizes are resized to 64 x 64."""
        b, t = pixels.shape[:2]
        cells, centres = [], []
        grid = (torch.arange(32, device=pixels.device) + 0.5) * 2
        for part in pixels.flatten(0, 1).split(1024):
            if part.shape[-2:] != (64, 64):
                part = F.interpolate(part, size=(64, 64), mode="bilinear", antialias=True)
            shape, colour = (logits.argmax(dim=1) for logits in self(part))
            shapes = F.one_hot(shape, len(SHAPES) + 1)[..., :-1].flatten(1, 2).float()
            colours = F.one_hot(colour, len(COLOURS) + 1)[..., :-1].flatten(1, 2).float()
            count = torch.einsum("nps,npc->nsc", shapes, colours)
            x = grid.repeat(32)[:, None] * colours
            y = grid.repeat_interleave(32)[:, None] * colours
            sums = torch.stack([torch.einsum("nps,npc->nsc", shapes, v) for v in (x, y)], dim=-1)
            cells.append(count)
            centres.append(sums / count[..., None])  # 0 / 0 is the NaN that is promised
        return ReadBack(torch.cat(cells).unflatten(0, (b, t)), torch.cat(centres).unflatten(0, (b, t)))


def load_reader(folder: str | Path, device: torch.device | str = "cpu") -> SpriteReader | None:
    """The reader that lies in a pipeline folder, or None where there is no ``reader.safetensors``."""
    from safetensors.torch import load_file

    file = Path(folder) / "reader.safetensors"
    if not file.is_file():
        return None
    reader = SpriteReader()
    reader.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    return reader.eval().requires_grad_(False).to(device)
