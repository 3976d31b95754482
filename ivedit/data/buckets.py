"""Which pairs share a picture size, and their batches.

A pair goes to the bucket whose aspect ratio is nearest to its source's, and its images are scaled to cover that size
and cut around the centre. A batch holds pairs of one bucket, so it is one tensor; which bucket comes when is a pure
function of (seed, epoch), see `ivedit.data.order`. Without `data.buckets` all pairs are one bucket.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ivedit.config import Config
from ivedit.config.buckets import Size, bucket_sizes, nearest_bucket, size_name
from ivedit.data import order
from ivedit.data.order import Ints
from ivedit.data.progress import Progress
from ivedit.data.record import PairReader
from ivedit.data.shards import Shards, entry_key
from ivedit.errors import ConfigError

__all__ = ["Buckets", "configured_sizes", "largest_size", "pair_sizes", "sort_pairs"]

log = logging.getLogger(__name__)

_HEADERS = 2**14  # sizes looked up and stored at once


@dataclass(frozen=True)
class Buckets:
    """The pairs of one split by picture size.

    Attributes:
        sizes: (height, width) of each bucket.
        members: Of each bucket its pairs' indices (n_b,), ascending; may be empty.
    """

    sizes: tuple[Size, ...]
    members: tuple[Ints, ...]

    @property
    def of(self) -> Ints:
        """(n,) the bucket of each pair."""
        found = np.empty(sum(map(len, self.members)), dtype=np.int64)
        for number, members in enumerate(self.members):
            found[members] = number
        return found

    def counts(self) -> dict[str, int]:
        """Pairs of each bucket by its name."""
        return {size_name(size): len(members) for size, members in zip(self.sizes, self.members, strict=True)}

    def batches_per_epoch(self, batch: int, world: int) -> int:
        """Micro-batches of one rank in an epoch, the same in every epoch."""
        return sum(len(members) // (batch * world) for members in self.members)

    def epoch(self, seed: int, epoch: int, batch: int, rank: int, world: int) -> list[Ints]:
        """One rank's training batches, see `order.epoch_batches`."""
        return list(order.epoch_batches(seed, epoch, self.members, batch, rank, world))

    def in_order(self, batch: int, rank: int, world: int) -> list[Ints]:
        """One rank's validation batches, bucket by bucket, see `order.sequential_batches`."""
        return [
            members[places]
            for members in self.members
            for places in order.sequential_batches(len(members), batch, rank, world)
        ]

    def stand_ins(self, good: np.ndarray) -> Ints:
        """(n,) for each pair itself if `good` (n,) bool, else the next good one of its bucket, cyclically.

        -1 in a bucket without any good pair.
        """
        found = np.full(len(good), -1, dtype=np.int64)
        for members in self.members:
            kept = np.flatnonzero(good[members])
            if len(kept):
                found[members] = members[kept[np.searchsorted(kept, np.arange(len(members))) % len(kept)]]
        return found

    def announce(self, split: str, *, asked: bool) -> None:
        """Say how many pairs each size has, where sizes were asked for: of `auto:` there may be one alone."""
        if asked:
            shown = ", ".join(f"{name} {count:,}" for name, count in self.counts().items() if count)
            log.info("%s pairs by size (height x width): %s", split, shown)

    def check_filled(self, batch: int, world: int) -> None:
        """Say by name which buckets are too small to be ever trained on.

        Raises:
            ConfigError: no bucket fills a batch.
        """
        group = batch * world
        counts = {name: count for name, count in self.counts().items() if count}
        small = {name: count for name, count in counts.items() if count < group}
        if len(self.sizes) == 1 or not small:
            return
        named = ", ".join(f"{name} has {count}" for name, count in small.items())
        lower = f"lower train.batch_size to {max(1, min(small.values()) // world)}"
        if len(small) == len(counts):
            raise ConfigError(
                f"data.buckets: a batch holds pairs of one size, and train.batch_size={batch} on {world} device(s) "
                f"needs {group} of them, but {named}: {lower}, or name fewer sizes"
            )
        log.warning(
            "data.buckets: %d of %d training pairs are never trained on, because their size does not fill one batch of "
            "%d (%s): write data.buckets=[%s], which sends them to the next nearest size, or %s",
            sum(small.values()), sum(counts.values()), group, named,
            ",".join(name for name in counts if name not in small), lower,
        )  # fmt: skip


