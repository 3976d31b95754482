"""Filling the cache before training: every pair of a split read and encoded once, unusable ones found.

Ranks that share a disk share the work. What is missing is cut into the chunks that one rank would encode, and each of
them is one rank's, so the cache is the same to the bit. All ranks first share it as if there were one disk. Where each
machine has its own, what a machine then still lacks is shared among its ranks.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ivedit.config import Config
from ivedit.config.buckets import size_name
from ivedit.data.buckets import Buckets
from ivedit.data.cache import (
    DiskLatents,
    DiskTexts,
    Ints,
    LatentStore,
    MemoryLatents,
    MemoryTexts,
    TextStore,
    encode_texts,
    missing_texts,
)
from ivedit.data.pixels import BadShare, read_ahead, read_chunks
from ivedit.data.progress import Progress
from ivedit.data.record import PairReader, PixelBatch
from ivedit.data.shards import Shards, cache_folder, entry_key, text_key
from ivedit.data.text import TextStates
from ivedit.data.words import Words
from ivedit.errors import IveditError
from ivedit.ranks import find_ranks

__all__ = ["Filler", "Split"]

Chunks = list[list[int]]

log = logging.getLogger(__name__)

# Pixels of the sources read and encoded at once; the targets are as many. Few on a CPU, so that the progress bar moves.
_CHUNK_PIXELS = {"cpu": 2**18, "cuda": 2**21}
_WORTH_SAYING = 10**8  # bytes


@dataclass
class Split:
    """One split of the pairs, ready for batches.

    Attributes:
        reader, words, guard: Its pairs, its texts, its count of unusable pairs.
        buckets: Its pairs by picture size.
        usable: (n,) for each pair itself, or the one of its bucket that stands in for it.
        rows: (2, n) row of the pair's source image in the latent store, plain and mirrored (-1: none); the target's
            row is the next. None without a cache.
    """

    reader: PairReader
    words: Words
    guard: BadShare
    buckets: Buckets
    usable: Ints
    rows: Ints | None = None


class Filler:
    """Reads, encodes and stores what is not stored yet.

    Args:
        cfg: `data.cache`, `data.cache_dir`, `data.workers`, `data.encode_batch` are used.
        fingerprint: Of the encoders.
        encode_texts: n texts to (n, L, D) states.
        encode_images: (B, 3, H, W) uint8 and the pairs' names to latents.
        length, width: L and D.
        device: Where `encode_images` works and where batches will be.
        rank, world: Of this process.
    """

    def __init__(
        self,
        cfg: Config,
        fingerprint: str,
        encode_texts: Callable[[list[str]], TextStates],
        encode_images: Callable[[Tensor, list[str]], Tensor],
        *,
        length: int,
        width: int,
        device: torch.device,
        rank: int,
        world: int,
    ) -> None:
        self.cfg = cfg
        self.fingerprint = fingerprint
        self.encode_texts = encode_texts
        self.encode_images = encode_images
        self.length, self.width = length, width
        self.device = device
        self.rank, self.world = rank, world

    def fill(self, splits: dict[str, Split]) -> tuple[LatentStore, dict[str, TextStore]]:
        """Fill the stores for all splits, and set each split's `usable` and `rows`.

        Returns:
            The latents of all splits, and the texts of each.

        Raises:
            IveditError: too many pairs are unusable, or the cache cannot be written.
        """
        latents, new_texts = self._stores()
        texts: dict[str, TextStore] = {}
        rows: list[str] = []
        for name, split in splits.items():
            texts[name] = self._texts(name, split, new_texts())
            keys = self._latents(name, split, latents)
            split.rows = np.full((2, len(split.reader)), -1, dtype=np.int64)
            for mirror, pair_keys in enumerate(keys):
                for index in np.flatnonzero(split.usable == np.arange(len(split.usable))):
                    split.rows[mirror, index] = len(rows)
                    rows += [_source(pair_keys[index]), _target(pair_keys[index])]
        latents.finish(rows, self.device)
        return latents, texts

    def _stores(self) -> tuple[LatentStore, Callable[[], TextStore]]:
        if self.cfg.data.cache == "memory":
            return MemoryLatents(), MemoryTexts
        folder = cache_folder(self.cfg.data.cache_dir, self.fingerprint)
        return DiskLatents(Shards(folder / "latents")), lambda: DiskTexts(Shards(folder / "texts"))

    def _in_turns(
        self, store: LatentStore | TextStore, missing: Callable[[], Chunks], encode: Callable[[Chunks, Chunks], None]
    ) -> None:
        """Have everything encoded that is missing, each chunk by one rank of those that share a disk.

        Args:
            store: Where it goes. One in memory is this rank's own, and nothing of it is shared.
            missing: What the store lacks, as it is then.
            encode: Encodes some chunks, of all that are missing.
        """
        if isinstance(store, (DiskLatents, DiskTexts)) and _together():
            for number, count in self._turns():
                store.shards.refresh()
                chunks = missing()
                torch.distributed.barrier()  # all have looked before one writes, so all have the same list
                encode(chunks[number::count], chunks)
                store.flush()
                torch.distributed.barrier()
            store.shards.refresh()
        # Nothing is left but pairs that cannot be read, of which every rank must know, and what somebody has deleted.
        chunks = missing()
        encode(chunks, chunks)

    def _turns(self) -> list[tuple[int, int]]:
        """(this rank's number, how many they are) of the ranks that share in each turn."""
        ranks, turns = find_ranks(), [(self.rank, self.world)]
        if ranks.world == self.world and ranks.here is not None and 1 < ranks.here < ranks.world:
            turns.append((ranks.local, ranks.here))
        return turns

    def _texts(self, name: str, split: Split, store: TextStore) -> TextStore:
        unique = split.words.unique
        keys = [text_key(self.fingerprint, self.length, text) for text in unique]

        def encode(chunks: Chunks, _: Chunks) -> None:
            with Progress(f"encoding {name} texts", sum(map(len, chunks)), show=self.rank == 0) as progress:
                encode_texts(store, unique, keys, chunks, self.encode_texts, progress.advance)

        self._in_turns(store, lambda: missing_texts(store, keys, self.length * self.width), encode)
        store.finish(keys, self.length, self.device)
        return store

    def _latents(self, name: str, split: Split, store: LatentStore) -> list[list[str]]:
        """Encode what the store lacks and find the unusable pairs; returns keys per pair: plain, mirrored if wanted."""
        reader = split.reader
        pixels = reader.keys(range(len(reader)))
        variants = ["plain", "mirrored"] if split.words.sided is not None else ["plain"]
        keys = [[entry_key("pair", self.fingerprint, key, variant) for key in pixels] for variant in variants]

        def missing() -> Chunks:
            lacking = (i for i in range(len(reader)) if any(_target(group[i]) not in store for group in keys))
            return self._chunks(split, list(lacking))

        def encode(chunks: Chunks, everything: Chunks) -> None:
            self._encode_pairs(name, split, store, keys, chunks, [i for chunk in everything for i in chunk])

        self._in_turns(store, missing, encode)
        split.guard.note(range(len(reader)), [])
        good = np.array([i not in split.guard.bad for i in range(len(reader))])
        if not good.any():
            raise IveditError(f"none of the {len(reader)} {name} pairs can be read")
        split.usable = split.buckets.stand_ins(good)
        group = self.world * (self.cfg.train.batch_size if name == "train" else 1)
        for size, members in zip(split.buckets.sizes, split.buckets.members, strict=True):
            if len(members) >= group and not good[members].any():
                raise IveditError(
                    f"none of the {len(members)} {name} pairs of size {size_name(size)} can be read: mend or remove "
                    "them, or leave that size out of data.buckets"
                )
        return keys

    def _encode_pairs(
        self, name: str, split: Split, store: LatentStore, keys: list[list[str]], chunks: Chunks, everything: list[int]
    ) -> None:
        """Encode some chunks of ``everything``, which all ranks together encode."""
        with Progress(f"encoding {name} pairs", sum(map(len, chunks)), show=self.rank == 0) as progress:
            pixels = read_chunks(split.reader, chunks, workers=self.cfg.data.workers)
            if self.cfg.data.workers == 0 and split.reader.parallel and len(chunks) > 1:
                pixels = read_ahead(pixels)  # the next files are decoded while these are encoded
            announced = False
            for batch, chunk in zip(pixels, chunks, strict=True):
                split.guard.note(chunk, batch.bad)
                if batch.indices:
                    per_pixel = self._encode_pixel_batch(batch, split, store, keys)
                    if not announced:
                        self._announce(name, split, everything, per_pixel * len(keys), store)
                        announced = True
                progress.advance(len(chunk))

    def _announce(self, name: str, split: Split, indices: list[int], per_pixel: float, store: LatentStore) -> None:
        """Say early what the latents of these pairs will take: it may be hours before a disk is full."""
        numbers, counts = np.unique(split.buckets.of[indices], return_counts=True)
        pixels = sum(int(n) * math.prod(split.buckets.sizes[i]) for i, n in zip(numbers, counts, strict=True))
        size = per_pixel * pixels
        if size < _WORTH_SAYING or self.rank:
            return
        if not isinstance(store, DiskLatents):
            log.info("latents of %d %s pairs will take %.1f GB of memory", len(indices), name, size / 1e9)
            return
        folder = store.shards.folder
        free = shutil.disk_usage(folder).free
        say = log.warning if free < size else log.info
        say(
            "latents of %d %s pairs will take %.1f GB in %s, which has %.1f GB free",
            len(indices), name, size / 1e9, folder, free / 1e9,
        )  # fmt: skip

    def _chunks(self, split: Split, indices: list[int]) -> Chunks:
        """`indices` cut into lists of one bucket that are read and encoded at once."""
        at_once = _CHUNK_PIXELS.get(self.device.type, _CHUNK_PIXELS["cpu"])
        wanted = np.array(indices, dtype=np.int64)
        numbers = split.buckets.of[wanted]
        chunks: Chunks = []
        for number, (height, width) in enumerate(split.buckets.sizes):
            mine = wanted[numbers == number].tolist()
            step = self.cfg.data.encode_batch or max(4, at_once // (height * width))
            chunks += [mine[i : i + step] for i in range(0, len(mine), step)]
        return chunks

    def _encode_pixel_batch(
        self, batch: PixelBatch, split: Split, store: LatentStore, keys: list[list[str]]
    ) -> float:
        """Encode and keep some pairs; returns bytes kept per pixel of a source and variant (the target's included)."""
        ids = [split.words.ids[i] for i in batch.indices]
        both = torch.cat([batch.source, batch.target])
        for mirror, group in enumerate(keys):
            latents = self.encode_images(both.flip(-1) if mirror else both, ids)
            names = [group[i] for i in batch.indices]
            store.add([_source(key) for key in names] + [_target(key) for key in names], latents)
        return 2 * 4 * latents[0].numel() / (both.shape[-2] * both.shape[-1])


def _source(key: str) -> str:
    return f"{key}-source"


def _target(key: str) -> str:
    return f"{key}-target"


def _together() -> bool:
    """Whether there is a process group to meet in."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
