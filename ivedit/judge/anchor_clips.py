"""Clips whose faults are known: from one true edit, the nine clips A0 to A8 by which a judge proves itself.

Every fault is made from a source, its true edit and the mask of what the edit may touch, as a pure function of them:
a judge that cannot tell the outcome from the true edit does not measure what it is asked for. Clips are uint8 arrays
(T, 3, H, W), masks bool (T, 1, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["KINDS", "LEAST_CHANGE", "AnchorScene", "anchor_clip", "anchor_strip", "changed_share"]

Clip = NDArray[np.uint8]
Mask = NDArray[np.bool_]

KINDS = {
    "A0": "source copy",
    "A1": "true edit",
    "A2": "wrong object or colour",
    "A3": "true edit with colours leaking",
    "A4": "flicker",
    "A5": "shuffled or reversed",
    "A6": "frozen",
    "A7": "blurred",
    "A8": "unrelated clip",
}

VISIBLE = 24
"""Levels (of 255) by which some channel of a pixel must differ to count as changed to the eye."""

LEAST_CHANGE = 0.01
"""Share of pixels, averaged over frames, that a fault must change visibly; a clip where it does not is left out."""


@dataclass(frozen=True)
class AnchorScene:
    """One true edit with what its faults are made from.

    Attributes:
        name: Unique among the scenes.
        source: (T, 3, H, W) uint8.
        truth: The true edit, same shape.
        wrong: The same kind of edit on another object, in another place or in another colour.
        mask: (T, 1, H, W) bool, where the true edit may differ from the source.
        instruction: What was asked.
        index: Place among the scenes; odd ones are reversed in A5, even ones shuffled.
    """

    name: str
    source: Clip
    truth: Clip
    wrong: Clip
    mask: Mask
    instruction: str
    index: int = 0


def anchor_clip(scene: AnchorScene, kind: str, others: Sequence[AnchorScene]) -> Clip | None:
    """The clip of one of `KINDS`; None where its fault does not show in this scene.

    That is so, for instance, for frozen frames where nothing moves, or for a leak where the edit covers the whole
    picture. ``others``: scenes to take the unrelated clip from; read one after another until one will do.
    """
    clip = _MAKERS[kind](scene, others)
    if clip is None or (kind != "A1" and changed_share(clip, scene.truth) < LEAST_CHANGE):
        return None
    return np.ascontiguousarray(clip)


def anchor_strip(scenes: Sequence[AnchorScene], number: int, frames: int = 8, cell: int = 96) -> PIL.Image.Image:
    """A film strip of one scene: its source, then every kind of clip that shows its fault, over time."""
    import torch

    from ivedit.media import film_strip

    scene = scenes[number]
    rows = {"source": torch.from_numpy(np.ascontiguousarray(scene.source))}
    for kind, what in KINDS.items():
        clip = anchor_clip(scene, kind, scenes)
        if clip is not None and kind != "A0":
            rows[f"{kind} {what}"] = torch.from_numpy(clip)
    return film_strip(rows, frames, title=f'"{scene.instruction}"', cell=cell)


def changed_share(one: Clip, other: Clip) -> float:
    """Share of pixels that differ visibly (by `VISIBLE` levels in some channel), over all frames."""
    gap = np.abs(one.astype(np.int16) - other.astype(np.int16)).max(axis=1)
    return float((gap >= VISIBLE).mean())


def _leaking(scene: AnchorScene) -> Clip | None:
    """The true edit with half of an edited colour washed over all that should have stayed."""
    mask = np.broadcast_to(scene.mask, scene.truth.shape)
    if mask.all() or not mask.any():
        return None
    inside = scene.mask[:, 0]
    new, old = (clip.transpose(0, 2, 3, 1)[inside].mean(axis=0) for clip in (scene.truth, scene.source))
    leak = np.where(mask, scene.truth, _washed(scene.truth, new))
    if changed_share(leak, scene.truth) >= 0.5 * (1 - scene.mask.mean()):
        return leak
    # A removal leaves the background's own colour, which does not show: then the removed object's leaks, everywhere.
    instead = _washed(scene.truth, old)
    return max((leak, instead), key=lambda clip: changed_share(clip, scene.truth))


def _washed(clip: Clip, colour: NDArray[np.float64]) -> Clip:
    """The clip half in one colour (3,)."""
    return np.rint(0.5 * clip + 0.5 * colour[None, :, None, None]).astype(np.uint8)


def _out_of_order(clip: Clip, index: int) -> Clip:
    return clip[::-1] if index % 2 else clip[_scattered(len(clip), index)]


def _flickering(clip: Clip, seed: int) -> Clip:
    """Brightness that jumps from frame to frame: by turns towards white and towards black, by 20 to 40%."""
    amount = np.random.default_rng(seed).uniform(0.2, 0.4, len(clip))[:, None, None, None]
    goal = np.where(np.arange(len(clip)) % 2 == 0, 0.0, 255.0)[:, None, None, None]
    return np.rint((1 - amount) * clip + amount * goal).astype(np.uint8)


def _scattered(count: int, seed: int) -> NDArray[np.int64]:
    """An order of ``count`` >= 8 frames in which no frame is followed by one of its neighbours in time."""
    rng = np.random.default_rng(seed)
    while True:  # about one order in ten qualifies
        order = rng.permutation(count)
        if (np.abs(np.diff(order)) > 1).all():
            return order


def _blurred(clip: Clip) -> Clip:
    """Gaussian blur with a deviation of 1/32 of the shorter side, at least two pixels."""
    import cv2

    deviation = max(2.0, min(clip.shape[-2:]) / 32)
    frames = [cv2.GaussianBlur(frame.transpose(1, 2, 0), (0, 0), deviation) for frame in clip]
    return np.stack(frames).transpose(0, 3, 1, 2)


def _unrelated(scene: AnchorScene, others: Sequence[AnchorScene]) -> Clip | None:
    """The source of the first later scene (in a circle) that resembles neither this source nor its true edit."""
    found: list[tuple[float, Clip]] = []
    for step in range(1, len(others) + 1):
        other = others[(scene.index + step) % len(others)]
        if other.name == scene.name:
            continue
        clip = _fitted(other.source, scene.source.shape)
        gap = min(changed_share(clip, scene.source), changed_share(clip, scene.truth))
        if gap >= 0.5:
            return clip
        found.append((gap, clip))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _fitted(clip: Clip, shape: tuple[int, ...]) -> Clip:
    """A clip with the frames (its own, evenly taken) and the size of ``shape`` (T, 3, H, W)."""
    if clip.shape == shape:
        return clip
    import cv2

    times = np.linspace(0, len(clip) - 1, shape[0]).round().astype(int)
    size = (shape[3], shape[2])
    frames = [cv2.resize(clip[t].transpose(1, 2, 0), size, interpolation=cv2.INTER_AREA) for t in times]
    return np.stack(frames).transpose(0, 3, 1, 2)


_MAKERS: dict[str, Callable[[AnchorScene, Sequence[AnchorScene]], Clip | None]] = {
    "A0": lambda scene, others: scene.source,
    "A1": lambda scene, others: scene.truth,
    "A2": lambda scene, others: scene.wrong,
    "A3": lambda scene, others: _leaking(scene),
    "A4": lambda scene, others: _flickering(scene.truth, scene.index),
    "A5": lambda scene, others: _out_of_order(scene.truth, scene.index),
    "A6": lambda scene, others: np.repeat(scene.truth[:1], len(scene.truth), axis=0),
    "A7": lambda scene, others: _blurred(scene.truth),
    "A8": lambda scene, others: _unrelated(scene, others),
}
