"""Edits of scenes as tensors: propose one, apply it, tell whether it is a proper edit.

An edit holds everything that its instruction says and nothing else, so `apply_edit(source, edit)` shows that
the result follows from the source and the words alone. Proposals are cheap and may be improper (a recolouring
to the same colour, an addition on top of another object); `pairs` draws until one is proper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from . import draws
from . import vocabulary as v
from .scene import SceneBatch, velocity, well_formed

(RECOLOUR, RESHAPE, REMOVE, ADD, RESIZE, BACKGROUND_COLOUR, BACKGROUND_PATTERN, STYLE, COMPOUND) = range(9)
OBJECT_OPERATIONS = (RECOLOUR, RESHAPE, REMOVE, RESIZE)

# How an object is named: colour and shape, shape alone, colour alone, all three, or "it" (the object named
# just before).
BY_BOTH, BY_SHAPE, BY_COLOUR, BY_ALL, BY_IT = range(5)

# What an addition is placed by: a named place, an object that stands still, an object that moves and is
# followed.
AT_PLACE, BESIDE_STILL, BESIDE_MOVING = range(3)


@dataclass(frozen=True)
class Edit:
    """B simple edits; every field is (B,) int64, -1 where the operation does not use it.

    operation: position in OPERATIONS. slot: the object edited; of an addition, the reference object it stands
    beside. naming: how words name that object. shape, colour, size: the new values. place: position in
    PLACES; relation: in RELATIONS. background, first, second: new kind and colours, -1 for those that stay.
    style: position in STYLES.
    """

    operation: Tensor
    slot: Tensor
    naming: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    place: Tensor
    relation: Tensor
    background: Tensor
    first: Tensor
    second: Tensor
    style: Tensor

    def __len__(self) -> int:
        return self.operation.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Edit:
        return Edit(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device | str) -> Edit:
        return Edit(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    @staticmethod
    def cat(edits: Sequence[Edit]) -> Edit:
        return Edit(**{f.name: torch.cat([getattr(edit, f.name) for edit in edits]) for f in fields(Edit)})

    @staticmethod
    def of(operation: Tensor, **values: Tensor) -> Edit:
        """An edit with the given fields, -1 elsewhere."""
        nothing = torch.full_like(operation, -1)
        return Edit(operation, **{f.name: values.get(f.name, nothing) for f in fields(Edit) if f.name != "operation"})


def is_any(operation: Tensor, kinds: tuple[int, ...]) -> Tensor:
    """bool like `operation`: it is one of `kinds`."""
    found = torch.zeros_like(operation, dtype=torch.bool)
    for kind in kinds:
        found = found | (operation == kind)
    return found


def picked(values: Tensor, slot: Tensor) -> Tensor:
    """(B, ...) the entries of values (B, K, ...) in `slot` (B,); slot -1 reads slot 0."""
    return values[torch.arange(len(slot), device=slot.device), slot.clamp_min(0)]


def matches(scenes: SceneBatch, slot: Tensor, naming: Tensor) -> Tensor:
    """(B,) how many present objects the words for the object in `slot` fit (its own values, named by
    `naming`).
    """
    shape = scenes.shape == picked(scenes.shape, slot)[:, None]
    colour = scenes.colour == picked(scenes.colour, slot)[:, None]
    size = scenes.size == picked(scenes.size, slot)[:, None]
    shape = shape | (naming == BY_COLOUR)[:, None]
    colour = colour | (naming == BY_SHAPE)[:, None]
    size = size | (naming != BY_ALL)[:, None]
    return (scenes.present & shape & colour & size).sum(1)


def name_object(key: Tensor, scenes: SceneBatch, slot: Tensor) -> Tensor:
    """(B,) a way to name the object in `slot` that fits no other, now and then by shape or colour alone."""
    wish = draws.integers(key, "naming", 4)
    naming = torch.full_like(slot, BY_BOTH)
    for kind in (BY_SHAPE, BY_COLOUR):
        wanted = torch.full_like(slot, kind)
        naming = torch.where((wish == kind) & (matches(scenes, slot, wanted) == 1), wanted, naming)
    unique = (naming != BY_BOTH) | (matches(scenes, slot, naming) == 1)
    return torch.where(unique, naming, torch.full_like(slot, BY_ALL))


def _any_slot(key: Tensor, scenes: SceneBatch, allowed: Tensor) -> Tensor:
    """(B,) one of the `allowed` (B, K) slots, uniformly; slot 0 when there is none."""
    slots = torch.arange(allowed.shape[1], device=key.device)
    rank = draws.bits(draws.fork(key[:, None], slots), "slot") + allowed.long() * (1 << 25)
    return rank.argmax(1)


def propose(key: Tensor, scenes: SceneBatch, operation: Tensor, manner: Tensor, unseen: Tensor) -> Edit:
    """One edit of `operation` (B,) per scene, values drawn from `key` (B,).

    manner (B,): how an addition is placed (AT_PLACE, BESIDE_STILL, BESIDE_MOVING). unseen (B,) bool: new
    colour-shape pairs are those kept from training.
    """
    device = key.device
    is_add, is_pattern = operation == ADD, operation == BACKGROUND_PATTERN
    beside = is_add & (manner != AT_PLACE)
    moves = scenes.speed > 0
    allowed = scenes.present & (~beside[:, None] | (moves == (manner == BESIDE_MOVING)[:, None]))
    slot = _any_slot(key, scenes, allowed)
    naming = name_object(key, scenes, slot)

    shape = draws.integers(key, "new shape", len(v.SHAPES))
    colour = draws.integers(key, "new colour", len(v.COLOURS))
    kept_shape = torch.where(is_add, shape, picked(scenes.shape, slot))
    colour = torch.where(unseen, v.table(v.HELD_OUT_COLOUR, device)[kept_shape], colour)
    unseen_shape = v.table(v.HELD_OUT_SHAPE, device)[picked(scenes.colour, slot)]
    shape = torch.where(unseen & ~is_add, unseen_shape, shape)

    # A pattern keeps the colours that are there: plain names the one that stays, and a plain ground needs a
    # second one.
    kind = draws.integers(key, "new pattern", len(v.BACKGROUNDS))
    to_plain, from_plain = is_pattern & (kind == 0), is_pattern & (scenes.background == 0)
    kept = torch.where(draws.chance(key, "keep first", 0.5), scenes.first, scenes.second)
    is_paint = operation == BACKGROUND_COLOUR
    drawn_first = draws.integers(key, "new first", len(v.BACKGROUND_COLOURS))
    offset = 1 + draws.integers(key, "new second", len(v.BACKGROUND_COLOURS) - 1)
    base = torch.where(is_paint, drawn_first, scenes.first)
    drawn_second = (base + offset) % len(v.BACKGROUND_COLOURS)

    def when(condition: Tensor, value: Tensor) -> Tensor:
        return torch.where(condition, value, torch.full_like(value, -1))

    named = is_any(operation, OBJECT_OPERATIONS) | beside
    return Edit(
        operation=operation,
        slot=when(named, slot),
        naming=when(named, naming),
        shape=when((operation == RESHAPE) | is_add, shape),
        colour=when((operation == RECOLOUR) | is_add, colour),
        size=when((operation == RESIZE) | is_add, draws.integers(key, "new size", len(v.SIZES))),
        place=when(is_add & ~beside, draws.integers(key, "place", len(v.PLACES))),
        relation=when(beside, draws.integers(key, "relation", len(v.RELATIONS))),
        background=when(is_pattern, kind),
        first=torch.where(to_plain, kept, when(is_paint, drawn_first)),
        second=when((is_paint & (scenes.background > 0)) | (from_plain & ~to_plain), drawn_second),
        style=when(operation == STYLE, 1 + draws.integers(key, "new style", len(v.STYLES) - 1)),
    )


def apply_edit(scenes: SceneBatch, edit: Edit) -> SceneBatch:
    """The scenes (B) after one simple edit each."""
    slots = torch.arange(scenes.present.shape[1], device=scenes.device)
    is_add = edit.operation == ADD
    chosen = (slots == edit.slot[:, None]) & scenes.present & ~is_add[:, None]
    free = (slots == (~scenes.present).long().argmax(1)[:, None]) & ~scenes.present & is_add[:, None]
    touched = chosen | free

    def put(old: Tensor, new: Tensor, where: Tensor = touched) -> Tensor:
        return torch.where(where & (new >= 0)[:, None], new[:, None], old)

    removed = chosen & (edit.operation == REMOVE)[:, None]
    edited = replace(
        scenes,
        present=(scenes.present | free) & ~removed,
        shape=put(scenes.shape, edit.shape),
        colour=put(scenes.colour, edit.colour),
        size=put(scenes.size, edit.size),
        background=torch.where(edit.background >= 0, edit.background, scenes.background),
        first=torch.where(edit.first >= 0, edit.first, scenes.first),
        second=torch.where(edit.second >= 0, edit.second, scenes.second),
        style=torch.where(edit.style >= 0, edit.style, scenes.style),
        **_placement(scenes, edit, free),
    )
    # A round shape shows no orientation, so reshaping to or from one leaves orientation 0 and no spin.
    round_shape = v.table(v.ROUND, scenes.device)
    unturned = free | (round_shape[scenes.shape] & chosen)
    edited = replace(edited, angle=edited.angle.masked_fill(unturned, 0.0), spin=edited.spin.masked_fill(unturned, 0.0))
    return edited.canonical()


def _placement(scenes: SceneBatch, edit: Edit, free: Tensor) -> dict[str, Tensor]:
    """Motion fields with those of an added object in its `free` (B, K) slot: at its place, or beside its reference.

    Beside a moving reference the same path is shifted, walls included, so the two turn together.
    """
    device = scenes.device
    size = edit.size.clamp_min(0)
    bound = v.table(v.BOUNDS, device)[size]
    place = v.table(v.PLACE_CENTRES, device)[edit.place.clamp_min(0)]
    step = v.table(v.RELATION_STEPS, device)[edit.relation.clamp_min(0)]
    shift = step * (picked(scenes.bounds, edit.slot) + bound + v.GAP)[:, None]
    beside = (edit.relation >= 0)[:, None]
    low = bound[:, None].expand(-1, 2)
    new = {
        "start": torch.where(beside, picked(scenes.start, edit.slot) + shift, place),
        "low": torch.where(beside, picked(scenes.low, edit.slot) + shift, low),
        "high": torch.where(beside, picked(scenes.high, edit.slot) + shift, v.CANVAS - low),
    }
    result = {name: torch.where(free[..., None], value[:, None], getattr(scenes, name)) for name, value in new.items()}
    for name in ("direction", "speed"):
        value = torch.where(beside[:, 0], picked(getattr(scenes, name), edit.slot), 0)
        result[name] = torch.where(free, value[:, None], getattr(scenes, name))
    return result


def proper(scenes: SceneBatch, edit: Edit) -> Tensor:
    """(B,) bool: the edit is possible here, its words fit one object only, and it changes something to see."""
    op = edit.operation
    named = edit.slot >= 0
    there = picked(scenes.present, edit.slot)
    # "it" was checked when the object was first named.
    fits = there & ((edit.naming == BY_IT) | (matches(scenes, edit.slot, edit.naming) == 1))
    fine = ~named | fits
    fine &= (op != RECOLOUR) | (picked(scenes.colour, edit.slot) != edit.colour)
    fine &= (op != RESHAPE) | ((picked(scenes.shape, edit.slot) != edit.shape) & _angle_shows(scenes, edit.slot))
    fine &= (op != RESIZE) | (picked(scenes.size, edit.slot) != edit.size)
    fine &= (op != ADD) | ~scenes.present.all(1)
    fine &= (op != BACKGROUND_PATTERN) | (scenes.background != edit.background)
    new_first = (edit.first != scenes.first) & (edit.first != scenes.second)
    fine &= (op != BACKGROUND_COLOUR) | (new_first & (edit.second != scenes.second))
    fine &= (op != STYLE) | (scenes.style != edit.style)
    return fine & well_formed(apply_edit(scenes, edit))


def _angle_shows(scenes: SceneBatch, slot: Tensor) -> Tensor:
    """(B,) bool: any single frame tells the angle of the object in `slot`, which a reshaping carries over."""
    half = v.table(v.SYMMETRY, scenes.device)[picked(scenes.shape, slot)] / 2
    return picked(scenes.angles().abs().amax(-1), slot) < half


def follows(scenes: SceneBatch, edit: Edit) -> Tensor:
    """(B,) bool: an addition that moves because the object beside it moves."""
    moving = (velocity(scenes.direction, scenes.speed) != 0).any(-1)
    return (edit.relation >= 0) & picked(moving, edit.slot)


def edits_from_facts(steps: list[dict[str, Any]]) -> Edit:
    """The edits that steps of `instructions.parse_instruction` ask for, their objects still to be found (slot
    -1).
    """
    rows = []
    for step in steps:
        new = step["new"]
        rows.append(
            [
                v.OPERATIONS.index(step["operation"]),
                -1,
                -1,
                *(
                    names.index(new[field]) if new.get(field) is not None else -1
                    for field, names in (
                        ("shape", v.SHAPES),
                        ("colour", v.COLOURS),
                        ("size", v.SIZES),
                        ("place", v.PLACES),
                        ("relation", v.RELATIONS),
                        ("background", v.BACKGROUNDS),
                        ("first", v.BACKGROUND_COLOURS),
                        ("second", v.BACKGROUND_COLOURS),
                        ("style", v.STYLES),
                    )
                ),
            ]
        )
    columns = torch.tensor(rows, dtype=torch.long).reshape(-1, len(fields(Edit))).unbind(1)
    return Edit(*columns)
