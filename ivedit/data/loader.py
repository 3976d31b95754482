"""A sized, resumable stream of batches, and how it resumes.

Lightning restarts a loader at the beginning of its epoch and has no idea of the batches already seen. So the loader
keeps a `Position`: epoch and number of the *next batch to be handed over*. It counts what the training loop has
received, never what was prefetched, is saved in the datamodule's state and survives any kill. A batch is a pure
function of (seed, epoch, number, rank), so continuing there gives the same batches as the uninterrupted run.

The loader is no `DataLoader` on purpose: Lightning would put a sampler of its own into one under several ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PairLoader", "Position"]

Batches = list[NDArray[np.int64]]


@dataclass
class Position:
    """The next batch: `batch` counts micro-batches from the start of `epoch`, both from 0."""

    epoch: int = 0
    batch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch begins (or goes on): another one than ours starts at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.batch = epoch, 0


@dataclass(frozen=True)
class _EpochHook:
    sampler: Position


class PairLoader:
    """Batches of one rank.

    Iterating yields the rest of the position's epoch and then moves the position to the next epoch. `len` is
    always the whole epoch, as Lightning counts from there.

    Args:
        length: Batches per epoch.
        plan: Epoch -> the indices of its batches.
        assemble: (epoch, index lists) -> their batches, one by one.
        position: Shared with the datamodule; None (validation): always epoch 0 from its start.
    """

    def __init__(
        self,
        length: int,
        plan: Callable[[int], Batches],
        assemble: Callable[[int, Batches], Iterator[dict[str, Any]]],
        position: Position | None = None,
    ) -> None:
        self._length = length
        self._plan = plan
        self._assemble = assemble
        self._position = position

    @property
    def batch_sampler(self) -> _EpochHook | None:
        """Lightning calls `batch_sampler.sampler.set_epoch` at the start of each epoch.

        (It would do so on `sampler` as well, but takes a loader that has one for a `DataLoader`.)
        """
        return None if self._position is None else _EpochHook(self._position)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator: the position is read at the first batch, not when Lightning makes the iterator (it does so
        # before it says which epoch it is).
        position = self._position if self._position is not None else Position()
        epoch, start = position.epoch, position.batch
        for number, batch in enumerate(self._assemble(epoch, self._plan(epoch)[start:]), start):
            position.epoch, position.batch = epoch, number + 1
            yield batch
        position.epoch, position.batch = epoch + 1, 0
