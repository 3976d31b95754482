"""Training on a set that is read from the hub in every epoch and never stored (`data.streaming`).

Every rank reads the whole stream and keeps its share of each global batch: the ranks' pairs are disjoint, are together
what one rank with the larger batch sees, and end at the same step without a word between the ranks. The price is that
each rank transfers everything, so streaming suits few ranks and one or two epochs; otherwise let the files be fetched
(`data.streaming=false`) and their latents cached.

What is promised: the same batches in every run with the same seed, and after a resume exactly those that were left (see
`ivedit.data.rowstream`), as long as the set does not change meanwhile. What is not: an order mixed over the whole set,
and pairs replaced by their next readable neighbour: a broken one is replaced by another of its batch.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ivedit.config import Config
from ivedit.data.buckets import sort_pairs
from ivedit.data.datamodule import PairDataModule
from ivedit.data.fill import Split
from ivedit.data.loader import PairLoader
from ivedit.data.order import Ints
from ivedit.data.pixels import BadShare, read_ahead
from ivedit.data.record import BadRecord, PairReader, PixelBatch
from ivedit.data.rowstream import RowStream, Window
from ivedit.data.setfiles import find_files, set_plan
from ivedit.data.sets import SetReader, refuse_videos
from ivedit.data.table import TableRow
from ivedit.data.words import Words
from ivedit.errors import ConfigError, IveditError

__all__ = ["StreamDataModule", "pair_data"]

log = logging.getLogger(__name__)

_STARTS = 3  # beginnings of windows kept: training may stand some batches behind what was handed over


def pair_data(cfg: Config, *encoders: Any, **others: Any) -> PairDataModule:
    """The datamodule that the configuration asks for; arguments as for `PairDataModule`."""
    kind = StreamDataModule if cfg.data.streaming else PairDataModule
    return kind(cfg, *encoders, **others)


class StreamDataModule(PairDataModule):
    """As `PairDataModule`, for `data.streaming`: training pairs come from a `RowStream`; validation pairs are read
    once, at the start, and stay in memory as files. An epoch is `data.pairs` pairs.
    """

    _stream: RowStream
    _pairs: int
    _guard: BadShare
    _warned: bool
    _starts: dict[tuple[int, int], dict[str, Any]]  # where the windows begin that the next batches come from

    def setup(self, stage: str | None = None) -> None:
        if self._splits:
            return
        self._place()
        data, plan = self.cfg.data, set_plan(self.cfg)
        files = find_files(plan, plan.split)
        if files.kind == "table":
            raise ConfigError("data.streaming: a CSV or JSONL table names files and cannot be streamed; leave it out")
        settings: dict[str, Any] = {
            "min_scores": data.min_scores, "seed": self.cfg.seed, "window": data.shuffle_buffer,
        }  # fmt: skip
        apart = plan.validation_split is not None
        if not apart:
            files.say_unused()
        checked = find_files(plan, plan.validation_split) if plan.validation_split is not None else files
        front = _in_order(RowStream(checked, plan.columns, **settings))
        rows = list(itertools.islice(front, data.validation_pairs))
        front.close()
        held = frozenset() if apart else frozenset(row.group for row in rows)
        self._stream = RowStream(files, plan.columns, held=held, **settings)
        self._pairs = self._count(files.kind, files.files, 0 if apart else len(rows))
        needed = self.cfg.train.batch_size * self.world
        if self._pairs < needed or len(rows) < self.world:
            used_up = not apart and self._pairs < min(needed, data.pairs)
            lower = "; lower data.validation_pairs, which are the first of the stream" if used_up else ""
            raise ConfigError(
                f"data.pairs: train.batch_size={self.cfg.train.batch_size} on {self.world} device(s) needs {needed} "
                f"training pairs and {self.world} for validation, but the stream has {self._pairs} and {len(rows)}"
                + lower
            )
        refuse_videos(rows, "none")
        reader = self._reader(rows)
        words = Words(reader, self.cfg.text, 0.0, training=False)
        buckets = sort_pairs(reader, self.cfg, self._multiple, show=self.rank == 0)
        guard = BadShare(len(reader), data.bad_share, "val")
        if self._empty is None:  # only now: what is wrong with the set is told before the text encoder is read
            self._empty = self._encode([""])
        self._splits = {"val": Split(reader, words, guard, buckets, np.arange(len(reader), dtype=np.int64))}
        self._guard = BadShare(self._pairs, data.bad_share, "train")
        self._starts = {}
        self._warned = False

    def _count(self, kind: str, files: Sequence[str], held: int) -> int:
        """Pairs of an epoch: `data.pairs`, or what the files hold where that is less and can be told."""
        wanted = self.cfg.data.pairs
        if kind != "parquet" or self.cfg.data.min_scores:
            return wanted
        found = -held
        for file in files:
            found += _rows_of(file)
            if found >= wanted:
                return wanted
        log.info("data.pairs=%d, but the stream offers %d: using those", wanted, found)
        return found

    def _reader(self, rows: Sequence[TableRow]) -> SetReader:
        data = self.cfg.data
        return SetReader(
            self._stream.files.root, rows, height=data.height, width=data.width, unequal_size=data.unequal_size,
            seed=self.cfg.seed, flip=data.flip,
        )  # fmt: skip

    @property
    def training_pairs(self) -> int:
        if not self._splits:
            self.setup()
        return self._pairs

    @property
    def batches_per_epoch(self) -> int:
        if not self._splits:
            self.setup()
        return self._pairs // (self.cfg.train.batch_size * self.world)

    def reader(self, split: str) -> PairReader:
        if split == "train":
            raise IveditError("data.streaming: training pairs of a stream cannot be looked up")
        return super().reader(split)

    # ---- batches ----------------------------------------------------------------------------------------------

    def train_dataloader(self) -> PairLoader:
        length, batch = self.batches_per_epoch, self.cfg.train.batch_size

        def plan(epoch: int) -> list[Ints]:
            places = np.arange(length * self.world * batch, dtype=np.int64).reshape(length, self.world, batch)
            return list(places[:, self.rank])

        return PairLoader(length, plan, self._pass, self.position)

    def _pass(self, epoch: int, batches: list[Ints]) -> Iterator[dict[str, Any]]:
        """This rank's batches at these places of an epoch's stream."""
        read = self._read(epoch, batches)
        if self.cfg.data.workers:
            read = read_ahead(read)  # files are read and decoded while the last batch is encoded and trained on
        for window, rows, pixels, places in read:
            self._starts = dict([*self._starts.items(), ((epoch, window.number), window.start)][-_STARTS:])
            seen = places + epoch * self._pairs  # the same place is another pair in another epoch
            self._guard.note(seen.tolist(), [(int(seen[i]), problem) for i, problem in pixels.bad])
            words = Words(self._reader(rows), self.cfg.text, self.cfg.data.null_edits, training=True)
            # Draws hang on the place in the stream, as everything that the ranks must not share does.
            yield {**self._streamed(words, epoch, pixels, places), "numbers": places}

    def _read(
        self, epoch: int, batches: list[Ints]
    ) -> Iterator[tuple[Window, list[TableRow], PixelBatch, Ints]]:
        if not batches:
            return
        size, data = self._stream.window, self.cfg.data
        first = int(batches[0][0]) // size
        # From the last known beginning of a window at or before the first row, else from the start of the epoch.
        number = max((w for e, w in self._starts if e == epoch and w <= first), default=0)
        windows = self._stream.windows(epoch, number, self._starts.get((epoch, number)))
        if data.workers:
            windows = read_ahead(windows)
        held: dict[int, Window] = {}

        def row(place: int) -> TableRow:
            while place // size not in held:
                window = next(windows)
                held[window.number] = window
                held.pop(window.number - 2, None)
            window = held[place // size]
            if window.passes[place % size] and not self._warned:
                self._warned = True
                log.warning(
                    "data.pairs: the stream has only about %d usable pairs and begins anew within the epoch; lower it",
                    place,
                )
            return window.rows[place % size]

        with ThreadPoolExecutor(max(1, data.workers), "ivedit-decode") as pool:
            for places in batches:
                rows = [row(int(place)) for place in places]
                yield held[int(places[-1]) // size], rows, self._decode(rows, pool), places

    def _decode(self, rows: list[TableRow], pool: ThreadPoolExecutor) -> PixelBatch:
        """Pixels of one batch; a broken pair is replaced by the next readable one of the batch."""
        refuse_videos(rows, "none")
        reader = self._reader(rows)
        captioned = self.cfg.text.target == "target_caption"

        def load(i: int) -> tuple[torch.Tensor, torch.Tensor] | BadRecord:
            try:
                if captioned and not rows[i].texts.target_caption:
                    raise BadRecord(rows[i].texts.id, "has no target caption, which text.target asks for")
                return reader.load_pixels(i)
            except BadRecord as problem:
                return problem

        loaded = list(pool.map(load, range(len(rows))))
        bad = [(i, one) for i, one in enumerate(loaded) if isinstance(one, BadRecord)]
        good = [i for i, one in enumerate(loaded) if not isinstance(one, BadRecord)]
        if not good:
            raise IveditError(f"no readable pair in a batch of the stream. First: {bad[0][1]}")
        used = [i if i in good else next((g for g in good if g > i), good[0]) for i in range(len(rows))]
        pairs: Any = loaded
        return PixelBatch(
            used, torch.stack([pairs[i][0] for i in used]), torch.stack([pairs[i][1] for i in used]), bad
        )

    # ---- resuming ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        length = self.batches_per_epoch
        starts = [{"epoch": e, "window": w, "start": start} for (e, w), start in self._starts.items()]
        return {
            "epoch": self.position.epoch, "batch": self.position.batch, "pairs": self._pairs, "length": length,
            "batch_size": self.cfg.train.batch_size, "world": self.world, "seed": self.cfg.seed, "buckets": {},
            "window": self._stream.window, "files": _digest(self._stream.files.files), "starts": starts,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        names = {"window": "data.shuffle_buffer", "files": "list of files of the set"}
        now = self.state_dict()
        problems = [
            f"resume: the checkpoint was made with another {what}, so the stream cannot be continued; use the same, or "
            "init_from= to start anew"
            for key, what in names.items()
            if state_dict.get(key) != now[key]
        ]
        if problems:
            raise ConfigError(problems)
        super().load_state_dict(state_dict)
        self._starts = {(one["epoch"], one["window"]): one["start"] for one in state_dict["starts"]}


def _in_order(stream: RowStream) -> Generator[TableRow, None, None]:
    for file in stream.files.files:
        for row, _, _ in stream.file_rows(file):
            yield row


def _rows_of(file: str) -> int:
    """Rows of a parquet file, local or on the hub, from its footer."""
    import pyarrow.parquet as pq
    from huggingface_hub import HfFileSystem

    try:
        with HfFileSystem().open(file, "rb") if file.startswith("hf://") else Path(file).open("rb") as opened:
            return int(pq.ParquetFile(opened).metadata.num_rows)
    except Exception as problem:  # of the network, the hub's client or the file
        what = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ConfigError(f"data.path: {file.rpartition('/')[2]!r} cannot be read as parquet: {what}") from None


def _digest(files: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(files).encode()).hexdigest()
