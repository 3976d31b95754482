"""The table of a user's folder of pairs: CSV or JSONL with paths to image files, read through HF `datasets`.

It is read and checked whole before anything trains: columns, ids and paths are either right or named in one error.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivedit.data.place import Place
from ivedit.data.record import PairTexts
from ivedit.errors import ConfigError, or_nearest

__all__ = [
    "TableRow", "as_instructions", "as_text", "column_names", "inside", "literal", "read_table", "refuse_rows", "some",
]  # fmt: skip

REQUIRED = ("source", "target", "instruction")
OPTIONAL = ("id", "source_caption", "target_caption", "mask", "operation", "split", "group")
_SHOWN = 5  # names in one error message


@dataclass(frozen=True)
class TableRow:
    """One pair; paths are resolved and lie inside the folder (None: the cell was empty)."""

    texts: PairTexts
    source: Place | None
    target: Place | None
    mask: Place | None
    group: str  # rows with the same group (source image) are never divided between training and validation
    split: str | None


def read_table(
    folder: Path,
    table: str,
    columns: dict[str, str],
    keep: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None,
) -> list[TableRow]:
    """Read and check the table of a folder of pairs.

    Args:
        folder: Directory that holds table and images.
        table: CSV or JSONL file, relative to `folder`.
        columns: Column of the table for each field of a pair; fields left out are looked for under their own name.
            An instruction may be a list (a JSON list in a CSV cell): one is drawn per epoch.
        keep: Leaves some of the rows (column -> value) out.

    Raises:
        ConfigError: no such folder or table, unknown fields, missing columns, repeated ids, or paths that lead out
            of the folder; all of them at once where they can be known together.
    """
    if not folder.is_dir():
        raise ConfigError(f"data.path: {str(folder)!r} is not a directory")
    root = folder.resolve()
    path = (root / table).resolve()
    if not path.is_relative_to(root):
        raise ConfigError(f"data.table: {table!r} leads out of data.path {str(folder)!r}")
    if not path.is_file():
        raise ConfigError(f"data.table: there is no file {table!r} in {str(folder)!r}")
    rows = _read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path)
    if not rows:
        raise ConfigError(f"data.table: {table!r} has no rows")
    names = column_names(dict.fromkeys(name for row in rows for name in row), columns, table)
    if keep is not None:
        rows = keep(rows)
    return _checked(root, [{field: row.get(column) for field, column in names.items()} for row in rows], table)


def _read_csv(path: Path) -> list[dict[str, Any]]:
    from datasets import Features, Value, load_dataset

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            # The parser below would take surplus cells for an index and shift the columns, or fill missing ones.
            ragged = [str(lines.line_num) for cells in lines if cells and len(cells) != len(header)]
    except (OSError, csv.Error, UnicodeError) as problem:
        fix = "; save it as UTF-8" if isinstance(problem, UnicodeError) else ""
        raise ConfigError(f"data.table: {path.name!r} cannot be read: {problem}{fix}") from None
    if ragged:
        raise ConfigError(
            f"data.table: {path.name!r} has {len(header)} columns, but another number of cells in line {some(ragged)} "
            "(quote cells that hold commas)"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if not header or twice:
        what = f"repeats the column {', '.join(twice)}" if twice else "is empty"
        raise ConfigError(f"data.table: {path.name!r} {what}")
    # Everything is text: guessing types would turn the id 007 into 7 and the instruction "none" into nothing.
    features = Features({name: Value("string") for name in header})
    return _rows(
        lambda: load_dataset(
            "csv", data_files=literal(path), split="train", streaming=True, features=features,
            keep_default_na=False, index_col=False, encoding="utf-8-sig",
        ),
        path,
    )


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    from datasets import load_dataset

    if path.suffix.lower() not in (".jsonl", ".json", ".ndjson"):
        raise ConfigError(f"data.table: {path.name!r} must end in .csv or .jsonl")
    if path.stat().st_size == 0:
        raise ConfigError(f"data.table: {path.name!r} is empty")
    return _rows(lambda: load_dataset("json", data_files=literal(path), split="train", streaming=True), path)


def literal(path: Path) -> str:
    """`datasets` takes patterns: brackets and stars of a real name are quoted."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def _rows(load: Any, path: Path) -> list[dict[str, Any]]:
    parsers = logging.getLogger("datasets.packaged_modules")  # they log what they raise, as a second error
    level = parsers.level
    parsers.setLevel(logging.CRITICAL)
    try:
        return [dict(row) for row in load()]
    except Exception as problem:  # `datasets` wraps parser errors in many types of its own
        cause = problem.__cause__ or problem
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        if path.suffix.lower() in (".jsonl", ".ndjson") and (line := _broken_line(path)):
            first = re.sub(r" in row \d+$", "", first) + f" (line {line})"  # the parser's rows start anew in each block
        raise ConfigError(f"data.table: {path.name!r} cannot be read: {first}") from problem
    finally:
        parsers.setLevel(level)


