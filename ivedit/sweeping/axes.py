"""Axes of plots over slots: numbers on a line or a logarithmic one, names at equal distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ivedit.config.fields import show
from ivedit.sweeping.spec import Choice, Range, SlotResult, Stage

__all__ = ["Axis", "axes_of", "factors"]

SPREAD = 0.05
"""Equal names of several slots are drawn this far apart at the most, in the order of the slots."""


@dataclass(frozen=True)
class Axis:
    """``values``: one per slot; ``names``: what a categorical axis shows, None for numbers between low and high."""

    label: str
    values: tuple[Any, ...]
    names: tuple[str, ...] | None
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def plain(self, value: Any) -> float:
        """Where a value lies in a plot that has the axis's scale itself."""
        return float(self.names.index(show(value))) if self.names is not None else float(value)

    def height(self, number: int) -> float:
        """Where the value of a slot lies between 0 and 1."""
        value = self.values[number]
        if self.names is None:
            return self._share(float(value))
        same = [i for i, other in enumerate(self.values) if show(other) == show(value)]
        apart = (same.index(number) / (len(same) - 1) - 0.5) * 2 * SPREAD if len(same) > 1 else 0.0
        return self._named(self.names.index(show(value))) + apart / max(1.0, len(self.names) / 3)

    def ticks(self) -> list[tuple[float, str]]:
        """``(height, text)`` of what is written at the axis."""
        if self.names is not None:
            return [(self._named(i), name) for i, name in enumerate(self.names)]
        if self.high == self.low:
            return [(0.5, _short(self.low))]
        shares = (0.0, 0.25, 0.5, 0.75, 1.0)
        return [(share, _short(self._at(share))) for share in shares]

    def _named(self, index: int) -> float:
        assert self.names is not None
        return 0.06 + 0.88 * index / (len(self.names) - 1) if len(self.names) > 1 else 0.5

    def _share(self, value: float) -> float:
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def _at(self, share: float) -> float:
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + share * (self.high - self.low)


def factors(stage: Stage, done: Sequence[SlotResult]) -> list[Axis]:
    """An axis for everything that was varied: a search's settings; a grid's arm, seed and tuned settings."""
    if stage.cells is None:
        return [
            _axis(key, [result.params.get(key) for result in done], space)
            for key, space in stage.space.items()
            if all(key in result.params for result in done)
        ]
    cells = [result.cell for result in done if result.cell is not None]
    found = [_axis("arm", [cell.arm or cell.label for cell in cells], None)]
    found.append(Axis("seed", tuple(cell.seed for cell in cells), tuple(map(str, sorted({c.seed for c in cells})))))
    for key in dict.fromkeys(key for cell in cells for key in cell.tuned):
        if all(key in cell.tuned for cell in cells):
            tried = tuple(cell.tuned[key] for cell in cells)
            ranked = sorted(set(tried)) if all(_is_number(value) for value in tried) else dict.fromkeys(tried)
            found.append(Axis(key, tried, tuple(show(value) for value in ranked)))
    return [axis for axis in found if len({show(value) for value in axis.values}) > 1]


def axes_of(stage: Stage, done: Sequence[SlotResult]) -> list[Axis]:
    """What was varied, then the objectives."""
    values = [[(result.values or ())[index] for result in done] for index in range(len(stage.objectives))]
    return [
        *factors(stage, done),
        *(_axis(objective.metric, column, None) for objective, column in zip(stage.objectives, values, strict=True)),
    ]


def _axis(label: str, values: Sequence[Any], space: Range | Choice | None) -> Axis:
    """Over the values seen; names where they are no numbers, or the space lists them."""
    numbers = all(_is_number(value) for value in values)
    if isinstance(space, Choice):
        return Axis(label, tuple(values), tuple(show(choice) for choice in space.choices))
    if not numbers:
        return Axis(label, tuple(values), tuple(dict.fromkeys(show(value) for value in values)))
    low, high = min(values), max(values)
    log = space.log if isinstance(space, Range) else low > 0 and high / low >= 8 and len(set(values)) > 2
    return Axis(label, tuple(values), None, low, high, log)


def _short(value: float) -> str:
    """Three digits; millions as such."""
    return f"{value / 1e6:.3g}M" if abs(value) >= 1e5 else f"{value:.3g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
