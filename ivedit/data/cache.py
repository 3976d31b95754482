"""Latents and text states that are encoded once: kept in memory (on a GPU if they fit) or on disk.

The frozen encoders give the same output in every epoch, and encoding costs more than a training step. An entry's key
holds everything that its value depends on: the pixels (file state, transform), the encoder's fingerprint, for texts
the words and the padded length. A change of any of them is another key, so nothing stale can come back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ivedit.data.shards import Shards
from ivedit.data.text import TextStates
from ivedit.errors import IveditError

__all__ = [
    "DiskLatents", "DiskTexts", "LatentStore", "MemoryLatents", "MemoryTexts", "TextStore", "encode_texts",
    "missing_texts",
]

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]

_SHARD_BYTES = 32 * 2**20
_SHARD_SECONDS = 30.0  # a killed run loses at most this much encoding
_WORTH_SAYING = 10**8  # bytes
_TEXT_ELEMENTS = 2**24  # states encoded at once, before padding is cut off


class LatentStore(Protocol):
    """Latents (Z, F, h, w) of any number of shapes by key while filling, by row number afterwards."""

    def __contains__(self, key: str) -> bool: ...
    def add(self, keys: Sequence[str], latents: Tensor) -> None:
        """Keep latents (n, Z, F, h, w) under n keys."""
    def finish(self, keys: Sequence[str], device: torch.device) -> None:
        """End filling: row i of `gather` is `keys[i]` from now on."""
    def gather(self, rows: Ints) -> Tensor:
        """(B, Z, F, h, w) float32 on the device given to `finish`; rows of one shape."""


class TextStore(Protocol):
    """Text states by key while filling, by number afterwards; stored without padding."""

    def __contains__(self, key: str) -> bool: ...
    def add(self, keys: Sequence[str], texts: TextStates) -> None:
        """Keep the real tokens of n texts under n keys."""
    def finish(self, keys: Sequence[str], length: int, device: torch.device) -> None:
        """End filling: number i of `gather` is `keys[i]`, padded to `length`."""
    def gather(self, numbers: Ints) -> TextStates:
        """B texts on the device given to `finish`."""


class MemoryLatents:
    """One tensor of all rows of a shape. A GPU keeps them if they take at most a quarter of the free memory."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[torch.Size, int]] = {}
        self._counts: dict[torch.Size, int] = {}
        self._parts: dict[torch.Size, list[Tensor]] = {}
        self._bytes = 0
        self._filling: torch.device | None = None  # where parts wait for `finish`; None: where they were made
        self._all: list[Tensor] = []
        self._shape_of = self._row_of = np.empty(0, dtype=np.int64)
        self._device = torch.device("cpu")

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, keys: Sequence[str], latents: Tensor) -> None:
        shape = latents.shape[1:]
        first = self._counts.get(shape, 0)
        # A key may come twice: two rows of a table with the same images and other words.
        self._places.update((key, (shape, first + i)) for i, key in enumerate(keys))
        self._counts[shape] = first + len(keys)
        self._parts.setdefault(shape, []).append(latents.to(self._filling or latents.device, torch.float32))
        self._bytes += 4 * latents.numel()
        if self._filling is None and not _fits(self._bytes, latents.device):
            # What has been encoded must not crowd out the encoders, which work on the same device.
            self._filling = torch.device("cpu")
            self._parts = {shape: [part.cpu() for part in parts] for shape, parts in self._parts.items()}

    def finish(self, keys: Sequence[str], device: torch.device) -> None:
        self._device = device
        home = device if _fits(self._bytes, device) else torch.device("cpu")
        if self._bytes >= _WORTH_SAYING:
            log.info("latents: %.1f GB in the memory of %s", self._bytes / 1e9, home)
        numbers = {shape: number for number, shape in enumerate(self._parts)}
        self._shape_of = np.array([numbers[self._places[key][0]] for key in keys], dtype=np.int64)
        self._row_of = np.empty(len(keys), dtype=np.int64)
        for shape, number in numbers.items():
            mine = np.flatnonzero(self._shape_of == number).tolist()
            order = torch.tensor([self._places[keys[i]][1] for i in mine], dtype=torch.long, device=home)
            everything = torch.cat([part.to(home) for part in self._parts[shape]])
            self._parts[shape] = []  # a copy less at any time
            straight = bool((order == torch.arange(len(order), device=home)).all())
            self._all.append(everything if straight and len(order) == len(everything) else everything[order])
            self._row_of[mine] = np.arange(len(mine))

    def gather(self, rows: Ints) -> Tensor:
        shape = self._shape_of[rows[0]]
        assert (self._shape_of[rows] == shape).all(), "a batch of several shapes"
        latents = self._all[shape]
        index = torch.from_numpy(self._row_of[rows]).to(latents.device, non_blocking=True)
        return latents.index_select(0, index).to(self._device, non_blocking=True)


