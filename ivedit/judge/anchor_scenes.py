"""Where anchors come from: scenes of the sprite world, or a user's own clips with masks, each with its true edit.

Clips are uint8 arrays (T, 3, H, W), masks bool (T, 1, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from ivedit.errors import ConfigError, IveditError
from ivedit.judge.anchor_clips import LEAST_CHANGE, AnchorScene, Clip, Mask, changed_share

__all__ = ["MaskedClip", "MaskedScenes", "sprite_scenes"]

SEED = 20260401
"""Of the sprite scenes: not that of the evaluation sets, so that no clip is both a judge's proof and its task."""

LEAST_FRAMES = 8

_OPERATIONS = ("recolour", "reshape", "remove")
_SWAPPED = {"red": "blue", "blue": "red", "yellow": "cyan", "cyan": "yellow", "purple": "pink", "pink": "purple"}
"""Colours that a judge whose red and blue are exchanged takes for each other: the wrong edit shows the partner, so
such a judge prefers it to the true one."""


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
    return [scene for scene in scenes if _all_differ(scene)]


def _all_differ(scene: AnchorScene) -> bool:
    """Source, true edit and wrong edit are told apart by eye."""
    pairs = ((scene.source, scene.truth), (scene.source, scene.wrong), (scene.truth, scene.wrong))
    return all(changed_share(one, other) >= LEAST_CHANGE for one, other in pairs)


class MaskedScenes(Sequence[AnchorScene]):
    """Scenes of a user's clips, made anew from them whenever one is asked for, so that they need not fit in memory.

    A clip with a true edit keeps it; one with only the name of what its mask covers is recoloured there, with shading
    kept: "make the car red". The wrong edit is by turns in exchanged red and blue, and beside the object.

    Args:
        clips: May read a clip's files only when it is asked for. Each is read once here, to see whether it can serve.

    Attributes:
        reasons: One plain line for every clip that cannot serve.

    Raises:
        IveditError: not one clip can serve.
    """

    def __init__(self, clips: Sequence[MaskedClip]) -> None:
        self._clips = clips
        self._kept: list[int] = []
        self.reasons: list[str] = []
        for number in range(len(clips)):
            clip = clips[number]
            try:
                _masked_scene(clip, len(self._kept))
            except _Unfit as reason:
                self.reasons.append(f"{clip.name}: {reason}")
            else:
                self._kept.append(number)
        if not self._kept:
            raise IveditError("no clip can serve as an anchor: " + "; ".join(self.reasons or ["no clips were given"]))

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> AnchorScene: ...

    @overload
    def __getitem__(self, index: slice) -> list[AnchorScene]: ...

    def __getitem__(self, index: int | slice) -> AnchorScene | list[AnchorScene]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self._kept))[index]  # IndexError ends an iteration
        return _masked_scene(self._clips[self._kept[place]], place)


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
        scene = AnchorScene(clip.name, source, truth, make(source, truth, mask), mask, instruction, index)
        if _all_differ(scene):
            return scene
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

