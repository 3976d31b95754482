"""Read back what stands in an edited clip: which shapes, which colours, which objects, where.

PSNR calls a blurred patch of the right colour a fair edit; a classifier says whether the object is there. It is the
small reader that may lie in a sprite pipeline's folder (`ivedit.sprites.reader`), compared with the true scene.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivedit.backbone.loading import resolve_folder
from ivedit.evaluation.clips import ClipBatch
from ivedit.evaluation.metrics.base import ClipMetric
from ivedit.sprites.reader import PRESENT_CELLS, SpriteReader, load_reader
from ivedit.sprites.vocabulary import COLOURS, SHAPES

__all__ = ["FACTS", "SKIPPED", "ReadBackScore", "find_reader"]

FACTS = ("shapes", "colours", "objects", "places")
"""Share of frames whose set of shapes, of colours, of (shape, colour) pairs is the true one; and whose objects all
stand within `NEAR` pixels of their true places."""

NEAR = 4.0
"""Pixels of a 64 x 64 frame: half a token of the shipped pipeline."""

SKIPPED = "skipped (no reader in folder)"


def find_reader(backbone: Any, device: torch.device | str) -> SpriteReader | None:
    """The reader in the backbone's own folder; None for a backbone without a folder on this disk or without reader."""
    name = backbone.spec.name
    if name != "wan-sprites" and not Path(name).is_dir():
        return None
    return load_reader(resolve_folder(name, ()), device)


class ReadBackScore(ClipMetric):
    """(B, 4) shares of frames, in the order of `FACTS`; no value for clips in a style, whose colours have no names.

    `update` takes a `ClipBatch` in place of a reference, because it needs the scenes.
    """

    higher_is_better = True

    def __init__(self, reader: SpriteReader, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # behind a list, so that the reader's weights do not become part of this metric's state
        self._reader = [reader]

    def update(self, edited: Tensor, batch: ClipBatch) -> None:  # type: ignore[override]
        """Read a batch of edited clips (B, T, 3, H, W)."""
        assert batch.reference.clips is not None
        self.values.append(read_facts(self._reader[0], edited, batch).to(self.device))
        self.clips.append(batch.reference.clips.to(self.device))


def read_facts(reader: SpriteReader, edited: Tensor, batch: ClipBatch) -> Tensor:
    """(B, 4) shares of frames for which each of `FACTS` is true."""
    found = reader.read(edited)
    scenes = batch.target_scenes
    b, t = edited.shape[:2]
    count = torch.zeros(b, len(SHAPES), len(COLOURS), dtype=torch.long, device=edited.device)
    for slot in range(scenes.present.shape[1]):
        rows = scenes.present[:, slot].nonzero().flatten()
        count[rows, scenes.shape[rows, slot], scenes.colour[rows, slot]] += 1
    truth = count > 0
    seen = found.cells >= PRESENT_CELLS  # (B, T, S, C)
    objects = (seen == truth[:, None]).all(dim=(-1, -2))
    shapes = (seen.any(-1) == truth[:, None].any(-1)).all(dim=-1)
    colours = (seen.any(-2) == truth[:, None].any(-2)).all(dim=-1)

    near = torch.ones(b, t, dtype=torch.bool, device=edited.device)
    centres = scenes.centres(batch.frames)  # (B, K, T, 2) in pixels of a 64 x 64 frame
    for slot in range(scenes.present.shape[1]):
        place = found.place(scenes.shape[:, slot], scenes.colour[:, slot])
        close = (place - centres[:, slot]).norm(dim=-1) <= NEAR  # NaN, not seen, is not close
        near &= close | ~scenes.present[:, slot, None]
    share = torch.stack([x.float().mean(dim=1) for x in (shapes, colours, objects, near)], dim=1)
    # Nothing there: no place. Two objects that only their size tells apart: the reader finds their common centre.
    placed = scenes.present.any(dim=1) & (count <= 1).all(dim=(-1, -2))
    share[:, 3] = torch.where(placed, share[:, 3], torch.nan)
    return torch.where((scenes.style == 0)[:, None], share, torch.nan)