class DiskLatents:
    """Rows in shards, read when a batch needs them.

    Args:
        shards: Where they are.
    """

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._waiting: dict[torch.Size, tuple[list[str], list[Tensor]]] = {}
        self._bytes = 0
        self._since = time.monotonic()
        self._places: list[tuple[int, int]] = []
        self._device = torch.device("cpu")

    def __contains__(self, key: str) -> bool:
        return key in self.shards

    def add(self, keys: Sequence[str], latents: Tensor) -> None:
        names, parts = self._waiting.setdefault(latents.shape[1:], ([], []))
        names += keys
        parts.append(latents.float().cpu())
        self._bytes += 4 * latents.numel()
        if self._bytes >= _SHARD_BYTES or time.monotonic() - self._since >= _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been added since the last shard, a shard for each shape."""
        for names, parts in self._waiting.values():
            self.shards.write(names, {"latents": torch.cat(parts)})
        self._waiting, self._bytes, self._since = {}, 0, time.monotonic()

    def finish(self, keys: Sequence[str], device: torch.device) -> None:
        self.flush()
        self._device = device
        self._places = [self.shards.place(key) for key in keys]

    def gather(self, rows: Ints) -> Tensor:
        places = [self._places[row] for row in rows.tolist()]
        return torch.cat([self.shards.read(s, "latents", r, r + 1) for s, r in places]).to(self._device)


class MemoryTexts:
    """All real tokens of all texts in one (tokens, D) tensor; padding is put back when a batch is made."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._parts: list[Tensor] = []
        self._lengths: list[int] = []
        self._flat = torch.empty(0)
        self._starts = self._counts = torch.empty(0, dtype=torch.long)
        self._length = 0
        self._device = torch.device("cpu")

    def __contains__(self, key: str) -> bool:
        return key in self._numbers

    def add(self, keys: Sequence[str], texts: TextStates) -> None:
        for key in keys:
            self._numbers[key] = len(self._numbers)
        self._parts.append(texts.states[texts.mask])
        self._lengths += texts.lengths.tolist()

    def finish(self, keys: Sequence[str], length: int, device: torch.device) -> None:
        self._device, self._length = device, length
        size = sum(part.numel() * part.element_size() for part in self._parts)
        home = device if _fits(size, device) else torch.device("cpu")
        self._flat = torch.cat([part.to(home) for part in self._parts])
        self._parts = []
        counts = torch.tensor(self._lengths, dtype=torch.long)
        starts = counts.cumsum(0) - counts
        order = torch.tensor([self._numbers[key] for key in keys], dtype=torch.long)
        self._starts, self._counts = starts[order].to(home), counts[order].to(home)

    def gather(self, numbers: Ints) -> TextStates:
        index = torch.from_numpy(numbers).to(self._flat.device, non_blocking=True)
        place = torch.arange(self._length, device=index.device)
        mask = place < self._counts[index][:, None]
        rows = self._starts[index][:, None] + place
        if index.device.type == "cpu":
            return _padded(self._flat[rows[mask]], mask, self._device)
        rows.clamp_(max=len(self._flat) - 1)  # picking the real ones would wait for the GPU
        return TextStates(self._flat[rows].masked_fill_(~mask[..., None], 0), mask)