def configured_sizes(cfg: Config, multiple: int = 16) -> tuple[Size, ...]:
    """The picture sizes that training uses: those of `data.buckets`, or `data.height` x `data.width` alone.

    Args:
        cfg: The run's configuration.
        multiple: See `ivedit.config.buckets.bucket_sizes`.

    Raises:
        ConfigError: a size that the backbone cannot take.
    """
    if not cfg.data.buckets:
        return ((cfg.data.height, cfg.data.width),)
    try:
        return tuple(bucket_sizes(cfg.data.buckets, multiple))
    except ValueError as problem:
        raise ConfigError(f"data.buckets: {problem}") from None


def largest_size(cfg: Config, multiple: int = 16) -> Size:
    """The one of `configured_sizes` that decides a step's memory."""
    return max(configured_sizes(cfg, multiple), key=math.prod)


def pair_sizes(reader: PairReader, folder: Path | None, *, show: bool = True) -> list[Size | None]:
    """(height, width) of every pair's source; None where it cannot be told.

    Args:
        reader: Reports them, see `PairReader.sizes`.
        folder: Keeps them under the pairs' keys, so that a second start opens only files that are new or changed.
        show: Whether this process may draw a progress bar.

    Raises:
        ConfigError: the reader knows no sizes.
    """
    if reader.sizes([]) is None:
        raise ConfigError(
            f"data.buckets: {type(reader).__name__} does not tell the sizes of its pairs (PairReader.sizes), so they "
            "cannot be sorted; leave data.buckets out"
        )
    shards = None if folder is None else Shards(folder / "sizes")
    keys = [entry_key("size", key) for key in reader.keys(range(len(reader)))]
    found: list[Size | None] = [None] * len(keys)
    if shards is not None:
        known = {index: shards.place(key) for index, key in enumerate(keys) if key in shards}
        stored = {number: shards.read(number, "sizes").tolist() for number in {number for number, _ in known.values()}}
        for index, (number, row) in known.items():
            height, width = stored[number][row]
            found[index] = (height, width)
    missing = [index for index, size in enumerate(found) if size is None]
    with Progress("reading picture sizes", len(missing), show=show) as progress:
        for start in range(0, len(missing), _HEADERS):
            chunk = missing[start : start + _HEADERS]
            told = {i: size for i, size in zip(chunk, reader.sizes(chunk) or [], strict=True) if size is not None}
            for index, size in told.items():
                found[index] = size
            if shards is not None and told:
                shards.write([keys[i] for i in told], {"sizes": torch.tensor(list(told.values()))})
            progress.advance(len(chunk))
    return found


def sort_pairs(reader: PairReader, cfg: Config, multiple: int = 16, *, show: bool = True) -> Buckets:
    """Sort a reader's pairs into buckets and tell it the size of each (`PairReader.cut_to`).

    A pair whose size cannot be told goes to the fullest bucket, where its stand-in is when it turns out unreadable.

    Args:
        reader: The pairs.
        cfg: `data.buckets` (empty: nothing is sorted) and where the cache lies.
        multiple: See `configured_sizes`.
        show: Whether this process may draw a progress bar.

    Raises:
        ConfigError: a size does not fit the backbone, or the reader knows no sizes.
    """
    sizes = configured_sizes(cfg, multiple)
    if not cfg.data.buckets:
        return Buckets(sizes, (np.arange(len(reader), dtype=np.int64),))
    folder = Path(cfg.data.cache_dir) if cfg.data.cache == "disk" else None
    found = pair_sizes(reader, folder, show=show)
    nearest = {size: nearest_bucket(size, sizes) for size in set(found) if size is not None}
    counted = Counter(nearest[size] for size in found if size is not None)
    fullest = min(counted, key=lambda number: (-counted[number], number), default=0)
    of = np.array([fullest if size is None else nearest[size] for size in found], dtype=np.int64)
    reader.cut_to([sizes[number] for number in of])
    return Buckets(sizes, tuple(np.flatnonzero(of == number) for number in range(len(sizes))))
