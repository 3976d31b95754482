"""Rows and image bytes of local parquet files, by (file, row group, row).

Words are read column by column without touching the images beside them. Image bytes can only be had a whole row
group at a time, which suits reading in order (one encoding of every pair) and ruins reading in a shuffled order. So
row groups are held in memory while they are small and used in order, and otherwise unpacked once into Arrow files,
which are memory-mapped: a pair then costs its own bytes. Only row groups that are used are unpacked.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from ivedit.data.place import Cell, state_of
from ivedit.data.shards import entry_key
from ivedit.errors import ConfigError, IveditError

__all__ = ["Cells", "column_names", "read_rows"]

log = logging.getLogger(__name__)

_HELD_BYTES = 256 * 2**20  # of one column of a row group; a larger one is unpacked
_HELD = 4  # columns of row groups in memory at once: source, target and mask, and one more at a boundary
_PIECE = 16  # rows of one record batch in an unpacked file


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as problem:
        raise ConfigError(f"data.path: {path.name!r} cannot be read as parquet: {_line(problem)}") from None


def column_names(path: Path) -> list[str]:
    """The columns of a file, those inside a struct that holds no image as `outer.inner` too.

    Raises:
        ConfigError: the file is no parquet file.
    """
    with _open(path) as file:
        names = []
        for one in file.schema_arrow:
            names.append(one.name)
            if pa.types.is_struct(one.type) and not _is_image(one.type):
                names += [f"{one.name}.{inner.name}" for inner in one.type]
        return names


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file in order, column -> value, images as `Cell`s, or as paths where a path stands in for them.

    Raises:
        ConfigError: the file is damaged.
    """
    with _open(path) as file:
        tops = {column: column if column in file.schema_arrow.names else column.partition(".")[0] for column in columns}
        pictures = [c for c in columns if _is_image(file.schema_arrow.field(tops[c]).type)]
        words = list(dict.fromkeys(tops[c] for c in columns if c not in pictures))
        number = 0
        for group in range(file.num_row_groups):
            try:
                # Threads of a library and forked loader processes do not go together.
                table = file.read_row_group(group, columns=words, use_threads=False).to_pylist() if words else None
                beside = {column: _paths(file, group, column) for column in pictures}
            except (OSError, pa.ArrowException) as problem:
                raise ConfigError(
                    f"data.path: row group {group} of {path.name!r} is damaged: {_line(problem)}"
                ) from None
            for row in range(file.metadata.row_group(group).num_rows):
                values: dict[str, Any] = dict(table[row]) if table is not None else {}
                for column, paths in beside.items():
                    values[column] = (paths and paths[row]) or Cell(path, number, group, row, column)
                yield values
                number += 1


def _paths(file: pq.ParquetFile, group: int, column: str) -> list[str | None] | None:
    """The path of each row that has one and no bytes; None where all rows have bytes.

    Such an image is a file of its own, and what it holds must count for the keys of the cache.
    """
    kind = file.schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or "path" not in [inner.name for inner in kind]:
        return None
    leaves = (file.metadata.row_group(group).column(i) for i in range(file.metadata.num_columns))
    stored = next(leaf for leaf in leaves if leaf.path_in_schema == f"{column}.bytes")
    if stored.statistics is None or stored.statistics.null_count == 0:
        return None
    cells = file.read_row_group(group, columns=[column], use_threads=False).column(0)
    return [cell["path"].as_py() if cell.is_valid and not cell["bytes"].is_valid else None for cell in cells]


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(inner.name == "bytes" and _is_bytes(inner.type) for inner in kind)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


class Cells:
    """Image bytes by cell. Safe to hand to loader processes: files are opened anew in each.

    Args:
        folder: Where row groups are unpacked.
        shuffled: Cells are asked for in any order, so every row group used is unpacked.
    """

    def __init__(self, folder: Path, *, shuffled: bool) -> None:
        self.folder = folder
        self.shuffled = shuffled
        self._held: OrderedDict[tuple[Path, int, str], Any] = OrderedDict()
        self._files: dict[Path, pq.ParquetFile] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": OrderedDict(), "_files": {}, "_process": -1}

    def read(self, cell: Cell) -> tuple[pa.Buffer | None, str | None]:
        """The bytes of an image, or where they are null the path that stands beside them.

        Raises:
            OSError, pa.ArrowException: the file is damaged.
            IveditError: a row group cannot be unpacked.
        """
        if self._process != os.getpid():  # forked: a file's position is shared with the parent
            self._held.clear()
            self._files.clear()
            self._process = os.getpid()
        key = (cell.file, cell.group, cell.column)
        if key not in self._held:
            self._held[key] = self._take(cell)
            while len(self._held) > (64 if self.shuffled else _HELD):
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        held = self._held[key]
        if isinstance(held, pa.ipc.RecordBatchFileReader):
            value = held.get_batch(cell.row // _PIECE).column(0)[cell.row % _PIECE]
        else:
            value = held[cell.row]
        path = None
        if pa.types.is_struct(value.type):
            if not value.is_valid:
                return None, None
            path = value["path"].as_py() if "path" in value.type.names else None
            value = value["bytes"]
        return (value.as_buffer() if value.is_valid else None), path

    def _take(self, cell: Cell) -> Any:
        file = self._files.get(cell.file)
        if file is None:
            self._files[cell.file] = file = pq.ParquetFile(cell.file)
        size = _column_bytes(file, cell)
        if not self.shuffled and size <= _HELD_BYTES:
            return file.read_row_group(cell.group, columns=[cell.column], use_threads=False).column(0)
        key = entry_key("unpacked", state_of(cell.file), str(cell.group), cell.column)
        unpacked = self.folder / f"{key[:32]}.arrow"
        if not unpacked.exists():
            self._unpack(file, cell, unpacked, size)
        return pa.ipc.open_file(pa.memory_map(str(unpacked)))

    def _unpack(self, file: pq.ParquetFile, cell: Cell, unpacked: Path, size: int) -> None:
        temporary = unpacked.with_name(f".{unpacked.stem}.{uuid.uuid4().hex[:8]}.tmp")
        log.debug("unpacking %s, row group %d, %s: %.1f MB", cell.file, cell.group, cell.column, size / 1e6)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            schema = pa.schema([file.schema_arrow.field(cell.column)])
            # Pieces of equal size, so that a row's piece follows from its number.
            pieces = file.iter_batches(_PIECE, [cell.group], [cell.column], use_threads=False)
            with pa.ipc.new_file(str(temporary), schema) as writer:
                table = None
                for piece in pieces:
                    rows = pa.Table.from_batches([piece], schema)
                    table = rows if table is None else pa.concat_tables([table, rows])
                    while table.num_rows >= _PIECE:
                        writer.write_batch(table.slice(0, _PIECE).combine_chunks().to_batches()[0])
                        table = table.slice(_PIECE)
                if table is not None and table.num_rows:
                    writer.write_batch(table.combine_chunks().to_batches()[0])
            os.replace(temporary, unpacked)  # two processes may do the same: the same file wins twice
        except OSError as problem:
            temporary.unlink(missing_ok=True)
            raise IveditError(
                f"data.cache_dir: a row group of {cell.file.name} cannot be unpacked to {str(self.folder)!r}: "
                f"{problem.strerror or problem}"
            ) from None


def _column_bytes(file: pq.ParquetFile, cell: Cell) -> int:
    group = file.metadata.row_group(cell.group)
    parts = (group.column(i) for i in range(group.num_columns))
    return sum(
        part.total_uncompressed_size for part in parts if part.path_in_schema.partition(".")[0] == cell.column
    )


def _line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
