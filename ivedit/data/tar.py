"""Samples of WebDataset tar shards, by the place of their bytes: an index instead of a stream.

A sample is all members that share a key, the name up to the first dot after the last slash; the rest of the name is
the column (`0001.source.jpg` -> key `0001`, column `source.jpg`). Nothing is ever extracted: members are read by
offset. Still an archive whose members would leave their folder, or links, are refused by name, because such a file
was made to do harm; pickles are never opened.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ivedit.data.place import Member
from ivedit.errors import ConfigError

__all__ = ["PICKLES", "read_member", "read_samples"]

PICKLES = ("pickle", "pkl", "pyd", "pt", "pth", "ten", "tb", "npy", "npz")  # whatever may hold Python objects
_WORDS_BYTES = 2**20  # a text or JSON member larger than this is refused
_MEMBER_BYTES = 256 * 2**20


def read_samples(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samples of a shard in order: (key, column -> value).

    A `.json` member is parsed, a `.txt` member is text, any other is a `Member`.

    Raises:
        ConfigError: the shard is no plain tar file, is cut off, or holds what must not be in it.
    """
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                if entry.isdir():
                    continue
                _refuse(path, entry)
                folder, _, name = entry.name.rpartition("/")
                stem, _, column = name.partition(".")
                if not stem or not column:
                    continue  # hidden files and files without a column, as macOS adds them
                key = f"{folder}/{stem}" if folder else stem
                sample = samples.setdefault(key, {})
                column = column.lower()
                if column in sample:
                    raise ConfigError(f"data.path: {path.name!r} holds {entry.name!r} twice")
                sample[column] = _value(tar, Member(path, entry.name, entry.offset_data, entry.size), column)
            # `tarfile` takes a file that ends between two members for whole.
            end = path.stat().st_size
    except (tarfile.TarError, OSError, EOFError) as problem:
        hint = ""
        if path.suffix.lower() in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
            hint = "; members of a compressed archive cannot be found by place, decompress it first"
        raise ConfigError(f"data.path: {path.name!r} cannot be read as tar: {problem}{hint}") from None
    for key, sample in samples.items():
        broken = [v.name for v in sample.values() if isinstance(v, Member) and v.offset + v.size > end]
        if broken:
            raise ConfigError(f"data.path: {path.name!r} is cut off inside {broken[0]!r}")
        yield key, sample


def _refuse(path: Path, entry: tarfile.TarInfo) -> None:
    name = PurePosixPath(entry.name.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts:
        raise ConfigError(f"data.path: {path.name!r} holds {entry.name!r}, which leads out of its folder")
    if not entry.isreg() or entry.issparse():
        raise ConfigError(f"data.path: {path.name!r} holds {entry.name!r}, which is a link or device, not a file")


def _value(tar: tarfile.TarFile, member: Member, column: str) -> Any:
    kind = column.rpartition(".")[2]
    if kind not in ("json", "txt"):
        return member
    if member.size > _WORDS_BYTES:
        raise ConfigError(f"data.path: {member.name!r} in {member.file.name!r} has {member.size} bytes of text")
    assert tar.fileobj is not None
    before = tar.fileobj.tell()
    tar.fileobj.seek(member.offset)
    data = tar.fileobj.read(member.size)
    tar.fileobj.seek(before)
    try:
        text = data.decode("utf-8")
        return json.loads(text) if kind == "json" else text
    except ValueError as problem:
        raise ConfigError(f"data.path: {member.name!r} in {member.file.name!r} is damaged: {problem}") from None


def read_member(member: Member) -> bytes:
    """The bytes of a member.

    Raises:
        OSError: the file is gone, cut off, or the member is larger than an image can be.
    """
    if member.size > _MEMBER_BYTES:
        raise OSError(f"is oversized: {member.size} bytes, at most {_MEMBER_BYTES}")
    with member.file.open("rb") as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if len(data) != member.size:
        raise OSError("is cut off")
    return data
