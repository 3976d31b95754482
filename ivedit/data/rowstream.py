"""The rows of a set read from front to back, shuffled within windows, for sets too large to fetch.

A stream cannot be permuted, so each epoch reads the files in an order of its own and shuffles the rows of one window
(`data.shuffle_buffer` of them) after the other. Both are pure functions of (seed, epoch), unlike a shuffle buffer that
draws as it goes: a pass can be continued exactly where it stopped, from the start of a window, of which the files'
own places are kept. Mixing is weaker than that of a set on disk: rows further apart than a window come near each other
only if their files do.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ivedit.data import order
from ivedit.data.setfiles import SetFiles
from ivedit.data.setrows import Scores, field_columns, make_row, merged
from ivedit.data.table import TableRow, literal, refuse_rows
from ivedit.errors import ConfigError, IveditError

__all__ = ["RowStream", "Window"]

_BUILDERS = {"parquet": "parquet", "tar": "webdataset"}
_MIXED = "share the same prefix or the same types"  # HF `datasets`' words about a shard's first samples
# file: its number in the epoch's order; row: rows of it read; state: HF `datasets`' own; again: passes over all files.
Place = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """Some rows in the order in which they are used.

    Attributes:
        number: Of the window in its epoch.
        start: Where it begins, to be given to `RowStream.windows` again.
        rows: The rows.
        passes: Of each row how many times all files had been read before it: 0 unless the stream is too short.
    """

    number: int
    start: Place
    rows: list[TableRow]
    passes: list[int]


class RowStream:
    """The rows of one split, never stored; without those that a `split` column keeps from training.

    Args:
        files: Of the split, of parquet or tar.
        columns: Column for each field of a pair.
        min_scores: Which rows stay.
        held: Groups of rows that are left out, because they are validated on.
        seed: Decides the order.
        window: Rows that are shuffled together.
    """

    def __init__(
        self,
        files: SetFiles,
        columns: Mapping[str, str],
        *,
        min_scores: Mapping[str, float],
        held: frozenset[str] = frozenset(),
        seed: int = 0,
        window: int = 1000,
    ) -> None:
        self.files = files
        self.columns = dict(columns)
        self.min_scores = dict(min_scores)
        self.held = held
        self.seed = seed
        self.window = window
        self._names: dict[str, str] = {}

    def windows(self, epoch: int, number: int = 0, start: Place | None = None) -> Iterator[Window]:
        """The windows of an epoch from the `number`-th on, without end: after the last row the first comes again.

        Args:
            epoch: Decides the order of files and rows.
            number, start: A `Window.number` and its `Window.start`; nothing that lies before is read. Without them
                from the start of the epoch.
        """
        place: Place = dict(start or {"file": 0, "row": 0, "state": None, "again": 0})
        rows = self._rows(epoch, place)
        while True:
            begin, taken, passes = dict(place), [], []
            for row, after in itertools.islice(rows, self.window):
                taken.append(row)
                passes.append(after["again"])
                place = after
            drawn = order.uniform(self.seed, "window", epoch, number * self.window + np.arange(len(taken)))
            # Rows of the next pass over the files stay behind those of this one: none comes twice before all have come.
            yield Window(number, begin, [taken[i] for i in np.lexsort((drawn, passes))], sorted(passes))
            number += 1

    def _rows(self, epoch: int, start: Place) -> Iterator[tuple[TableRow, Place]]:
        """Rows from a place on, each with the place after it."""
        files = order.epoch_permutation(self.seed, epoch, len(self.files.files))
        place = dict(start)
        while True:
            found = place["file"] > 0 or place["row"] > 0  # a pass that is continued has found some before
            for number in range(place["file"], len(files)):
                file = self.files.files[files[number]]
                for row, count, state in self.file_rows(file, place["row"], place["state"]):
                    found = True
                    yield row, {"file": number, "row": count, "state": state, "again": place["again"]}
                place = {"file": number + 1, "row": 0, "state": None, "again": place["again"]}
            if not found:
                raise IveditError("data.streaming: no row of the stream can be used; look at data.min_scores")
            place = {"file": 0, "row": 0, "state": None, "again": place["again"] + 1}

    def file_rows(self, file: str, skip: int = 0, state: Any = None) -> Iterator[tuple[TableRow, int, Any]]:
        """Usable rows of one file: (row, rows of the file read so far, the reader's state after it).

        Raises:
            ConfigError: the file cannot be streamed, or lacks a column.
            IveditError: it cannot be read on.
        """
        name = Path(file).name
        scores = Scores(self.min_scores)
        try:
            data = _open(self.files.kind, file, self._wanted(file))
            if state is not None:
                data.load_state_dict(state)
            count = skip
            with contextlib.closing(iter(data)) as rows:
                for raw in rows:
                    row = merged(raw)
                    if not self._names:
                        self._names = field_columns([row], self.columns, name)
                        scores.check(row, name)
                    count += 1
                    if not scores.keep(row):
                        continue
                    where = f"{name} {row['__key__']}" if "__key__" in row else f"{name} row {count - 1}"
                    escaping: list[str] = []
                    made = make_row(row, self._names, self.files.root, where, escaping)
                    refuse_rows(name, escaping, [])
                    if made.group not in self.held and (made.split or "train").lower() == "train":
                        yield made, count, data.state_dict()
        except ConfigError:
            raise
        except Exception as problem:  # of the network, of the file, of HF `datasets`: each has its types
            what = (str(problem).splitlines() or [type(problem).__name__])[0]
            if self.files.kind == "tar" and _MIXED in what:
                raise ConfigError(
                    f"data.streaming: {name!r} cannot be streamed, because its samples differ in kinds of files (png "
                    "here, jpg there, or one is missing); set data.streaming=false, which reads any mix, or write the "
                    "same kinds in every sample"
                ) from problem
            raise IveditError(f"data.path: {name!r} cannot be read on as a stream: {what}") from problem

    def _wanted(self, file: str) -> list[str] | None:
        """The columns to transfer; None: all (a tar shard is read whole)."""
        if self.files.kind != "parquet":
            return None
        if not self._names:
            declared = _open("parquet", file, None).features
            self._names = field_columns([declared], self.columns, Path(file).name)
            Scores(self.min_scores).check(declared, Path(file).name)
        return list(dict.fromkeys(name.partition(".")[0] for name in (*self._names.values(), *self.min_scores)))


def _open(kind: str, file: str, columns: list[str] | None) -> Any:
    from datasets import load_dataset

    place = file if file.startswith("hf://") else literal(Path(file))
    settings = {} if columns is None else {"columns": columns}
    return load_dataset(_BUILDERS[kind], data_files=[place], split="train", streaming=True, **settings).decode(False)
