"""Clips as they lie on disk: a video file, a picture, or a folder of numbered pictures.

`clip_facts` decodes a clip once from end to end, so that a damaged or short file is known before anything is scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ivedit.errors import IveditError
from ivedit.filetypes import PICTURES, frame_files
from ivedit.media import VideoReader, read_image

__all__ = ["PICTURES", "VIDEOS", "ClipFacts", "clip_facts", "fit_clip", "is_media", "read_clip", "read_mask"]

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")


@dataclass(frozen=True)
class ClipFacts:
    """How long and how large a clip is."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.height}x{self.width}"


def is_media(path: Path) -> bool:
    """Whether a file's name is one of a video or picture."""
    return path.suffix.lower() in (*VIDEOS, *PICTURES)


def clip_facts(path: Path) -> ClipFacts:
    """Length and size of a clip, every frame of which has been decoded.

    Raises:
        IveditError: missing, empty, damaged, of an unknown kind, or with frames of different sizes.
    """
    sizes: set[tuple[int, int]] = set()
    count = 0
    for frame in _frames(path):
        count += 1
        sizes.add((frame.shape[-2], frame.shape[-1]))
    if len(sizes) != 1:
        found = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise IveditError(f"{path} has frames of different sizes (height x width): {found}")
    ((height, width),) = sizes
    return ClipFacts(count, height, width)


def read_clip(path: Path) -> Tensor:
    """A whole clip as uint8 (T, 3, H, W), upright. IveditError names a file that cannot be read."""
    return torch.stack(list(_frames(path)))


def read_mask(path: Path, frames: int) -> Tensor:
    """A mask clip as bool (frames, 1, H, W), true where any colour is above half; one picture serves all frames."""
    mask = read_clip(path).amax(dim=1, keepdim=True) > 127
    return mask.expand(frames, -1, -1, -1) if len(mask) == 1 else mask


def fit_clip(clip: Tensor, to: ClipFacts) -> Tensor:
    """The first ``to.frames`` frames of a uint8 clip or bool mask (T, C, H, W), scaled to its size.

    Colours are scaled bicubically with antialiasing; a mask is true where half of the pixel's area is.
    """
    clip = clip[: to.frames]
    if tuple(clip.shape[-2:]) == (to.height, to.width):
        return clip
    scaled = F.interpolate(clip.float(), (to.height, to.width), mode="bicubic", antialias=True)
    return scaled > 0.5 if clip.dtype == torch.bool else scaled.clamp(0, 255).round().to(torch.uint8)


def _frames(path: Path) -> Iterator[Tensor]:
    """(3, H, W) uint8 frames in order."""
    if path.is_dir():
        yield from (read_image(picture) for picture in frame_files(path))
    elif path.suffix.lower() in PICTURES:
        yield read_image(path)
    elif path.suffix.lower() in VIDEOS:
        with VideoReader(path) as reader:
            yield from (frame for _, frame in reader)
    else:
        known = ", ".join((*VIDEOS, *PICTURES))
        what = "is neither a video nor a picture" if path.exists() else "does not exist"
        raise IveditError(f"{path} {what}; known are {known}, and folders of pictures")
