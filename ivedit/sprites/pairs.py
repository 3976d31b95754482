"""Edit pairs by (seed, index): a source scene, an instruction, the target scene, captions and the region that changes.

What a pair is to show (the operation, the steps of a compound, how an addition is placed) is drawn from
(seed, index) alone; then scenes and edits are drawn, attempt by attempt, until an edit of that very kind is
proper. So operations that suit few scenes are as frequent as the others, and every pair is the same whatever
batch it is drawn in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from . import draws, edits
from . import vocabulary as v
from .edits import ADD, BACKGROUND_COLOUR, BACKGROUND_PATTERN, COMPOUND, RECOLOUR, REMOVE, RESHAPE, RESIZE, STYLE, Edit
from .instructions import instructions
from .language import captions
from .render import render
from .scene import SceneBatch, held_out, scenes_from_keys, well_formed

# Ordered pairs of simple operations. Two edits of one background could undo each other, so they are left out; a style
# comes last, because what "yellow" means in a scene of inverted colours is anybody's guess; a removal makes room for an
# addition, so it comes before.
_STEPS = tuple(
    (one, two)
    for one in range(COMPOUND)
    for two in range(COMPOUND)
    if one not in (two, STYLE) and {one, two} != {BACKGROUND_COLOUR, BACKGROUND_PATTERN} and (one, two) != (ADD, REMOVE)
)
_ATTEMPTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class PairBatch:
    """B edit pairs.

    source, target: scenes. operation, primary, secondary: (B,) int64 positions in OPERATIONS: the operation
    asked for and its steps (primary equals operation and secondary is -1 except for compounds). object,
    secondary_object: (B,) slots of the objects edited or added by the steps, -1 for edits of the whole scene.
    needs_motion: (B,) bool, an added object moves with another, which one frame cannot show. instruction,
    source_caption, target_caption: B strings.
    """

    source: SceneBatch
    target: SceneBatch
    operation: Tensor
    primary: Tensor
    secondary: Tensor
    object: Tensor
    secondary_object: Tensor
    needs_motion: Tensor
    instruction: list[str]
    source_caption: list[str]
    target_caption: list[str]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: slice | Tensor) -> PairBatch:
        chosen = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        return self._each(lambda x: [x[row] for row in chosen] if isinstance(x, list) else x[rows])

    def to(self, device: torch.device | str) -> PairBatch:
        return self._each(lambda x: x if isinstance(x, list) else x.to(device))

    def _each(self, change: Callable[[Any], Any]) -> PairBatch:
        return PairBatch(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class _Wish:
    """What pairs (B,) are to show, before any scene is drawn."""

    operation: Tensor
    primary: Tensor
    secondary: Tensor
    manner: Tensor
    unseen: Tensor
    number: Tensor

    def __getitem__(self, rows: Tensor) -> _Wish:
        return _Wish(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def _wishes(key: Tensor, operation: Tensor, split: str) -> _Wish:
    steps = v.table(_STEPS, key.device)[draws.integers(key, "steps", len(_STEPS))]
    compound = operation == COMPOUND
    primary = torch.where(compound, steps[:, 0], operation)
    secondary = torch.where(compound, steps[:, 1], -1)
    # A compound's addition goes to a place: beside an object that the other step changes, "beside" would be
    # unclear.
    manner = torch.where(compound, edits.AT_PLACE, draws.integers(key, "manner", 3))
    # Among unseen pairs, half the objects are unseen before the edit and half become so by it.
    creates = edits.is_any(primary, (RECOLOUR, RESHAPE)) & draws.chance(key, "unseen", 0.5)
    unseen = (creates | (primary == ADD)) & (split == "test_combination")
    adds = (primary == ADD) | ((secondary == ADD) & (primary != REMOVE))
    # Additions start from a scene with a free slot, and never lead to more objects than the split has.
    if split == "pretrain":
        number = torch.where(adds, 1 + draws.integers(key, "number", 2), -1)
    else:
        number = torch.where(adds, 2 if split == "test_three" else 1, -1)
    return _Wish(operation, primary, secondary, manner, unseen, number)


def _second(key: Tensor, source: SceneBatch, between: SceneBatch, wish: _Wish, first: Edit) -> tuple[Edit, Tensor]:
    """The second step of compounds, proposed on the scene `between` the steps; bool: it is proper, or none is asked."""
    none = wish.secondary < 0
    operation = wish.secondary.clamp_min(0)
    edit = edits.propose(draws.fork(key, 7), between, operation, wish.manner, torch.zeros_like(none))
    same = (edit.slot == first.slot) & (edit.slot >= 0) & edits.is_any(first.operation, (RECOLOUR, RESHAPE, RESIZE))
    same &= edits.is_any(operation, (RECOLOUR, RESHAPE, RESIZE))
    edit = replace(edit, naming=torch.where(same, edits.BY_IT, edit.naming))
    # The words must fit the same single object before the first step as after it.
    old = edits.picked(source.present, edit.slot) & (edits.matches(source, edit.slot, edit.naming) == 1)
    fine = edits.proper(between, edit) & (same | (edit.slot < 0) | (old & (edit.slot != first.slot)))
    # Recolouring must still show: greyscale hides part of it and an outline drawing all of it.
    tinted = (RECOLOUR, BACKGROUND_COLOUR, BACKGROUND_PATTERN)
    fine &= ~edits.is_any(first.operation, tinted) | (edit.style < 0) | (edit.style == v.STYLES.index("inverted"))
    nothing = Edit.of(torch.full_like(operation, -1))
    chosen = {f.name: torch.where(none, getattr(nothing, f.name), getattr(edit, f.name)) for f in fields(Edit)}
    return Edit(**chosen), fine | none


def _allowed(source: SceneBatch, target: SceneBatch, split: str, wish: _Wish, first: Edit) -> Tensor:
    """(B,) bool: the pair belongs to the split as to its colour-shape pairs."""
    before, after = held_out(source), held_out(target)
    if split == "pretrain":
        return torch.ones_like(wish.unseen)
    if split != "test_combination":
        return ~(before | after).any(1)
    slot = _touched(source, first)
    of_object = edits.picked(before, slot) | edits.picked(after, slot)
    return torch.where(slot >= 0, of_object, (before | after).any(1)) & (~wish.unseen | edits.picked(after, slot))


def _touched(source: SceneBatch, edit: Edit) -> Tensor:
    """(B,) slot of the object that the edit changes or adds, -1 for none."""
    free = (~source.present).long().argmax(1)
    return torch.where(edit.operation == ADD, free, edit.slot)


def _attempt(key: Tensor, split: str, wish: _Wish) -> tuple[SceneBatch, SceneBatch, Edit, Edit, Tensor]:
    """One scene and edit per key: source, target, both steps, and whether they are as wished."""
    unseen = ~wish.unseen & (split == "test_combination")
    source = scenes_from_keys(key, split, styled=False, unseen=unseen, count=wish.number)
    first = edits.propose(draws.fork(key, 5), source, wish.primary, wish.manner, wish.unseen)
    fine = edits.proper(source, first)
    between = edits.apply_edit(source, first)
    second, proper = _second(key, source, between, wish, first)
    target = edits.apply_edit(between, second)
    fine &= proper & well_formed(target) & _allowed(source, target, split, wish, first)
    return source, target, first, second, fine


def _operations(key: Tensor, index: Tensor, names: Sequence[str] | None, balanced: bool) -> Tensor:
    names = tuple(v.OPERATIONS if names is None else names)
    unknown = [name for name in names if name not in v.OPERATIONS]
    if unknown or not names:
        raise ValueError(f"unknown or no operations {unknown}; known: {', '.join(v.OPERATIONS)}")
    table = v.table(tuple(v.OPERATIONS.index(name) for name in names), key.device)
    return table[index % len(names) if balanced else draws.integers(key, "operation", len(names))]


@torch.no_grad()
def sample_pairs(
    seed: int,
    index: Tensor,
    split: str = "train",
    operations: Sequence[str] | None = None,
    balanced: bool = False,
) -> PairBatch:
    """The pairs `index` (B,) int64 of `split` under `seed`, on the device of `index`.

    The operation is uniform over `operations` (all when None), or operations[index % n] when `balanced`, for
    evaluations with equal numbers per operation. Sources are plain drawings (no style), so that every edit
    shows.
    """
    v.check_split(split)
    index = index.long()
    key = draws.stream(seed, index, f"pair/{split}")
    wish = _wishes(key, _operations(key, index, operations, balanced), split)
    todo = torch.arange(len(index), device=index.device)
    rows: list[Tensor] = []
    found: list[tuple[SceneBatch, SceneBatch, Edit, Edit]] = []
    tried = 0
    for number in _ATTEMPTS:
        if todo.numel() == 0 and found:
            break
        attempts = torch.arange(tried, tried + number, device=index.device)
        tried += number
        keys = draws.fork(key[todo][:, None], attempts + 100).flatten()
        result = _attempt(keys, split, wish[todo.repeat_interleave(number)])
        fine = result[-1].view(-1, number)
        good, pick = fine.any(1), fine.long().argmax(1)
        taken = (torch.arange(len(todo), device=index.device) * number + pick)[good]
        rows.append(todo[good])
        source, target, first, second, _ = result
        found.append((source[taken], target[taken], first[taken], second[taken]))
        todo = todo[~good]
    if todo.numel():
        raise RuntimeError(f"no proper edit in {tried} attempts for indices {index[todo][:8].tolist()} of {split!r}")
    back = torch.cat(rows).argsort()
    sources, targets, firsts, seconds = zip(*found, strict=True)
    source, target = SceneBatch.cat(sources)[back], SceneBatch.cat(targets)[back]
    first, second = Edit.cat(firsts)[back], Edit.cat(seconds)[back]
    return PairBatch(
        source=source,
        target=target,
        operation=wish.operation,
        primary=wish.primary,
        secondary=wish.secondary,
        object=_touched(source, first),
        secondary_object=_touched(edits.apply_edit(source, first), second),
        needs_motion=edits.follows(source, first),
        instruction=instructions(key, source, first, second, unseen=split == "test_phrasing"),
        source_caption=captions(source, seed, index),
        target_caption=captions(target, seed, index + (1 << 40)),  # worded apart from the source's
    )


@torch.no_grad()
def render_pairs(pairs: PairBatch, frames: Tensor | None = None, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Source and target (B, T, 3, size, size) in [0, 1] and the mask (B, T, size, size), 1.0 exactly where
    any channel differs.
    """
    source, target = render(pairs.source, frames, size), render(pairs.target, frames, size)
    return source, target, (source != target).any(2).to(torch.float32)
