"""Rows of a set, whatever its files: one mapping of columns to values becomes one `TableRow`.

What the pairs of parquet, tar shards and streams have in common stands here: how a column is found in a row, which
rows a score keeps, where the images of a row are, and what a row is called when the set names none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ivedit.data.place import Cell, Member, Place
from ivedit.data.record import PairTexts
from ivedit.data.setfiles import SetFiles
from ivedit.data.table import (
    OPTIONAL,
    REQUIRED,
    TableRow,
    as_instructions,
    as_text,
    column_names,
    inside,
    read_table,
    refuse_rows,
)
from ivedit.errors import ConfigError

__all__ = ["Scores", "field_columns", "find", "make_row", "merged", "position", "read_set"]

log = logging.getLogger(__name__)

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "gif")
_MISSING = object()


def find(row: Mapping[str, Any], column: str, otherwise: Any = None) -> Any:
    """The value of a column: under its name, as an image `column.jpg` of a tar shard, or inside a struct (`a.b`)."""
    if column in row:
        return row[column]
    for suffix in _IMAGES:
        if f"{column}.{suffix}" in row:
            return row[f"{column}.{suffix}"]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return otherwise
        value = value[part]
    return value


class Scores:
    """Keeps rows whose scores are high enough, and counts.

    Args:
        least: Column -> least value; a row without the score, or with one that is no number, is left out.
    """

    def __init__(self, least: Mapping[str, float]) -> None:
        self.least = dict(least)
        self.seen = self.kept = self.without = 0

    def keep(self, row: Mapping[str, Any]) -> bool:
        """Whether a row stays."""
        self.seen += 1
        enough = True
        for column, least in self.least.items():
            try:
                score = float(find(row, column))
            except (TypeError, ValueError):
                score = math.nan
            if math.isnan(score):
                self.without += 1
                return False
            enough = enough and score >= least
        self.kept += enough
        return enough

    def say(self, what: str) -> None:
        """Log what became of the rows; ConfigError when none is left."""
        if not self.least or not self.seen:
            return
        rule = ", ".join(f"{column} >= {least:g}" for column, least in self.least.items())
        counts = f"{self.kept} of {self.seen} rows of {what} ({self.without} have no such score)"
        if not self.kept:
            raise ConfigError(f"data.min_scores: {rule} keeps {counts}: lower it, or leave it out")
        log.info("data.min_scores: %s keeps %s", rule, counts)

    def check(self, there: Iterable[str], what: str) -> None:
        """ConfigError when a score is no column of the set."""
        there = list(there)
        missing = [column for column in self.least if find(dict.fromkeys(there, 0), column, _MISSING) is _MISSING]
        if missing:
            raise ConfigError(f"data.min_scores: {what!r} has no column {missing[0]!r} (it has {', '.join(there)})")


def position(place: Place | None, root: Path) -> str:
    """How a place is called: its file as seen from `root`, and the row or member."""
    if place is None or isinstance(place, bytes):
        return ""
    file = place if isinstance(place, Path) else place.file
    name = str(file.relative_to(root)) if file.is_relative_to(root) else file.name
    if isinstance(place, Cell):
        return f"{name} row {place.number}"
    return f"{name} {place.name}" if isinstance(place, Member) else name


def make_row(row: Mapping[str, Any], names: Mapping[str, str], root: Path, where: str, escaping: list[str]) -> TableRow:
    """One row of a set.

    Args:
        row: Column -> value.
        names: Field of a pair -> column.
        root: Where paths start, and what they must not leave.
        where: Name of the row where the set gives it no id.
        escaping: Takes paths that lead out of `root`.
    """
    values = {field: find(row, column) for field, column in names.items()}
    name = as_text(values.get("id")) or where
    places: dict[str, Place | None] = {}
    for field in ("source", "target", "mask"):
        value = values.get(field)
        if isinstance(value, Mapping):  # as HF `datasets` streams an image that it does not decode
            value = value.get("bytes") or value.get("path")
        if value is None or isinstance(value, (bytes, Cell, Member)):
            places[field] = value
            continue
        text = as_text(value)
        places[field] = None if text is None else inside(root, text)
        if text is not None and places[field] is None:
            escaping.append(f"{name}: {text!r}")
    words = PairTexts(
        id=name,
        instructions=as_instructions(values.get("instruction")),
        source_caption=as_text(values.get("source_caption")),
        target_caption=as_text(values.get("target_caption")),
        operation=as_text(values.get("operation")),
    )
    return TableRow(
        words, places["source"], places["target"], places["mask"], as_text(values.get("group")) or name,
        as_text(values.get("split")),
    )  # fmt: skip


def field_columns(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], what: str) -> dict[str, str]:
    """Field -> column, judged by rows themselves where nothing declares their columns.

    Raises:
        ConfigError: as `column_names`.
    """
    there = dict.fromkeys(column for row in rows for column in row)
    known = {}
    for field in (*REQUIRED, *OPTIONAL):
        # A text beside the images of a tar shard is their instruction, unless the set says otherwise.
        tries = [columns[field]] if field in columns else [field, *(["txt"] if field == "instruction" else [])]
        found = [column for column in tries if any(find(row, column, _MISSING) is not _MISSING for row in rows)]
        if found:
            known[field] = found[0]
    return column_names([*there, *known.values()], {**columns, **known}, what)


def merged(row: Mapping[str, Any]) -> dict[str, Any]:
    """A sample of a tar shard with the entries of its JSON members as columns of their own."""
    flat = dict(row)
    for column, words in row.items():
        if (column == "json" or column.endswith(".json")) and isinstance(words, Mapping):
            flat.update({name: value for name, value in words.items() if name not in row})
    return flat


def read_set(files: SetFiles, columns: Mapping[str, str], scores: Scores, most: int | None = None) -> list[TableRow]:
    """The rows of a split's files in order.

    Args:
        files: From `find_files`.
        columns: Column for each field of a pair; fields left out are looked for under their own name.
        scores: Which rows stay.
        most: Stop after this many, unless a `split` column divides the rows (then all are needed).

    Raises:
        ConfigError: a file cannot be read, columns are missing, paths lead out of the set, or no row is left.
    """
    rows: list[TableRow] = []
    escaping: list[str] = []
    ids: set[str] = set()
    for path in files.paths():
        if files.kind == "table":
            for made in _table_rows(files, path, columns, scores):
                if made.texts.id in ids:  # of another file: rows without an id are numbered in each
                    made = replace(made, texts=replace(made.texts, id=f"{path.name} {made.texts.id}"))
                ids.add(made.texts.id)
                rows.append(made)
            continue
        raw = _parquet_rows(path, columns, scores) if files.kind == "parquet" else _tar_rows(path, columns, scores)
        for names, where, row in raw:
            made = make_row(row, names, files.root, f"{position(path, files.root)} {where}", escaping)
            if made.texts.id in ids:  # sets of others cannot be mended here: the place makes the name unique
                made = make_row(row, {**names, "id": ""}, files.root, f"{position(path, files.root)} {where}", escaping)
            ids.add(made.texts.id)
            rows.append(made)
            if most is not None and len(rows) >= most and "split" not in names:
                break
        if most is not None and len(rows) >= most and not any(row.split for row in rows):
            break
    what = ", ".join(Path(file).name for file in files.files[:2]) + (" ..." if len(files.files) > 2 else "")
    refuse_rows(what, escaping, [row.texts.id for row in rows])
    scores.say(what)
    if not rows:
        raise ConfigError(f"data.path: {what} has no rows")
    return rows


def _table_rows(files: SetFiles, path: Path, columns: Mapping[str, str], scores: Scores) -> list[TableRow]:
    def keep(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if scores.least:
            scores.check(dict.fromkeys(name for row in rows for name in row), path.name)
        return [row for row in rows if scores.keep(row)]

    return read_table(files.root, str(path.relative_to(files.root)), dict(columns), keep)


_Raw = tuple[dict[str, str], str, Mapping[str, Any]]


def _parquet_rows(path: Path, columns: Mapping[str, str], scores: Scores) -> Iterator[_Raw]:
    from ivedit.data import parquet

    there = parquet.column_names(path)
    names = column_names(there, dict(columns), path.name)
    scores.check(there, path.name)
    wanted = list(dict.fromkeys([*names.values(), *scores.least]))
    for number, row in enumerate(parquet.read_rows(path, wanted)):
        if scores.keep(row):
            yield names, f"row {number}", row


def _tar_rows(path: Path, columns: Mapping[str, str], scores: Scores) -> Iterator[_Raw]:
    from ivedit.data import tar

    samples = [(key, merged(sample)) for key, sample in tar.read_samples(path)]
    rows = [sample for _, sample in samples]
    names = field_columns(rows, columns, path.name)
    there = dict.fromkeys(column for row in rows for column in row)
    scores.check([*there, *(c for c in scores.least if any(find(row, c) is not None for row in rows))], path.name)
    for field in ("source", "target", "mask"):
        for _, sample in samples[:1] if field in names else ():
            value = find(sample, names[field])
            if isinstance(value, Member) and value.name.rpartition(".")[2].lower() in tar.PICKLES:
                raise ConfigError(f"data.columns.{field}: {value.name!r} in {path.name!r} may be a pickle: not opened")
    for key, sample in samples:
        if scores.keep(sample):
            yield names, key, sample
