"""Scenes as batches of tensors, their exact motion, and sampling them by (seed, index).

A scene is up to three objects that never touch over a background. Positions and velocities are multiples of
1/32 pixel, so paths and the tests on them are exact in float32, hence equal on every device. Layouts are
proposed many at a time and the first without overlap at any frame is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from . import draws
from . import vocabulary as v

_GRID = 32.0
_STILL_SHARE = 0.25
_FREE_SHARE = 0.75  # of moving objects, those that start where they reach no wall within the clip
_LEAD = 6.0  # frames at least before any bounce
_TRIES = 16  # places tried for each object beside those that stand already
# Layouts built per scene until one works: the first keep the sizes and motions drawn at first, the next the
# motions, the last nothing. Else crowded scenes would mostly hold small objects standing still. What fits in
# none gets the safe layout.
_LAYOUTS = (("size", "motion"),) * 3 + (("motion",),) * 8 + ((),) * 4


@dataclass(frozen=True)
class SceneBatch:
    """B scenes of K object slots; an empty slot holds the canonical values of `empty`.

    present: (B, K) bool. shape, colour, size, direction, speed: (B, K) int64, positions in the tuples of
    `vocabulary` (speed 0 stands still and then direction is 0). start, low, high: (B, K, 2) float32, centre
    at frame 0 and the walls between which the centre bounces, pixels (x, y). angle: (B, K) degrees at frame
    0; spin: (B, K) degrees per frame. background, first, second: (B,) int64, kind and colours (for plain,
    second equals first). style: (B,) int64.
    """

    present: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    direction: Tensor
    speed: Tensor
    start: Tensor
    low: Tensor
    high: Tensor
    angle: Tensor
    spin: Tensor
    background: Tensor
    first: Tensor
    second: Tensor
    style: Tensor

    def __len__(self) -> int:
        return self.present.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> SceneBatch:
        return SceneBatch(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device | str) -> SceneBatch:
        return SceneBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    @property
    def device(self) -> torch.device:
        return self.present.device

    @property
    def bounds(self) -> Tensor:
        """(B, K) radius in pixels of the circle that holds each object at any angle."""
        return v.table(v.BOUNDS, self.device)[self.size]

    @property
    def bounces(self) -> Tensor:
        """(B, K) bool: the object turns at a wall before the last frame."""
        end = self.start + (v.FRAMES - 1) * velocity(self.direction, self.speed)
        return self.present & ((end < self.low) | (end > self.high)).any(-1)

    def centres(self, frames: Tensor | None = None) -> Tensor:
        """(B, K, T, 2) centres in pixels at `frames`: (T,) or (B, T) int64, all frames when None."""
        times = _times(frames, self.device)
        return paths(self.start, velocity(self.direction, self.speed), self.low, self.high, times)

    def angles(self, frames: Tensor | None = None) -> Tensor:
        """(B, K, T) degrees, clockwise on the screen."""
        times = _times(frames, self.device)
        times = times[:, None] if times.ndim == 2 else times
        return self.angle[..., None] + self.spin[..., None] * times

    @staticmethod
    def cat(batches: Sequence[SceneBatch]) -> SceneBatch:
        return SceneBatch(**{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(SceneBatch)})

    def canonical(self) -> SceneBatch:
        """The same scenes, each in one form: what does not show (in empty slots, for instance) has agreed
        values.
        """
        empty = ~self.present
        still = empty | (self.speed == 0)
        unturned = empty | v.table(v.ROUND, self.device)[self.shape]
        return replace(
            self,
            shape=self.shape.masked_fill(empty, 0),
            colour=self.colour.masked_fill(empty, 0),
            size=self.size.masked_fill(empty, 0),
            direction=self.direction.masked_fill(still, 0),
            speed=self.speed.masked_fill(still, 0),
            start=self.start.masked_fill(empty[..., None], v.CANVAS / 2),
            low=self.low.masked_fill(empty[..., None], 0.0),
            high=self.high.masked_fill(empty[..., None], v.CANVAS),
            angle=self.angle.masked_fill(unturned, 0.0),
            spin=self.spin.masked_fill(unturned, 0.0),
            second=torch.where(self.background == 0, self.first, self.second),
        )


def _times(frames: Tensor | None, device: torch.device) -> Tensor:
    if frames is None:
        return torch.arange(v.FRAMES, device=device, dtype=torch.float32)
    return frames.to(device=device, dtype=torch.float32)


def velocity(direction: Tensor, speed: Tensor) -> Tensor:
    """(..., 2) pixels per frame of objects with these directions and speeds."""
    heading = v.table(v.HEADINGS, direction.device)[direction]
    straight = v.table(v.STRAIGHT, direction.device)[speed]
    diagonal = v.table(v.DIAGONAL, direction.device)[speed]
    return heading * torch.where(direction % 2 == 1, diagonal, straight)[..., None]


def paths(start: Tensor, step: Tensor, low: Tensor, high: Tensor, times: Tensor) -> Tensor:
    """Centres (..., K, T, 2) of objects (..., K, 2) that move by `step` a frame and are reflected at `low` and `high`.

    times: (T,), or (B, T) for objects (B, K, 2).
    """
    times = times[:, None, :, None] if times.ndim == 2 else times[:, None]
    span = (high - low)[..., None, :]
    travelled = torch.remainder((start - low)[..., None, :] + step[..., None, :] * times, 2 * span)
    return low[..., None, :] + torch.minimum(travelled, 2 * span - travelled)


def clear(centres: Tensor, bounds: Tensor, present: Tensor) -> Tensor:
    """(...) bool: present objects stay inside the frame and apart at every frame.

    centres: (..., K, T, 2); bounds, present: (..., K).
    """
    inside = (centres.amin((-2, -1)) >= bounds) & (centres.amax((-2, -1)) <= v.CANVAS - bounds)
    fine = (inside | ~present).all(-1)
    for one in range(present.shape[-1]):
        for other in range(one):
            gap = (centres[..., one, :, :] - centres[..., other, :, :]).square().sum(-1).amin(-1)
            apart = gap >= (bounds[..., one] + bounds[..., other]).square()
            fine = fine & (apart | ~present[..., one] | ~present[..., other])
    return fine


def distinct(shape: Tensor, colour: Tensor, size: Tensor, present: Tensor) -> Tensor:
    """(...) bool: no two present objects share shape, colour and size, so that words can tell all apart."""
    code = (shape * len(v.COLOURS) + colour) * len(v.SIZES) + size
    fine = torch.ones_like(present[..., 0])
    for one in range(present.shape[-1]):
        for other in range(one):
            fine &= (code[..., one] != code[..., other]) | ~present[..., one] | ~present[..., other]
    return fine


def well_formed(scenes: SceneBatch) -> Tensor:
    """(B,) bool: what holds for every sampled scene and every edited one: inside, apart and distinct."""
    return clear(scenes.centres(), scenes.bounds, scenes.present) & distinct(
        scenes.shape, scenes.colour, scenes.size, scenes.present
    )


def held_out(scenes: SceneBatch) -> Tensor:
    """(B, K) bool: present objects whose colour-shape pair is kept from training."""
    return scenes.present & (v.table(v.HELD_OUT_COLOUR, scenes.device)[scenes.shape] == scenes.colour)


def sample_scenes(seed: int, index: Tensor, split: str = "train") -> SceneBatch:
    """The scenes `index` (B,) int64 of `split` under `seed`, on the device of `index`; splits are disjoint
    streams.
    """
    v.check_split(split)
    index = index.long()
    unseen = torch.full_like(index, split == "test_combination", dtype=torch.bool)
    return scenes_from_keys(draws.stream(seed, index, f"scene/{split}"), split, styled=True, unseen=unseen)


def scenes_from_keys(key: Tensor, split: str, styled: bool, unseen: Tensor, count: Tensor | None = None) -> SceneBatch:
    """Scenes from keys (B,).

    Without `styled` all are plain drawings. unseen (B,) bool: the first object's colour-shape pair is one
    kept from training (all others are trained ones, except in the split pretrain). count (B,) int64: how many
    objects, -1 for any number of the split.
    """
    device, batch = key.device, key.shape[0]
    slots = torch.arange(v.MAX_OBJECTS, device=device)
    objects = draws.fork(key[:, None], slots)
    number = _numbers(key, split)
    if count is not None:
        number = torch.where(count >= 0, count, number)
    present = slots < number[:, None]
    shape = draws.integers(objects, "shape", len(v.SHAPES))
    kept_back = v.table(v.HELD_OUT_COLOUR, device)[shape]
    if split == "pretrain":
        colour = draws.integers(objects, "colour", len(v.COLOURS))
    else:  # one of the seven trained colours of the shape
        colour = (kept_back + 1 + draws.integers(objects, "colour", len(v.COLOURS) - 1)) % len(v.COLOURS)
    colour = torch.where((slots == 0) & unseen[:, None], kept_back, colour)
    spinning = draws.chance(objects, "spinning", 0.3)
    clockwise = draws.chance(objects, "clockwise", 0.5)
    tilted = draws.chance(objects, "tilted", 0.5)
    tilt = (draws.integers(objects, "tilt", 5) - 2).to(torch.float32) * 10.0
    background = draws.integers(key, "background", len(v.BACKGROUNDS))
    first = draws.integers(key, "first", len(v.BACKGROUND_COLOURS))
    other = draws.integers(key, "second", len(v.BACKGROUND_COLOURS) - 1)
    style = torch.zeros_like(number)
    if styled and split == "pretrain":
        chosen = 1 + draws.integers(key, "style", len(v.STYLES) - 1)
        style = torch.where(draws.chance(key, "styled", 0.12), chosen, style)
    size, direction, speed, start = _layouts(key, shape, colour, present)
    bounds = v.table(v.BOUNDS, device)[size][..., None].expand(batch, v.MAX_OBJECTS, 2)
    return SceneBatch(
        present=present,
        shape=shape,
        colour=colour,
        size=size,
        direction=direction,
        speed=speed,
        start=start,
        low=bounds,
        high=v.CANVAS - bounds,
        angle=torch.where(tilted, tilt, torch.zeros_like(tilt)),
        spin=torch.where(clockwise, v.SPIN, -v.SPIN) * spinning,
        background=background,
        first=first,
        second=(first + 1 + other) % len(v.BACKGROUND_COLOURS),
        style=style,
    ).canonical()


def _numbers(key: Tensor, split: str) -> Tensor:
    """(B,) how many objects: 3 for test_three, 1 to 3 for pretrain, else 1 or 2.

    Pretraining also shows a few empty scenes, because removing the only object leaves one.
    """
    if split == "test_three":
        return torch.full_like(key, 3)
    if split == "pretrain":
        return (1 + draws.integers(key, "number", 3)).masked_fill(draws.chance(key, "empty", 0.03), 0)
    return 1 + draws.integers(key, "number", 2)


def _layouts(key: Tensor, shape: Tensor, colour: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Size, direction, speed (B, K), start (B, K, 2): the first layout that is clear and distinct, else the
    safe one.
    """
    result = _safe_layout(key)
    todo = torch.arange(key.shape[0], device=key.device)
    for number, kept in enumerate(_LAYOUTS):
        if todo.numel() == 0:
            break
        whole = key[todo]
        own = draws.fork(whole, 1000 + number)  # clear of the counters of the objects
        size_key, motion_key = (whole if name in kept else own for name in ("size", "motion"))
        *layout, fine = _build(own, size_key, motion_key, present[todo])
        fine = fine & distinct(shape[todo], colour[todo], layout[0], present[todo])
        for values, new in zip(result, layout, strict=True):
            values[todo[fine]] = new[fine]
        todo = todo[~fine]
    return result