class DiskTexts:
    """Real tokens of texts in shards, read when a batch needs them.

    Args:
        shards: Where they are.
    """

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._keys: list[str] = []
        self._parts: list[Tensor] = []
        self._lengths: list[int] = []
        self._since = time.monotonic()
        self._places: list[tuple[int, int]] = []
        self._starts: dict[int, list[int]] = {}
        self._length = 0
        self._device = torch.device("cpu")

    def __contains__(self, key: str) -> bool:
        return key in self.shards

    def add(self, keys: Sequence[str], texts: TextStates) -> None:
        self._keys += keys
        self._parts.append(texts.states[texts.mask].cpu())
        self._lengths += texts.lengths.tolist()
        held = sum(part.numel() * part.element_size() for part in self._parts)
        if held >= _SHARD_BYTES or time.monotonic() - self._since >= _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been added since the last shard."""
        if self._keys:
            starts = torch.tensor([0, *self._lengths], dtype=torch.long).cumsum(0)
            self.shards.write(self._keys, {"states": torch.cat(self._parts), "starts": starts})
        self._keys, self._parts, self._lengths, self._since = [], [], [], time.monotonic()

    def finish(self, keys: Sequence[str], length: int, device: torch.device) -> None:
        self.flush()
        self._device, self._length = device, length
        self._places = [self.shards.place(key) for key in keys]
        rows = dict.fromkeys(shard for shard, _ in self._places)
        self._starts = {shard: self.shards.read(shard, "starts").tolist() for shard in rows}

    def gather(self, numbers: Ints) -> TextStates:
        parts = []
        for shard, row in (self._places[number] for number in numbers.tolist()):
            start, stop = self._starts[shard][row : row + 2]
            parts.append(self.shards.read(shard, "states", start, stop))
        counts = torch.tensor([len(part) for part in parts])
        return _padded(torch.cat(parts), torch.arange(self._length) < counts[:, None], self._device)


def _padded(tokens: Tensor, mask: Tensor, device: torch.device) -> TextStates:
    """Real tokens (n, D) of texts and where they are (B, L), both on the CPU, as a batch padded on `device`.

    Some twenty tokens of 512 are real: padding 8 of Wan's texts on the CPU takes 30 ms, picking the real ones 0.3 ms.
    """
    rows = mask.flatten().nonzero().squeeze(1)
    if device.type == "cuda":  # a copy from pinned memory is not waited for
        tokens, rows, mask = (t.pin_memory().to(device, non_blocking=True) for t in (tokens, rows, mask))
    states = torch.zeros(mask.numel(), tokens.shape[-1], dtype=tokens.dtype, device=device)
    return TextStates(states.index_copy_(0, rows, tokens).view(*mask.shape, -1), mask)


def _fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may stay on a device without crowding out training."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= free / 4


def missing_texts(store: TextStore, keys: Sequence[str], width: int) -> list[list[int]]:
    """Numbers of the texts whose key the store does not have, in the chunks in which they are encoded.

    Args:
        store: Is asked.
        keys: Of all texts.
        width: L * D of their states, from which the number of texts encoded at once follows.
    """
    missing = [i for i, key in enumerate(keys) if key not in store]
    step = min(512, max(1, _TEXT_ELEMENTS // width))
    return [missing[begin : begin + step] for begin in range(0, len(missing), step)]


def encode_texts(
    store: TextStore,
    texts: Sequence[str],
    keys: Sequence[str],
    chunks: Sequence[Sequence[int]],
    encode: Callable[[list[str]], TextStates],
    advance: Callable[[int], None],
) -> None:
    """Encode these chunks of `texts`, by number.

    Args:
        store: Takes the states.
        texts, keys: Different texts and their keys.
        chunks: From `missing_texts`.
        encode: n texts to (n, L, D) states.
        advance: Called with the number of texts done.

    Raises:
        IveditError: the encoder's mask does not begin with the real tokens, or its output is not finite.
    """
    for chunk in chunks:
        states = encode([texts[i] for i in chunk])
        places = torch.arange(states.mask.shape[1], device=states.mask.device)
        if not bool((states.mask == (places < states.lengths[:, None])).all()):
            raise IveditError("the text encoder's mask has gaps: texts must be padded on the right")
        if not bool(torch.isfinite(states.states).all()):
            raise IveditError(f"the text encoder's output is not finite, e.g. for {texts[chunk[0]]!r}")
        store.add([keys[i] for i in chunk], states)
        advance(len(chunk))
