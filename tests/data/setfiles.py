"""The photographs of a `PhotoFolder` written as the sets people have: parquet, tar shards, CSV, a hub's layout."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from .conftest import PhotoFolder

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pair_rows(photos: PhotoFolder) -> list[dict[str, Any]]:
    """Rows with the bytes of both images in place of their paths."""
    return [
        {**row, **{what: (photos.root / row[what]).read_bytes() for what in ("source", "target")}}
        for row in photos.rows
    ]


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], *, group: int = 4, raw: bool = False) -> Path:
    """`rows` with `bytes` values as images: a struct as HF `datasets` writes it, or raw bytes."""
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if name in ("source", "target", "mask", "before") and not all(isinstance(v, str) for v in values):
            kind = pa.binary() if raw else IMAGE
            cells = [{"bytes": v, "path": None} if isinstance(v, bytes) and not raw else v for v in values]
            columns[name] = pa.array(cells, kind)
        else:
            columns[name] = pa.array(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A plain tar of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def tar_members(rows: Sequence[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """A shard's members: both images and a JSON of the words."""
    members = []
    for number, row in enumerate(rows):
        words = {name: value for name, value in row.items() if not isinstance(value, bytes)}
        members += [
            (f"{number:05d}.source.png", row["source"]), (f"{number:05d}.target.png", row["target"]),
            (f"{number:05d}.json", json.dumps(words).encode()),
        ]  # fmt: skip
    return members


def write_hub_layout(root: Path, rows: Sequence[dict[str, Any]], splits: dict[str, slice], shards: int = 2) -> Path:
    """A folder as a hub has it: `data/SPLIT-00000-of-00002.parquet` and a README with a YAML header."""
    header = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, part in splits.items():
        mine = rows[part]
        size = -(-len(mine) // shards)
        for shard in range(shards):
            name = f"{split}-{shard:05d}-of-{shards:05d}.parquet"
            write_parquet(root / "data" / name, mine[shard * size : (shard + 1) * size])
        header += [f"  - split: {split}", f"    path: data/{split}-*"]
    (root / "README.md").write_text("\n".join([*header, "---", "# Pairs", ""]))
    return root


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
