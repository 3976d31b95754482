"""Reading many pairs: in this process or in loader processes, with unusable pairs skipped, counted and replaced.

A pair that cannot be read is replaced by the next readable one of the table, so that batches stay full and the
replacement depends on the files alone, not on who reads when.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ivedit.config.buckets import size_name
from ivedit.data.record import BadRecord, PairReader, PixelBatch
from ivedit.errors import IveditError

__all__ = ["BadShare", "load_replaced", "read_ahead", "read_chunks"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_NAMED = 3  # bad records named in the error
_FLOOR = 1000  # pairs: before this many (or all) are read, the share is taken of this many
_IN_A_ROW = 1000  # unreadable pairs in a row before reading gives up


class BadShare:
    """Counts unusable pairs of one split, says each once, and stops the run above a share.

    Args:
        total: Pairs of the split.
        share: `data.bad_share`.
        split: Its name, for messages.
    """

    def __init__(self, total: int, share: float, split: str) -> None:
        self.total = total
        self.share = share
        self.split = split
        self.bad: dict[int, BadRecord] = {}
        self._seen: set[int] = set()

    def note(self, seen: Iterable[int], bad: Iterable[tuple[int, BadRecord]]) -> None:
        """Account for some pairs that were read and those among all tried that were bad.

        Raises:
            IveditError: more than the share of the pairs read is bad.
        """
        self._seen.update(seen)
        for index, problem in bad:
            self._seen.add(index)
            if index not in self.bad:
                self.bad[index] = problem
                log.warning("skipped %s pair %s", self.split, problem)
        # The first few pairs say little about the share: it is taken of a thousand pairs at least, or of all there are.
        base = max(len(self._seen), min(self.total, _FLOOR))
        if len(self.bad) > self.share * base + 1e-6:  # 0.29 * 100 is less than 29
            first = "; ".join(str(problem) for problem in list(self.bad.values())[:_NAMED])
            enough = math.ceil(100 * len(self.bad) / base) / 100
            raise IveditError(
                f"{len(self.bad)} of {len(self._seen)} {self.split} pairs read ({self.total} in all) are unusable, "
                f"more than data.bad_share={self.share:g} allows. First: {first}. "
                f"Mend or remove them, or raise data.bad_share, to {enough:g} or more"
            )


def load_replaced(reader: PairReader, indices: Sequence[int]) -> PixelBatch:
    """As `reader.load_batch`, with each unusable pair replaced by the next usable one of its size (cyclically).

    Returns:
        As many rows as asked for; `indices` says which pairs they really are.

    Raises:
        IveditError: nothing readable follows.
    """
    batch = reader.load_batch(indices)
    if not batch.bad:
        return batch
    row_of = {index: row for row, index in enumerate(batch.indices)}
    sources, targets, actual, bad = [], [], [], dict(batch.bad)
    for index in indices:
        if index in row_of:
            row = row_of[index]
            sources.append(batch.source[row])
            targets.append(batch.target[row])
            actual.append(int(index))
            continue
        found = _next_usable(reader, int(index), bad)
        sources.append(found.source[0])
        targets.append(found.target[0])
        actual.append(found.indices[0])
    return PixelBatch(actual, torch.stack(sources), torch.stack(targets), list(bad.items()))


def _next_usable(reader: PairReader, index: int, bad: dict[int, BadRecord]) -> PixelBatch:
    size, tried = reader.size_of(index), 0
    for step in range(1, len(reader)):
        candidate = (index + step) % len(reader)
        if reader.size_of(candidate) != size:
            continue
        tried += 1
        if tried == _IN_A_ROW:
            break
        if candidate in bad:
            continue
        found = reader.load_batch([candidate])
        if found.indices:
            return found
        bad.update(found.bad)
    first = "; ".join(str(problem) for problem in list(bad.values())[:_NAMED])
    where = "" if size is None else f" of size {size_name(size)}"
    raise IveditError(f"no readable pair{where} found after {len(bad)} unusable ones. First: {first}")


class _Chunks(Dataset[PixelBatch | IveditError]):
    """What a loader process runs: index lists to pixels."""

    def __init__(self, reader: PairReader, replace: bool) -> None:
        self.reader = reader
        self.replace = replace

    def __getitem__(self, indices: Sequence[int]) -> PixelBatch | IveditError:  # type: ignore[override]
        try:
            return load_replaced(self.reader, indices) if self.replace else self.reader.load_batch(indices)
        except IveditError as problem:
            # Raised in a loader process it would arrive wrapped in that process's traceback.
            return problem


def read_chunks(
    reader: PairReader, chunks: Sequence[Sequence[int]], *, workers: int = 0, replace: bool = False
) -> Iterator[PixelBatch]:
    """Pixels of each list of indices, in order, read ahead by `workers` processes where the reader allows it.

    Args:
        reader: The pairs.
        chunks: Lists of indices.
        workers: Processes; 0 reads in this one.
        replace: Replace unusable pairs instead of leaving them out.

    Raises:
        IveditError: see `load_replaced`.
    """
    dataset = _Chunks(reader, replace)
    source: Iterable[PixelBatch | IveditError]
    if workers == 0 or not reader.parallel or len(chunks) < 2:
        source = (dataset[chunk] for chunk in chunks)
    else:
        source = DataLoader(
            dataset,
            batch_size=None,
            sampler=chunks,  # type: ignore[arg-type]
            num_workers=min(workers, len(chunks)),
            # Its own generator: a loader otherwise draws from the global one, and a resumed run would draw otherwise.
            generator=torch.Generator().manual_seed(0),
        )
    for item in source:
        if isinstance(item, IveditError):
            raise item
        yield item


def read_ahead(items: Iterator[T], depth: int = 1) -> Iterator[T]:
    """The same items, made by a thread that is up to `depth` of them ahead (decoders let other threads run).

    Raises:
        Exception: whatever making an item raises, in its place.
    """
    done: Any = object()
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    abandoned = threading.Event()

    def hand_over(item: Any, problem: BaseException | None = None) -> None:
        while not abandoned.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, problem), timeout=0.1)
                break

    def work() -> None:
        try:
            for item in items:
                hand_over(item)
                if abandoned.is_set():
                    return
            hand_over(done)
        except BaseException as problem:  # it belongs to whoever waits for the item
            hand_over(None, problem)

    thread = threading.Thread(target=work, name="ivedit-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, problem = ready.get()
            if problem is not None:
                raise problem
            if item is done:
                return
            yield item
    finally:
        abandoned.set()
        thread.join()
