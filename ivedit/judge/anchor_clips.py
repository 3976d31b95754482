"""Clips whose faults are known: from one true edit, the nine clips A0 to A8 by which a judge proves itself.

Every fault is made from a source, its true edit and the mask of what the edit may touch, as a pure function of them:
a judge that cannot tell the outcome from the true edit is not measuring what it is asked for. Scenes come from the
sprite world or from a user's own clips with masks. Clips are uint8 arrays (T, 3, H, W), masks bool (T, 1, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ivedit.errors import ConfigError, IveditError

__all__ = ["KINDS", "AnchorScene", "MaskedClip", "anchor_clips", "masked_scenes", "sprite_scenes"]

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

SEED = 20260401
"""Of the sprite scenes: not that of the evaluation sets, so that no clip is both a judge's proof and its task."""

VISIBLE = 24
"""Levels (of 255) by which some channel of a pixel must differ to count as changed to the eye."""

LEAST_CHANGE = 0.01
"""Share of pixels, averaged over frames, that a fault must change visibly; a clip where it does not is left out."""

LEAST_FRAMES = 8

_OPERATIONS = ("recolour", "reshape", "remove")
_SWAPPED = {"red": "blue", "blue": "red", "yellow": "cyan", "cyan": "yellow", "purple": "pink", "pink": "purple"}
"""Colours that a judge whose red and blue are exchanged takes for each other: the wrong edit shows the partner, so
such a judge prefers it to the true one."""


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


@dataclass(frozen=True)
class MaskedClip:
    """A user's clip: source (T, 3, H, W) uint8 and mask (T, 1, H, W), with either a true edit and its instruction, or
    the name of what the mask covers ("the car"), which is then recoloured.
    """

    name: str
    source: Clip
    mask: Mask
    truth: Clip | None = None
    instruction: str | None = None
    object: str | None = None


def anchor_clips(scene: AnchorScene, others: Sequence[AnchorScene]) -> dict[str, Clip]:
    """The clips of ``scene`` by kind, A0 to A8, without those whose fault would not show in it.

    A fault does not show, for instance, as frozen frames where nothing moves, or as a leak where the edit covers the
    whole picture. ``others``: scenes to take the unrelated clip from.
    """
    made: dict[str, Clip | None] = {
        "A0": scene.source,
        "A1": scene.truth,
        "A2": scene.wrong,
        "A3": _leaking(scene),
        "A4": _flickering(scene.truth, scene.index),
        "A5": scene.truth[::-1] if scene.index % 2 else scene.truth[_scattered(len(scene.truth), scene.index)],
        "A6": np.repeat(scene.truth[:1], len(scene.truth), axis=0),
        "A7": _blurred(scene.truth),
        "A8": _unrelated(scene, others),
    }
    return {
        kind: np.ascontiguousarray(clip)
        for kind, clip in made.items()
        if clip is not None and (kind == "A1" or changed_share(clip, scene.truth) >= LEAST_CHANGE)
    }


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
    washed = [_washed(scene.truth, colour) for colour in (new, old)]
    washed[0] = np.where(mask, scene.truth, washed[0])
    # A removal leaves the background's own colour, which would not show: then the removed object's leaks, everywhere.
    return max(washed, key=lambda clip: changed_share(np.where(mask, scene.truth, clip), scene.truth))


def _washed(clip: Clip, colour: NDArray[np.float64]) -> Clip:
    """The clip half in one colour (3,)."""
    return np.rint(0.5 * clip + 0.5 * colour[None, :, None, None]).astype(np.uint8)


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