def _build(
    key: Tensor, size_key: Tensor, motion_key: Tensor, present: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Objects placed one after another, each at the first of several places that is clear of those before it.

    Keys (B,) of the places, the sizes and the motions -> size, direction, speed (B, K), start (B, K, 2), and
    (B,) bool: all present objects found a place.
    """
    device, slots = key.device, torch.arange(v.MAX_OBJECTS, device=key.device)
    objects, motions = draws.fork(key[:, None], slots), draws.fork(motion_key[:, None], slots)
    size = draws.integers(draws.fork(size_key[:, None], slots), "size", len(v.SIZES))
    moving = ~draws.chance(motions, "still", _STILL_SHARE)
    speed = (1 + draws.integers(motions, "speed", 2)) * moving
    direction = draws.integers(motions, "direction", 8) * moving
    step = velocity(direction, speed)
    bounds = v.table(v.BOUNDS, device)[size]
    walls = bounds[..., None].expand(-1, -1, 2)
    # Starting this far from the wall ahead, an object does not reach it before the last frame; those that bounce
    # first show the direction that their captions name.
    free = draws.chance(motions, "free", _FREE_SHARE)
    travel = step * torch.where(free, float(v.FRAMES - 1), _LEAD)[..., None]
    low, high = walls + (-travel).clamp_min(0), v.CANVAS - walls - travel.clamp_min(0)
    tries = draws.fork(objects[..., None], torch.arange(_TRIES, device=device))
    place = torch.stack((draws.uniform(tries, "x"), draws.uniform(tries, "y")), -1)  # (B, K, tries, 2)
    places = torch.round((low[:, :, None] + (high - low)[:, :, None] * place) * _GRID) / _GRID
    times = torch.arange(v.FRAMES, device=device, dtype=torch.float32)
    rows = torch.arange(key.shape[0], device=device)
    fine = torch.ones_like(present[:, 0])
    starts: list[Tensor] = []
    centres: list[Tensor] = []
    for slot in range(v.MAX_OBJECTS):
        wall = walls[:, slot, None].expand(places[:, slot].shape)
        ways = paths(places[:, slot], step[:, slot, None].expand(wall.shape), wall, v.CANVAS - wall, times)
        fits = torch.ones_like(ways[..., 0, 0], dtype=torch.bool)
        for other, centre in enumerate(centres):
            gap = (ways - centre[:, None]).square().sum(-1).amin(-1)
            fits &= (gap >= (bounds[:, slot] + bounds[:, other]).square()[:, None]) | ~present[:, other, None]
        chosen = fits.long().argmax(1)
        fine = fine & (fits.any(1) | ~present[:, slot])
        starts.append(places[rows, slot, chosen])
        centres.append(ways[rows, chosen])
    return size, direction, speed, torch.stack(starts, 1), fine


def _safe_layout(key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Objects of three different sizes standing still in three of the four quarters of the frame, in a drawn
    order.
    """
    slots = torch.arange(v.MAX_OBJECTS, device=key.device).expand(key.shape[0], -1)
    quarter = (slots + draws.integers(key, "quarter", 4)[:, None]) % 4
    start = torch.stack((16.0 + 32.0 * (quarter % 2), 16.0 + 32.0 * (quarter // 2)), -1)
    size = (slots + draws.integers(key, "sizes", 3)[:, None]) % len(v.SIZES)
    return size, torch.zeros_like(size), torch.zeros_like(size), start


def facts(scenes: SceneBatch) -> dict[str, Tensor]:
    """What an evaluation can check.

    (B, K): present, shape, colour, size, motion (0 to 7 as in DIRECTIONS, the direction at the start; 8
    still), speed, spin (as in SPINS), bounces, place (3 x 3 cell of the first frame, as in PLACES); (B,):
    background, first, second, style, number.
    """
    cell = (scenes.start / (v.CANVAS / 3)).long().clamp(0, 2)
    return {
        "present": scenes.present,
        "shape": scenes.shape,
        "colour": scenes.colour,
        "size": scenes.size,
        "motion": direction_labels(scenes),
        "speed": scenes.speed,
        "spin": (scenes.spin > 0).long() + 2 * (scenes.spin < 0).long(),
        "bounces": scenes.bounces,
        "place": cell[..., 1] * 3 + cell[..., 0],
        "background": scenes.background,
        "first": scenes.first,
        "second": scenes.second,
        "style": scenes.style,
        "number": scenes.present.sum(1),
    }


def direction_labels(scenes: SceneBatch) -> Tensor:
    """(B, K) int64: 0 to 7 as in DIRECTIONS for objects that move, 8 for still ones and empty slots."""
    return torch.where(scenes.speed > 0, scenes.direction, torch.full_like(scenes.direction, 8))
