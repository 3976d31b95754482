"""Encoded tensors on disk, found by a key that says exactly what they were made from.

A folder of safetensors files ("shards"), each with some rows and, in its header, their keys. A shard is written
under a temporary name, flushed and renamed: a reader sees whole shards or none, a killed run loses at most the rows
since its last shard, and filling goes on from there. Any number of processes may read and write at once: two that
encode the same rows write them twice, which is harmless.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ivedit.errors import IveditError

__all__ = ["Shards", "cache_folder", "entry_key", "text_key"]

log = logging.getLogger(__name__)

_FORMAT = "ivedit-cache-1"
_ABANDONED = 24 * 3600  # seconds after which a temporary file is a leftover of a killed run


def entry_key(*parts: str) -> str:
    """Hex digest of everything that an entry depends on; the parts cannot run into each other."""
    digest = hashlib.sha256(_FORMAT.encode())
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def cache_folder(cache_dir: str | Path, fingerprint: str) -> Path:
    """Where `data.cache_dir` keeps what the encoders with this fingerprint have made."""
    return Path(cache_dir) / entry_key(fingerprint)[:16]


def text_key(fingerprint: str, length: int, text: str) -> str:
    """Key of a text's states, padded or cut to ``length`` tokens."""
    return entry_key("text", fingerprint, str(length), text)


class Shards:
    """The rows of one folder.

    Args:
        folder: Made if missing.

    Raises:
        IveditError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[Path] = []
        self._known: set[str] = set()
        self._where: dict[str, tuple[int, int]] = {}
        self._open: dict[int, Any] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise IveditError(f"data.cache_dir: cannot make {str(folder)!r} ({problem.strerror})") from None
        self.refresh()

    def refresh(self) -> None:
        """Take in shards that this or another process has finished meanwhile."""
        for path in sorted(self.folder.iterdir()):
            if path.name in self._known:
                continue
            if path.name.startswith(".tmp-"):
                self._sweep(path)
            elif path.suffix == ".safetensors":
                self._take_in(path)

    def _sweep(self, path: Path) -> None:
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
        except FileNotFoundError:
            log.debug("%s was finished or removed by another process", path)

    def _take_in(self, path: Path) -> None:
        self._known.add(path.name)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            keys = json.loads(metadata["keys"]) if metadata.get("format") == _FORMAT else None
        except (SafetensorError, OSError, KeyError, ValueError) as problem:
            log.warning("cache shard %s is damaged (%s): its rows are encoded again", path, problem)
            return
        if keys is None:
            log.warning("cache shard %s is of another format: ignored", path)
            return
        number = len(self._files)
        self._files.append(path)
        for row, key in enumerate(keys):
            self._where[key] = (number, row)

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def __len__(self) -> int:
        return len(self._where)

    def write(self, keys: Sequence[str], tensors: dict[str, Tensor]) -> None:
        """Add one shard; whatever its tensors hold, `keys[i]` names its i-th row.

        Raises:
            IveditError: it cannot be written (a full disk, no permission).
        """
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32] + ".safetensors"
        temporary = self.folder / f".tmp-{os.getpid()}-{uuid.uuid4().hex}"
        try:
            save_file(
                {label: tensor.detach().cpu().contiguous() for label, tensor in tensors.items()},
                temporary,
                metadata={"format": _FORMAT, "keys": json.dumps(list(keys))},
            )
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
        except (OSError, SafetensorError) as problem:
            temporary.unlink(missing_ok=True)
            raise IveditError(
                f"cannot write the cache in {str(self.folder)!r} ({problem}): free some space, or set data.cache=memory"
            ) from None
        self._known.discard(name)
        self._take_in(self.folder / name)

    def place(self, key: str) -> tuple[int, int]:
        """(shard number, row) of a key; KeyError when there is none."""
        return self._where[key]

    def read(self, shard: int, label: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of one tensor of a shard, through the page cache; nothing else of it is read."""
        if shard not in self._open:
            self._open[shard] = safe_open(self._files[shard], framework="pt").__enter__()
        return self._open[shard].get_slice(label)[start:stop]
