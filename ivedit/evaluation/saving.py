"""Keep a run's edits as a folder of finished edits: `python -m ivedit.evaluate` on it gives the run's own numbers.

Videos are lossless RGB, so the pixels that come back are those that were scored (which are 8-bit, as in every file).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ivedit.evaluation.clips import ClipBatch
from ivedit.evaluation.manifest import CONTROL, write_manifest
from ivedit.media import to_uint8, write_video

__all__ = ["EDITS", "EditWriter"]

EDITS = "edits"
"""Their place in a run folder."""

_FPS = 8


class EditWriter:
    """Writes ``sources/``, ``truths/``, ``masks/`` and ``edits/<row>/``, and at the end ``manifest.jsonl``.

    Args:
        folder: New or empty.
        ids: Names of all clips, by clip number.
    """

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder = folder
        self.ids = [re.sub(r"[^A-Za-z0-9_.-]", "_", id) for id in ids]
        self._lines: dict[tuple[str, int], dict[str, str]] = {}

    def add(self, batch: ClipBatch, row: str, edited: Tensor) -> None:
        """Write a batch of a row's edits (B, T, 3, H, W) in [0, 1], and what it is measured against, once.

        The control `CONTROL` is no method: whoever scores the folder adds it again.
        """
        reference = batch.reference
        assert reference.clips is not None
        if row == CONTROL:
            return
        for i, number in enumerate(reference.clips.tolist()):
            name = f"{self.ids[number]}.mp4"
            shared = {
                "source": (f"sources/{name}", reference.source[i]),
                "truth": (f"truths/{name}", reference.target[i]),
                "mask": (f"masks/{name}", reference.mask[i].expand(-1, 3, -1, -1)),
            }
            for place, pixels in shared.values():
                if not (self.folder / place).exists():
                    self._write(place, pixels)
            place = f"edits/{re.sub(r'[^A-Za-z0-9_.-]', '_', row)}/{name}"
            self._write(place, edited[i])
            self._lines[row, number] = {
                "id": self.ids[number],
                "method": row,
                "edited": place,
                **{field: where for field, (where, _) in shared.items()},
                "instruction": batch.instructions[i],
                "source_caption": (reference.source_captions or [""] * len(batch))[i],
                "target_caption": batch.target_captions[i],
                "operation": batch.operations[i],
            }

    def _write(self, place: str, pixels: Tensor) -> None:
        frames = pixels * 255 if pixels.dtype == torch.bool else to_uint8(pixels)
        write_video(self.folder / place, frames.to(torch.uint8).cpu(), _FPS, lossless=True)

    def close(self, rows: Sequence[str]) -> None:
        """Write the manifest, rows in this order."""
        order = {row: i for i, row in enumerate(rows)}
        lines = sorted(self._lines.items(), key=lambda item: (order[item[0][0]], item[0][1]))
        if lines:
            write_manifest(self.folder, [line for _, line in lines])
