"""A train loader that spans the whole run, so that a position in it is just a number of micro-batches.

Lightning restores a loop's counters but asks the loader to find its own place, and counts a loader without
length wrongly by what it has prefetched. Here the loader has a length (that of the run) and is asked for its
place only when iteration starts, so what has been prefetched never matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["RunLoader"]


class RunLoader:
    """All micro-batches of a run, from the current position on.

    Args:
        length: Micro-batches of the whole run: optimiser steps times ``accumulate``.
        batches_from: Called with the number of micro-batches already trained; yields the rest in order. What it
            yields must be a function of the position alone.
    """

    def __init__(self, length: int, batches_from: Callable[[int], Iterable[Any]]) -> None:
        self.length = length
        self.batches_from = batches_from
        self.position: Callable[[], int] = lambda: 0
        """How many micro-batches have been trained; `ivedit.training.fit` points it at the trainer."""

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches_from(self.position()))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the trainer's step is the position. Lightning takes this as "can be resumed"."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing, see `state_dict`."""
