"""The LightningDataModule: pairs in, batches of latents and text states out, resumable to the batch.

With `data.cache` memory or disk every pair is read and encoded once, before the first step, and a batch is then a
few gathers (on the GPU if the store fits there): no loader processes. With none, pairs are read batch by batch, by
loader processes if `data.workers` says so, and encoded in the training process, which alone may use the GPU.
Either way the same choices are made (see `ivedit.data.words`), so both give the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from ivedit.config import Config
from ivedit.data.buckets import Buckets, sort_pairs
from ivedit.data.cache import Ints, LatentStore, TextStore
from ivedit.data.fill import Filler, Split
from ivedit.data.loader import PairLoader, Position
from ivedit.data.pixels import BadShare, read_chunks
from ivedit.data.record import PairReader, PixelBatch, as_float, build_reader
from ivedit.data.text import TextStates
from ivedit.data.words import Picked, Words
from ivedit.errors import ConfigError, IveditError

__all__ = ["PairDataModule"]


class PairDataModule(L.LightningDataModule):
    """Batches for training and validation.

    A batch is a dict: `ids` (B names); `source`, `target` (B, Z, 1, h, w) float32 latents of one size (another batch
    may have another, see `ivedit.data.buckets`); `text_target`, `text_gate`, `text_source`: `TextStates` of B texts
    with dropout, null edits and shuffling applied (training) or without dropout and null edits (validation);
    `numbers` (B,) int64 places of the pairs in their split, where a stand-in has its predecessor's. Tensors are on
    the encoder's device.

    Resuming: the position (epoch, micro-batch) of the next batch is in `state_dict()`, which Lightning writes into
    every checkpoint, and `load_state_dict()` or `set_position()` brings it back; the loader then begins there.

    Args:
        cfg: The run's configuration.
        encode_pixels: (B, 1, 3, H, W) float32 in [0, 1] to latents (B, Z, 1, h, w).
        encode_text: B texts to padded `TextStates`.
        fingerprint: Of both encoders; part of every cache key.
        device: Where pixels go for encoding and where batches are; None: where `encode_text` puts its output.
        rank, world: Of this process; None: the trainer's, or 0 of 1.
        multiple: Heights and widths must divide by it (the backbone's `size_multiple`).
    """

    def __init__(
        self,
        cfg: Config,
        encode_pixels: Callable[[Tensor], Tensor],
        encode_text: Callable[[list[str]], TextStates],
        fingerprint: str,
        *,
        device: torch.device | str | None = None,
        rank: int | None = None,
        world: int | None = None,
        multiple: int = 16,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder_fingerprint = fingerprint
        self._encode_pixels = encode_pixels
        self._encode_text = encode_text
        self._device = None if device is None else torch.device(device)
        self._rank, self._world = rank, world
        self._multiple = multiple
        self.position = Position()
        self._splits: dict[str, Split] = {}
        self._latents: LatentStore | None = None
        self._texts: dict[str, TextStore] = {}
        self._empty: TextStates | None = None

    # ---- set-up -----------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """This process among all that train."""
        return self._rank if self._rank is not None else (self.trainer.global_rank if self.trainer else 0)

    @property
    def world(self) -> int:
        """How many processes train."""
        return self._world if self._world is not None else (self.trainer.world_size if self.trainer else 1)

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of this rank in one epoch."""
        return self._split("train").buckets.batches_per_epoch(self.cfg.train.batch_size, self.world)

    @property
    def training_pairs(self) -> int:
        """Pairs of one epoch, those included that a bucket's last batch leaves out."""
        return len(self._split("train").words.ids)

    def buckets(self, split: str) -> Buckets:
        """The pairs of "train" or "val" by picture size."""
        return self._split(split).buckets

    def reader(self, split: str) -> PairReader:
        """The reader of "train" or "val"."""
        return self._split(split).reader

    def setup(self, stage: str | None = None) -> None:
        """Make the readers and fill the cache; a second call does nothing.

        Raises:
            ConfigError: the configuration and the data do not fit together.
            IveditError: too many pairs are unusable, or the cache cannot be written.
        """
        if self._splits:
            return
        device = self._place()
        cached = self.cfg.data.cache != "none"
        # Without a cache, loader processes make the pixels, and they must not touch the GPU.
        making = device if cached or self.cfg.data.workers == 0 else torch.device("cpu")
        splits = {}
        for name in ("train", "val"):
            reader = build_reader(self.cfg, name, device=making)
            words = Words(reader, self.cfg.text, self.cfg.data.null_edits, training=name == "train")
            guard = BadShare(len(reader), self.cfg.data.bad_share, name)
            buckets = sort_pairs(reader, self.cfg, self._multiple, show=self.rank == 0)
            splits[name] = Split(reader, words, guard, buckets, np.arange(len(reader), dtype=np.int64))
        needed = self.cfg.train.batch_size * self.world
        if len(splits["train"].words.ids) < needed:
            raise ConfigError(
                f"train.batch_size={self.cfg.train.batch_size} on {self.world} device(s) needs {needed} training "
                f"pairs, but there are {len(splits['train'].words.ids)}: lower train.batch_size or raise data.pairs"
            )
        if not splits["val"].buckets.in_order(1, self.rank, self.world):
            each = " of one size" if self.cfg.data.buckets else ""
            raise ConfigError(
                f"data.validation_pairs: {self.world} devices need at least as many validation pairs{each}"
            )
        for name, split in splits.items():
            split.buckets.announce(name, asked=bool(self.cfg.data.buckets))
        splits["train"].buckets.check_filled(self.cfg.train.batch_size, self.world)
        # Only now: a table without its columns is told before 11 GB of text encoder are read.
        if self._empty is None:
            self._empty = self._encode([""])
        if cached:
            filler = Filler(
                self.cfg, self.encoder_fingerprint, self._encode, self._encode_images,
                length=self._empty.states.shape[1], width=self._empty.states.shape[2],
                device=device, rank=self.rank, world=self.world,
            )
            self._latents, self._texts = filler.fill(splits)
        self._splits = splits

    def _place(self) -> torch.device:
        """Where batches are made; where nobody has said, it is where the encoder's states are."""
        if self._device is None:
            self._empty = self._encode([""])
            self._device = self._empty.device
        return self._device

    def _split(self, name: str) -> Split:
        if not self._splits:
            self.setup()
        return self._splits[name]

    def _encode(self, texts: list[str]) -> TextStates:
        with torch.no_grad():
            encoded = self._encode_text(texts)
        states = TextStates(_normal(encoded.states), _normal(encoded.mask))
        return states if self._device is None else states.to(self._device)

    def _encode_images(self, pixels: Tensor, ids: list[str]) -> Tensor:
        """(B, 3, H, W) uint8 to latents (B, Z, 1, h, w) float32."""
        assert self._device is not None
        with torch.no_grad():
            latents = _normal(self._encode_pixels(as_float(pixels.to(self._device))[:, None])).float()
        if not bool(torch.isfinite(latents).all()):
            finite = torch.isfinite(latents).flatten(1).all(1).tolist()
            name = ids[finite.index(False) % len(ids)]
            raise IveditError(f"the encoded pair {name} is not finite: try backbone.dtype=float32")
        return latents

    # ---- batches ----------------------------------------------------------------------------------------------

    def train_dataloader(self) -> PairLoader:
        """This rank's training batches from the current position on."""
        buckets = self._split("train").buckets

        def plan(epoch: int) -> list[Ints]:
            return buckets.epoch(self.cfg.seed, epoch, self.cfg.train.batch_size, self.rank, self.world)

        return PairLoader(self.batches_per_epoch, plan, lambda e, b: self._batches("train", e, b), self.position)

    def val_dataloader(self) -> PairLoader:
        """This rank's validation batches, always the same; the last of each size may be smaller."""
        plan = self._split("val").buckets.in_order(self.cfg.train.batch_size, self.rank, self.world)
        return PairLoader(len(plan), lambda _: plan, lambda e, b: self._batches("val", e, b))

    def _batches(self, name: str, epoch: int, batches: list[Ints]) -> Iterator[dict[str, Any]]:
        split = self._split(name)
        if self._latents is not None:
            for indices in batches:
                yield {**self._cached(name, split, epoch, split.usable[indices]), "numbers": indices}
            return
        chunks = [indices.tolist() for indices in batches]
        stream = read_chunks(split.reader, chunks, workers=self.cfg.data.workers, replace=True)
        for pixels, indices in zip(stream, batches, strict=True):
            split.guard.note(pixels.indices, pixels.bad)
            yield {**self._streamed(split.words, epoch, pixels), "numbers": indices}

    def _cached(self, name: str, split: Split, epoch: int, indices: Ints) -> dict[str, Any]:
        assert self._latents is not None and split.rows is not None
        picked = split.words.pick(epoch, indices)
        source = split.rows[picked.mirrored.astype(np.int64), indices]
        store = self._texts[name]
        return {
            "ids": [split.words.ids[i] for i in indices],
            "source": self._latents.gather(source),
            "target": self._latents.gather(np.where(picked.null, source, source + 1)),
            **self._text_entries(picked, store.gather),
        }

    def _streamed(self, words: Words, epoch: int, pixels: PixelBatch, keys: Ints | None = None) -> dict[str, Any]:
        indices = np.array(pixels.indices, dtype=np.int64)
        picked = words.pick(epoch, indices, keys)
        ids = [words.ids[i] for i in indices]
        both = torch.stack([pixels.source, pixels.target])
        mirrored = torch.from_numpy(picked.mirrored).to(both.device)[:, None, None, None]
        both = torch.where(mirrored, both.flip(-1), both)
        source, target = self._encode_images(both.flatten(0, 1), ids).chunk(2)
        null = torch.from_numpy(picked.null).to(source.device)[:, None, None, None, None]

        def encode(numbers: Ints) -> TextStates:
            different, back = np.unique(numbers, return_inverse=True)
            return self._encode([words.unique[i] for i in different])[torch.from_numpy(back)]

        return {
            "ids": ids, "source": source, "target": torch.where(null, source, target),
            **self._text_entries(picked, encode),
        }

    def _text_entries(self, picked: Picked, encode: Callable[[Ints], TextStates]) -> dict[str, TextStates]:
        """The three texts of a batch; those that are alike are one object."""
        target = encode(picked.target)
        gate = target if np.array_equal(picked.gate, picked.target) else encode(picked.gate)
        if picked.source.any():
            source = target if np.array_equal(picked.source, picked.target) else encode(picked.source)
        else:
            assert self._empty is not None
            source = self._empty.to(target.device).repeat_interleave(len(picked.source))
        return {"text_target": target, "text_gate": gate, "text_source": source}

    # ---- resuming ---------------------------------------------------------------------------------------------

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """The next training batch is the `batch`-th of `epoch` (both from 0; micro-batches of this rank).

        Raises:
            ValueError: the epoch has no such batch (its length itself means the start of the next epoch).
        """
        length = self.batches_per_epoch
        if epoch < 0 or not 0 <= batch <= length:
            raise ValueError(f"no batch {batch} in epoch {epoch}: an epoch has {length}")
        if batch == length:
            epoch, batch = epoch + 1, 0
        self.position.epoch, self.position.batch = epoch, batch

    def set_micro_batches(self, done: int) -> None:
        """The next training batch is the one after `done` micro-batches since the start of training."""
        self.set_position(*divmod(done, self.batches_per_epoch))

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, and what the position means: it holds for one order of pairs only."""
        return {
            "epoch": self.position.epoch,
            "batch": self.position.batch,
            "pairs": len(self._split("train").words.ids),
            "batch_size": self.cfg.train.batch_size,
            "world": self.world,
            "seed": self.cfg.seed,
            "buckets": self._split("train").buckets.counts() if self.cfg.data.buckets else {},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ConfigError: the order of pairs is another one now, so the position would mean other batches.
        """
        names = {"pairs": "number of training pairs", "batch_size": "train.batch_size",
                 "world": "number of devices", "seed": "seed", "buckets": "division into data.buckets"}
        now = self.state_dict()
        state_dict = {"buckets": {}, **state_dict}  # checkpoints from before there were buckets
        problems = [
            f"resume: the checkpoint was made with another {what} ({state_dict[key]}, now {now[key]}), "
            "so it cannot continue with the same batches; use the same value, or init_from= to start anew"
            for key, what in names.items()
            if state_dict[key] != now[key]
        ]
        if problems:
            raise ConfigError(problems)
        self.set_position(state_dict["epoch"], state_dict["batch"])


def _normal(tensor: Tensor) -> Tensor:
    """A tensor made in inference mode cannot take part in training; a copy of it can."""
    return tensor.clone() if tensor.is_inference() else tensor