def _broken_line(path: Path) -> int | None:
    """The first line of a JSONL file that is no JSON, from 1."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                json.loads(line.strip() or "null")
            except ValueError:
                return number
    return None


def column_names(there: Iterable[str], columns: dict[str, str], table: str) -> dict[str, str]:
    """Field -> column for every field that a table with the columns `there` has.

    Raises:
        ConfigError: unknown fields, columns that are named but missing, required fields without one; all at once.
    """
    known = (*REQUIRED, *OPTIONAL)
    there = list(there)
    if len(there) == 1 and (cut := next((mark for mark in ";\t|" if mark in there[0]), None)):
        raise ConfigError(f"{table!r} is cut by {cut!r}, and tables are by ','; save it with commas, or as JSON Lines")
    problems = [f"data.columns: {field!r} is no field of a pair: {or_nearest(field, known)}"
                for field in columns if field not in known]
    names: dict[str, str] = {}
    for field in known:
        column = columns.get(field, field)
        if column in there:
            names[field] = column
        elif field in columns or field in REQUIRED:
            problems.append(
                f"data.columns.{field}: {table!r} has no column {column!r} (it has {', '.join(there)})"
            )
    if problems:
        raise ConfigError(problems)
    return names


def _checked(root: Path, rows: list[dict[str, Any]], table: str) -> list[TableRow]:
    """Rows by field to `TableRow`s, or one error that names repeated ids and escaping paths."""
    escaping: list[str] = []
    result: list[TableRow] = []
    for number, row in enumerate(rows):
        name = as_text(row.get("id")) or f"row-{number:06d}"
        paths: dict[str, Path | None] = {}
        for field in ("source", "target", "mask"):
            value = as_text(row.get(field))
            path = None if value is None else inside(root, value)
            if value is not None and path is None:
                escaping.append(f"{name}: {value!r}")
            paths[field] = path
        words = PairTexts(
            id=name,
            instructions=as_instructions(row.get("instruction")),
            source_caption=as_text(row.get("source_caption")),
            target_caption=as_text(row.get("target_caption")),
            operation=as_text(row.get("operation")),
        )
        group = as_text(row.get("group")) or as_text(row.get("source")) or name
        split = as_text(row.get("split"))
        result.append(TableRow(words, paths["source"], paths["target"], paths["mask"], group, split))
    refuse_rows(table, escaping, [row.texts.id for row in result])
    return result


def refuse_rows(table: str, escaping: Sequence[str], ids: Iterable[str]) -> None:
    """One error for paths that lead out of the folder and for ids that come twice, if there are any.

    Raises:
        ConfigError: there are.
    """
    problems: list[str] = []
    if escaping:
        problems.append(f"data.table: {table!r} has paths that lead out of data.path: {some(escaping)}")
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        problems.append(f"data.table: {table!r} repeats the id {some(repeated)}; ids must be unique")
    if problems:
        raise ConfigError(problems)


def inside(root: Path, value: str) -> Path | None:
    """The file that a cell names, links followed; None when it lies outside `root`."""
    try:
        path = (root / value).resolve()
    except (ValueError, OSError, RuntimeError):  # a null character, a name too long, a loop of links
        return None
    return path if path.is_relative_to(root) else None


def as_text(value: Any) -> str | None:
    """A cell as text; None for an empty one."""
    return None if value is None or str(value).strip() == "" else str(value).strip()


def as_instructions(value: Any) -> tuple[str, ...]:
    """All alternatives in a cell: a list, a JSON list as text, the values of a mapping, or one text."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = value  # a sentence that happens to start with a bracket
        value = parsed if isinstance(parsed, list) else value
    several = value if isinstance(value, (list, tuple)) else [value]
    return tuple(str(one).strip() for one in several if one is not None and str(one).strip())


def some(names: Sequence[str]) -> str:
    """The first few of many names, for an error message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
