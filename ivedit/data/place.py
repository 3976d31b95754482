"""Where an image of a pair is: a file, a cell of a parquet file, a member of a tar file, or bytes in memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeAlias

__all__ = ["Cell", "Member", "Place", "state_of"]


class Cell(NamedTuple):
    """An image inside a parquet file: bytes, or a struct of bytes and path as HF `datasets` writes them."""

    file: Path
    number: int  # row of the file
    group: int  # its row group ...
    row: int  # ... and the row inside that
    column: str


class Member(NamedTuple):
    """Bytes inside an uncompressed tar file."""

    file: Path
    name: str
    offset: int
    size: int


Place: TypeAlias = Path | Cell | Member | bytes


def state_of(path: Path) -> str:
    """What changes when a file's bytes change. The change time, which no program can set back, guards against tools
    that keep the modification time; copying a folder therefore costs one new encoding, never a stale one."""
    try:
        stat = path.stat()
    except OSError:
        return f"{path} missing"
    return f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
