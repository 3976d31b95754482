"""Which pair comes when, and every other random choice about a pair, as pure functions of (seed, epoch, index).

Nothing here has a state: a resumed run, another number of loader workers or a prefetching loader cannot change what
a step sees. Choices about a pair (text dropout, null edit, which of several instructions, mirroring) hang on the
pair's index and the epoch, not on its place in a batch, so the same pairs with other ranks or batch sizes get the
same choices.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose", "epoch_batches", "epoch_permutation", "other_text", "sequential_batches", "uniform"]

Ints = NDArray[np.int64]


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One round of SplitMix64 (Steele et al., OOPSLA 2014), elementwise on uint64 with wrap-around."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _keys(seed: int, label: str, epoch: int, index: Ints) -> NDArray[np.uint64]:
    state = np.zeros(1, dtype=np.uint64)
    for part in (seed, zlib.crc32(label.encode()), epoch):
        state = _splitmix(state ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return _splitmix(state ^ np.asarray(index, dtype=np.int64).view(np.uint64))


def uniform(seed: int, label: str, epoch: int, index: Ints) -> NDArray[np.float64]:
    """One number in [0, 1) per entry of `index`, independent between labels, epochs, seeds and indices."""
    return (_keys(seed, label, epoch, index) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(seed: int, label: str, epoch: int, index: Ints, counts: Ints) -> Ints:
    """For each entry of `index` an integer in [0, counts); `counts` must be at least 1."""
    return np.minimum((uniform(seed, label, epoch, index) * counts).astype(np.int64), counts - 1)


def epoch_permutation(seed: int, epoch: int, pairs: int) -> Ints:
    """The order of all `pairs` in one epoch: (pairs,), a permutation."""
    indices = np.arange(pairs, dtype=np.int64)
    # Sorting by a hash is a permutation by construction and the same in every version of numpy, unlike its generators'
    # shuffle; ties, practically absent, fall to the lower index because the sort is stable.
    return np.argsort(_keys(seed, "order", epoch, indices), kind="stable").astype(np.int64)


def epoch_batches(seed: int, epoch: int, buckets: Sequence[Ints], batch: int, rank: int, world: int) -> Ints:
    """Indices of one rank's batches in one epoch: (batches, batch), each batch from one bucket.

    The ranks' batches of the same number are neighbours in their bucket's order: `world` ranks with `batch` pairs each
    see together what one rank with `batch * world` pairs sees, all from the same bucket at the same step, every rank
    has equally many, and no pair comes twice. Each bucket's incomplete rest is dropped (another rest in each epoch).

    Args:
        seed, epoch: Decide the order.
        buckets: (n_b,) pair indices of each bucket. A bucket's own order is that of its pairs in the order of all
            pairs, so one bucket of everything is `epoch_permutation`; with several, batches come by a hash of their
            first pair, so that a bucket which grows does not reorder the others' batches among themselves.
        batch: Pairs of a batch of one rank.
        rank, world: This process among all.
    """
    together = []
    for members in buckets:
        count = len(members) // (batch * world)
        inside = members[np.argsort(_keys(seed, "order", epoch, members), kind="stable")]
        together.append(inside[: count * batch * world].reshape(count, world, batch))
    batches = np.concatenate(together)
    if len(buckets) > 1:
        batches = batches[np.argsort(_keys(seed, "batch order", epoch, batches[:, 0, 0]), kind="stable")]
    return batches[:, rank].astype(np.int64)


def sequential_batches(pairs: int, batch: int, rank: int, world: int) -> list[Ints]:
    """Indices of one rank's batches in table order, for validation; the last batch may be smaller.

    Rank r takes r, r + world, ...; at most world - 1 pairs at the end are left out, so that ranks have equally many.
    """
    mine = np.arange(pairs // world, dtype=np.int64) * world + rank
    return [mine[start : start + batch] for start in range(0, len(mine), batch)]


def other_text(order: Ints, text: Ints, empty: int) -> Ints:
    """For every pair another pair whose text differs, for the control that gates with a wrong instruction.

    Args:
        order: (n,) a permutation of the pairs; the partner is the next one in this order, cyclically, ...
        text: (n,) ... whose text number differs from the pair's own and is not `empty`.
        empty: Text number of the empty text.

    Returns:
        (n,) partner of each pair.

    Raises:
        ValueError: some pair has no such partner (all pairs say the same).
    """
    in_order = text[order]
    partner = np.full(len(order), -1, dtype=np.int64)
    waiting = np.arange(len(order))
    for step in range(1, len(order)):
        candidate = (waiting + step) % len(order)
        fits = (in_order[candidate] != in_order[waiting]) & (in_order[candidate] != empty)
        partner[order[waiting[fits]]] = order[candidate[fits]]
        waiting = waiting[~fits]
        if len(waiting) == 0:
            return partner
    raise ValueError("no pair has another text to swap with")
