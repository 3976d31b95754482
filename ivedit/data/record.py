"""One image pair, what a reader of pairs must offer, and the table of readers.

A reader knows the pairs of one split by index. It separates three things, because they cost differently: the words
(cheap, needed for all pairs at once), the pixels (dear, cached after encoding), and a key that changes whenever the
pixels could have changed (so that a cache never serves stale latents). Pixels are 8-bit by definition, as they are
in image files: two readers of the same images agree to the bit.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ivedit.data import order
from ivedit.registry import Registry

if TYPE_CHECKING:
    from ivedit.config import Config

__all__ = [
    "BadRecord", "PairReader", "PairRecord", "PairTexts", "PixelBatch", "as_float", "build_reader", "find_reader",
    "readers", "register_reader",
]


class BadRecord(Exception):
    """A pair that cannot be used: a corrupt, missing, empty, oversized or refused file.

    Attributes:
        name: What to look for: the pair's id and the file.
        reason: Why it was refused, in plain words.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both in `args`, so that it survives pickling between loader processes
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class PairTexts:
    """The words of one pair; `instructions` holds every alternative (at least one in a usable pair)."""

    id: str
    instructions: tuple[str, ...]
    source_caption: str | None = None
    target_caption: str | None = None
    operation: str | None = None


@dataclass
class PairRecord:
    """One pair, ready to look at.

    Attributes:
        id: Unique in its reader.
        source, target: (3, H, W) float32 in [0, 1], multiples of 1/255.
        instruction: The words of the edit.
        source_caption, target_caption: Descriptions of the two images, where known.
        mask: (1, H, W) float32, 1 where the edit changes something, where known.
        operation: Kind of edit, where known.
        alternatives: All instructions of the pair, where there are several.
    """

    id: str
    source: Tensor
    target: Tensor
    instruction: str
    source_caption: str | None = None
    target_caption: str | None = None
    mask: Tensor | None = None
    operation: str | None = None
    alternatives: tuple[str, ...] = ()


@dataclass
class PixelBatch:
    """Pixels of the usable ones among some asked-for pairs.

    Attributes:
        indices: (B,) reader indices of the rows, in the order asked for.
        source, target: (B, 3, H, W) uint8.
        bad: The pairs left out.
    """

    indices: list[int]
    source: Tensor
    target: Tensor
    bad: list[tuple[int, BadRecord]]


def as_float(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


class PairReader(ABC):
    """Pairs of one split, by index from 0 to len - 1.

    Args:
        seed: Decides the epoch's choice among several instructions, and mirroring.
        flip: Chance to mirror a pair in an epoch.
    """

    parallel = True  # may be used in loader processes

    def __init__(self, *, seed: int = 0, flip: float = 0.0) -> None:
        self.seed = seed
        self.flip = flip
        self._cut: Sequence[tuple[int, int]] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of pairs of the split."""

    @abstractmethod
    def texts(self, indices: Sequence[int]) -> list[PairTexts]:
        """The words of some pairs, without touching their pixels."""

    @abstractmethod
    def load(self, index: int) -> PairRecord:
        """One pair as it is, before any choice of an epoch.

        Raises:
            BadRecord: the pair cannot be used.
        """

    @abstractmethod
    def keys(self, indices: Sequence[int]) -> list[str]:
        """For each pair a string that differs whenever the pixels of `load_batch` may differ (files, transform)."""

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int] | None] | None:
        """(height, width) in pixels of each pair's source as it would be shown, for `data.buckets`.

        Cheap: from an image's header or a column, nothing is decoded. A pair whose size cannot be told (a missing or
        damaged file) is None in the list. A reader that cannot offer other sizes than the configured one returns
        None for all, as this does.
        """
        return None

    def cut_to(self, sizes: Sequence[tuple[int, int]]) -> None:
        """From now on pair i comes at `sizes[i]` (height, width), and its key says so.

        A reader that reports `sizes` must ask `size_of(index)` wherever it scales and crops, and in `keys`.
        """
        if len(sizes) != len(self):
            raise ValueError(f"{len(sizes)} sizes for {len(self)} pairs")
        self._cut = sizes

    def size_of(self, index: int) -> tuple[int, int] | None:
        """(height, width) that `cut_to` gave the pair; None: the configured size."""
        return None if self._cut is None else self._cut[index]

    def load_batch(self, indices: Sequence[int]) -> PixelBatch:
        """Pixels of several pairs, all of one size. Readers that can make many at once override this."""
        kept: list[int] = []
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        bad: list[tuple[int, BadRecord]] = []
        for index in indices:
            try:
                source, target = self.load_pixels(int(index))
            except BadRecord as problem:
                bad.append((int(index), problem))
                continue
            kept.append(int(index))
            sources.append(source)
            targets.append(target)
        empty = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        return PixelBatch(
            kept, torch.stack(sources) if kept else empty, torch.stack(targets) if kept else empty, bad
        )

    def load_pixels(self, index: int) -> tuple[Tensor, Tensor]:
        """Source and target (3, H, W) uint8 of one pair.

        Raises:
            BadRecord: the pair cannot be used.
        """
        record = self.load(index)
        return _as_bytes(record.source), _as_bytes(record.target)

    def fingerprint(self) -> str:
        """Changes with any pair's words or pixels."""
        digest = hashlib.sha256()
        everything = range(len(self))
        for key, texts in zip(self.keys(everything), self.texts(everything), strict=True):
            digest.update(f"{key}\n{texts!r}\n".encode())
        return digest.hexdigest()

    def choices(self, texts: Sequence[PairTexts], indices: Sequence[int], epoch: int) -> list[int]:
        """Which of its instructions each pair uses in an epoch."""
        counts = np.array([max(1, len(words.instructions)) for words in texts], dtype=np.int64)
        return order.choose(self.seed, "instruction", epoch, np.asarray(indices, dtype=np.int64), counts).tolist()

    def mirrored(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """(B,) bool, which pairs are mirrored in an epoch, before looking at their words."""
        return order.uniform(self.seed, "mirror", epoch, indices) < self.flip

    def read(self, index: int, epoch: int = 0) -> PairRecord:
        """One pair as training sees it in an epoch: with one instruction, mirrored or not.

        Raises:
            BadRecord: the pair cannot be used.
        """
        from ivedit.data.images import names_a_side

        record = self.load(index)
        texts = self.texts([index])[0]
        if texts.instructions:
            record = replace(record, instruction=texts.instructions[self.choices([texts], [index], epoch)[0]])
        if self.mirrored(np.array([index]), epoch)[0] and not names_a_side(texts):
            record = replace(
                record,
                source=record.source.flip(-1),
                target=record.target.flip(-1),
                mask=None if record.mask is None else record.mask.flip(-1),
            )
        return record


def _as_bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)


# An entry builds a reader: (config, split "train" or "val", device for readers that make pixels) -> PairReader.
readers: Registry[Callable[..., PairReader]] = Registry("data reader")
register_reader = readers.register


def build_reader(cfg: Config, split: str, *, device: Any = "cpu") -> PairReader:
    """The reader that `data.reader` names, for one split.

    Args:
        cfg: The run's configuration.
        split: "train" or "val".
        device: Where a reader that makes its pixels makes them.

    Raises:
        ConfigError: no such reader, or it cannot work with this configuration.
    """
    return find_reader(cfg.data.reader)(cfg, split, device=device)


def find_reader(name: str) -> Callable[..., PairReader]:
    """The entry of the table of readers called ``name``; ConfigError when there is none."""
    from ivedit.data import folder, sets, sprites  # noqa: F401  (they register themselves)

    return readers.get(name)
