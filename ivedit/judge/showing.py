"""Which frames a judge sees, and how they become pictures.

The choice depends on a clip's length alone, never on its method, so every method is judged on as many frames, at the
same moments. Pictures are PNG without metadata, in the frames' own channel order: red is red for the judge.
"""

from __future__ import annotations

import hashlib
import io
import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_KEPT = 256
_LOCK = threading.Lock()
_PNGS: dict[tuple[str, tuple[int, int]], bytes] = {}
"""The last pictures made: the metrics of one clip share most of theirs, and repeats all."""

__all__ = ["LabelledImage", "Shown", "evenly", "windows"]


@dataclass(frozen=True)
class Shown:
    """How clips are shown; part of what makes two judgements comparable.

    Attributes:
        frames: Moments shown of a clip, and frames of each window of consecutive ones.
        smallest: Frames with a shorter side below half of this are enlarged by a whole factor, without smoothing.
        largest: Frames with a longer side above this are scaled down to it.
    """

    frames: int = 8
    smallest: int = 256
    largest: int = 768

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) that a frame is shown at."""
        longer = max(height, width)
        if longer > self.largest:
            return max(1, round(height * self.largest / longer)), max(1, round(width * self.largest / longer))
        factor = max(1, min(self.smallest // min(height, width), self.largest // longer))
        return height * factor, width * factor


def evenly(length: int, count: int) -> list[int]:
    """Up to ``count`` different frame numbers of a clip, from its first to its last."""
    count = min(count, length)
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]


def windows(length: int, count: int) -> list[list[int]]:
    """The first and the last ``count`` consecutive frames; one window with all frames when there are no more."""
    if length <= count:
        return [list(range(length))]
    return [list(range(count)), list(range(length - count, length))]


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """A frame (3, H, W) uint8 under the label that the judge reads before it, shown at ``size`` (H, W)."""

    label: str
    frame: NDArray[np.uint8]
    size: tuple[int, int]

    @cached_property
    def digest(self) -> str:
        """sha256 of the pixels and the size shown: the same whatever library writes the PNG."""
        facts = f"{self.frame.shape}{self.size}".encode()
        return hashlib.sha256(facts + np.ascontiguousarray(self.frame).tobytes()).hexdigest()

    @property
    def png(self) -> bytes:
        """The picture: PNG, RGB, without metadata. Made once for all questions that show it soon after each other."""
        key = (self.digest, self.size)
        with _LOCK:
            found = _PNGS.get(key)
        if found is None:
            found = self._encoded()
            with _LOCK:
                while len(_PNGS) >= _KEPT:
                    del _PNGS[next(iter(_PNGS))]
                _PNGS[key] = found
        return found

    def _encoded(self) -> bytes:
        import PIL.Image

        picture = PIL.Image.fromarray(np.ascontiguousarray(self.frame.transpose(1, 2, 0)))
        height, width = self.size
        if (height, width) != self.frame.shape[1:]:
            enlarged = height >= self.frame.shape[1] and width >= self.frame.shape[2]
            method = PIL.Image.Resampling.NEAREST if enlarged else PIL.Image.Resampling.LANCZOS
            picture = picture.resize((width, height), method)
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=3)  # twice as fast as the usual 6, an eighth larger
        return file.getvalue()