def sprite_scenes(count: int = 44, *, frames: int = 17, size: int = 64, split: str = "test") -> list[AnchorScene]:
    """Sprite scenes of two objects, all moving and none bouncing, of which one is recoloured, reshaped or removed.

    Args:
        count: Scenes; the same first ones whatever the count.
        frames: Frames of a clip, at least 8.
        size: Height and width in pixels; take that of the clips that are to be judged.
        split: As in `ivedit.sprites`.

    Raises:
        ConfigError: fewer than 8 frames, or more than a sprite clip has.
    """
    from ivedit.sprites import FRAMES

    if not LEAST_FRAMES <= frames <= FRAMES:
        raise ConfigError(f"anchors of sprites need {LEAST_FRAMES} to {FRAMES} frames, not {frames}: set it in between")
    found: list[AnchorScene] = []
    start, piece = 0, 256
    while len(found) < count:
        found += _sprite_piece(start, piece, frames, size, split)
        start += piece
    return [replace(scene, index=i, name=f"sprites-{i:04d}") for i, scene in enumerate(found[:count])]


def _sprite_piece(start: int, piece: int, frames: int, size: int, split: str) -> list[AnchorScene]:
    """The suitable scenes among the pairs ``start`` to ``start + piece``."""
    import torch

    from ivedit.sprites import render, sample_pairs
    from ivedit.sprites import vocabulary as v

    pairs = sample_pairs(SEED, torch.arange(start, start + piece), split, _OPERATIONS, balanced=True)
    source, target = pairs.source, pairs.target
    rows = torch.arange(piece)
    slot = pairs.object.clamp(0, 1)  # of two objects, in slots 0 and 1
    other = 1 - slot
    fine = source.present[:, 0] & source.present[:, 1] & ~source.present[:, 2]
    fine &= ((source.speed > 0) | ~source.present).all(1) & ~source.bounces.any(1)
    recolour, reshape, remove = (pairs.operation == v.OPERATIONS.index(name) for name in _OPERATIONS)
    new_colour, new_shape = target.colour[rows, slot], target.shape[rows, slot]
    partner = torch.tensor([v.COLOURS.index(_SWAPPED.get(name, name)) for name in v.COLOURS])
    # Of two recolourings one gives the partner's colour, and one gives the right colour to the other object.
    on_other = (rows // len(_OPERATIONS)) % 2 == 1
    fine &= ~recolour | ((partner[new_colour] != new_colour) & (partner[new_colour] != source.colour[rows, slot]))
    fine &= ~recolour | (source.colour[rows, other] != new_colour)
    fine &= ~reshape | (source.shape[rows, other] != new_shape)

    colour, shape, present = source.colour.clone(), source.shape.clone(), source.present.clone()
    hit = recolour & ~on_other
    colour[rows[hit], slot[hit]] = partner[new_colour[hit]]
    hit = recolour & on_other
    colour[rows[hit], other[hit]] = new_colour[hit]
    shape[rows[reshape], other[reshape]] = new_shape[reshape]
    present[rows[remove], other[remove]] = False
    wrong = replace(source, colour=colour, shape=shape, present=present).canonical()

    keep = fine.nonzero().flatten()
    times = torch.arange(frames)
    levels = [
        (render(scenes[keep], times, size) * 255).round().to(torch.uint8).numpy() for scenes in (source, target, wrong)
    ]
    scenes = [
        AnchorScene("", a, b, c, (a != b).any(axis=1, keepdims=True), pairs.instruction[row])
        for row, a, b, c in zip(keep.tolist(), *levels, strict=True)
    ]
    return [scene for scene in scenes if changed_share(scene.source, scene.truth) >= LEAST_CHANGE]


def masked_scenes(clips: Sequence[MaskedClip]) -> tuple[list[AnchorScene], list[str]]:
    """Scenes of a user's clips, and one plain line for every clip that cannot serve, with the reason.

    A clip with a true edit keeps it; one with only the name of what its mask covers is recoloured there, with shading
    kept: "make the car red". The wrong edit is by turns in exchanged red and blue, and beside the object.

    Raises:
        IveditError: not one clip can serve.
    """
    scenes: list[AnchorScene] = []
    reasons: list[str] = []
    for clip in clips:
        try:
            scenes.append(_masked_scene(clip, len(scenes)))
        except _Unfit as reason:
            reasons.append(f"{clip.name}: {reason}")
    if not scenes:
        raise IveditError("no clip can serve as an anchor: " + "; ".join(reasons or ["no clips were given"]))
    return scenes, reasons


class _Unfit(Exception):
    """Why a clip is left out."""


def _masked_scene(clip: MaskedClip, index: int) -> AnchorScene:
    source, mask = clip.source, clip.mask.astype(bool)
    if source.dtype != np.uint8 or source.ndim != 4 or source.shape[1] != 3:
        raise _Unfit(f"its source must be uint8 (T, 3, H, W), not {source.dtype} {source.shape}")
    if mask.shape != (len(source), 1, *source.shape[2:]):
        raise _Unfit(f"its mask {mask.shape} does not fit its source {source.shape}")
    if len(source) < LEAST_FRAMES:
        raise _Unfit(f"it has {len(source)} frames, and anchors need at least {LEAST_FRAMES}")
    if not LEAST_CHANGE <= mask.mean() <= 0.9:
        raise _Unfit(f"its mask covers {mask.mean():.1%} of the picture; 1% to 90% are needed")
    if clip.truth is not None:
        if clip.truth.shape != source.shape or clip.truth.dtype != np.uint8:
            raise _Unfit(f"its true edit {clip.truth.dtype} {clip.truth.shape} does not fit its source {source.shape}")
        if not clip.instruction:
            raise _Unfit("it has a true edit without an instruction")
        truth, instruction = clip.truth, clip.instruction
    elif clip.object:
        truth, colour = _recoloured(source, mask, index)
        instruction = f"make {clip.object} {colour}"
    else:
        raise _Unfit("it has neither a true edit nor the name of what its mask covers (`object`)")
    if changed_share(truth, source) < LEAST_CHANGE:
        raise _Unfit("its true edit hardly differs from its source")
    makers = [_exchanged, _beside] if index % 2 == 0 else [_beside, _exchanged]
    for make in makers:
        wrong = make(source, truth, mask)
        if min(changed_share(wrong, truth), changed_share(wrong, source)) >= LEAST_CHANGE:
            return AnchorScene(clip.name, source, truth, wrong, mask, instruction, index)
    raise _Unfit("no wrong edit of it would show")


def _exchanged(source: Clip, truth: Clip, mask: Mask) -> Clip:
    """The true edit in other colours: red and blue exchanged where the mask is."""
    return np.where(mask, truth[:, ::-1], truth)


def _beside(source: Clip, truth: Clip, mask: Mask) -> Clip:
    """The change moved by half the picture, away from the object that was asked for."""
    half = source.shape[-1] // 2
    change = np.roll(np.where(mask, truth.astype(np.int16) - source, 0), half, axis=-1)
    return np.clip(source + change, 0, 255).astype(np.uint8)


def _recoloured(source: Clip, mask: Mask, index: int) -> tuple[Clip, str]:
    """The masked region in a named colour with its shading kept; of the colours in turn, the first that shows."""
    from ivedit.sprites import vocabulary as v

    luma = np.tensordot(np.array([0.299, 0.587, 0.114]), source / 255.0, axes=(0, 1))[:, None]
    shade = np.clip(luma / max(float(luma[mask].mean()), 1e-3), 0.3, 1.6)
    names = list(_SWAPPED)
    for step in range(len(names)):
        name = names[(index + step) % len(names)]
        tint = np.array(v.COLOUR_RGB[v.COLOURS.index(name)])[None, :, None, None] * shade
        painted = np.where(mask, np.rint(np.clip(tint, 0, 1) * 255), source).astype(np.uint8)
        if changed_share(painted, source) >= 0.5 * mask.mean():
            return painted, name
    raise _Unfit("no colour shows on it")

