"""Write pairs as PNG files and a table: sprites as a folder that any tool, or `data.reader=folder`, can read.

    python -m ivedit.data.export --count 1000 --format csv FOLDER

PNG keeps the 8-bit pixels exactly, so training from the folder sees the same pairs as training from the reader.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ivedit.data.record import PairReader

__all__ = ["FIELDS", "export_pairs", "main"]

FIELDS = (
    "id", "source", "target", "instruction", "source_caption", "target_caption", "mask", "operation", "split",
)
FORMATS = ("csv", "jsonl")


def export_pairs(
    reader: PairReader,
    folder: str | Path,
    count: int,
    format: str = "csv",
    *,
    validation: PairReader | None = None,
    validation_count: int = 0,
) -> Path:
    """Write the first `count` pairs of a reader, and optionally held-out ones, to a folder.

    Args:
        reader: Training pairs.
        folder: New or empty directory; gets `images/` and `pairs.csv` or `pairs.jsonl`.
        count: Number of training pairs.
        format: "csv" or "jsonl".
        validation: Reader of held-out pairs, marked `val` in the column `split`.
        validation_count: How many of them.

    Returns:
        The table. It is written last and at once: a folder with a table is whole.

    Raises:
        IveditError: the folder holds something already, or has no room or permission.
        ValueError: more pairs are asked for than the reader has, or the format is not known.
        BadRecord: a pair cannot be read.
    """
    from ivedit.errors import IveditError

    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    parts: list[tuple[str, PairReader, int]] = [("train", reader, count)]
    if validation is not None:
        parts.append(("val", validation, validation_count))
    for split, pairs, number in parts:
        if not 0 <= number <= len(pairs):
            raise ValueError(f"cannot export {number} {split} pairs of {len(pairs)}")
    root = Path(folder)
    try:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise IveditError(f"{str(root)!r} is not an empty folder: give a new one")
        (root / "images").mkdir(parents=True, exist_ok=True)
        rows = [
            _write_pair(pairs, index, root, split) for split, pairs, number in parts for index in range(number)
        ]
        return _write_table(rows, root / f"pairs.{format}", format)
    except OSError as problem:
        raise IveditError(f"cannot write to {str(root)!r}: {problem.strerror or problem}") from None


def _write_pair(reader: PairReader, index: int, root: Path, split: str) -> dict[str, Any]:
    record = reader.load(index)
    paths: dict[str, str | None] = {}
    for what, pixels in (("source", record.source), ("target", record.target), ("mask", record.mask)):
        paths[what] = None
        if pixels is not None:
            # Numbered, not named by id: an id may hold characters that a file name cannot.
            paths[what] = f"images/{split}-{index:06d}-{what}.png"
            _write_png(pixels, root / str(paths[what]))
    several = list(record.alternatives)
    return {
        "id": record.id,
        "source": paths["source"],
        "target": paths["target"],
        "instruction": several if len(several) > 1 else record.instruction,
        "source_caption": record.source_caption,
        "target_caption": record.target_caption,
        "mask": paths["mask"],
        "operation": record.operation,
        "split": split,
    }


def _write_png(pixels: Tensor, path: Path) -> None:
    from PIL import Image

    array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path, compress_level=1)


def _write_table(rows: Sequence[dict[str, Any]], path: Path, format: str) -> Path:
    text = io.StringIO(newline="")
    if format == "csv":
        writer = csv.DictWriter(text, FIELDS)
        writer.writeheader()
        for row in rows:
            words = row["instruction"]
            writer.writerow({**row, "instruction": json.dumps(words) if isinstance(words, list) else words})
    else:
        # A field that no pair has is left out: a column of nothing but null has no type to read it back with.
        known = [field for field in FIELDS if any(row[field] is not None for row in rows)]
        for row in rows:
            text.write(json.dumps({field: row[field] for field in known}, ensure_ascii=False) + "\n")
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
    os.replace(temporary, path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code (0, 1 for a failure, 2 for a bad argument)."""
    parser = argparse.ArgumentParser(
        prog="python -m ivedit.data.export",
        description="Write sprite pairs as PNG files and a table that data.reader=folder (and any other tool) reads.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a new or empty folder")
    parser.add_argument("--count", type=int, default=1000, help="training pairs (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=64, help="held-out pairs (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="table format (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--operations", default="", help="only these kinds of edit, comma-separated (default: all)")
    options = parser.parse_args(arguments)
    if options.count < 1 or options.validation < 1 or options.size < 16:
        parser.error("--count and --validation must be at least 1 and --size at least 16")

    from ivedit.data.sprites import SpritesReader
    from ivedit.errors import ConfigError, IveditError

    operations = [name.strip() for name in options.operations.split(",") if name.strip()]
    try:
        train, val = (
            SpritesReader(split, number, operations=operations, size=options.size)
            for split, number in (("train", options.count), ("val", options.validation))
        )
        table = export_pairs(
            train, options.folder, options.count, options.format,
            validation=val, validation_count=options.validation,
        )
    except IveditError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, ConfigError) else 1
    print(f"wrote {options.count} training and {options.validation} validation pairs: {table}")
    print(f"train from them: data.reader=folder data.path={options.folder} data.table={table.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
