"""The encoders of a run: there while the cache is filled, gone while it trains, never there when nothing is missing.

Real Wan's text encoder is 11 GB in bfloat16, more than most transformers it writes to. It and the VAE are loaded when
the first pair asks for them, each by itself, and dropped before the transformer is loaded. A second start finds every
latent and text in the cache on disk and loads the transformer alone: cached entries are recognised by the digests of
the encoders' files, which are kept beside the cache.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivedit.backbone import Backbone
from ivedit.backbone.identity import encoder_files_fingerprint, file_digest, file_state
from ivedit.backbone.parts import bring, drop
from ivedit.data.cache import DiskTexts
from ivedit.data.shards import Shards, cache_folder, text_key
from ivedit.data.text import TextStates
from ivedit.ranks import find_ranks
from ivedit.runfolder import write_json_atomic

__all__ = ["ENCODERS", "Encoders"]

logger = logging.getLogger("ivedit.training")

ENCODERS = ("vae", "text_encoder")
_MEMO = "encoders.json"
_LARGE = 2**30  # bytes of a file whose reading is worth a word


class Encoders:
    """What `PairDataModule` is given to encode with.

    Args:
        cfg: The run's `Config`.
        backbone: From `Backbone.load` with ``components=()``; has its encoders afterwards only when nothing is cached.

    Attributes:
        fingerprint: Of the encoders' files, part of every cache key. Without a cache on disk it is where the files
            are and how old, which costs nothing.

    Raises:
        IveditError: there is no such backbone.
    """

    def __init__(self, cfg: Any, backbone: Backbone) -> None:
        assert backbone.origin is not None  # what `Backbone.load` gives has one
        self.cfg = cfg
        self.backbone = backbone
        self._on_disk = cfg.data.cache == "disk"
        digest = _Remembered(Path(cfg.data.cache_dir) / _MEMO) if self._on_disk else file_state
        together = self._on_disk and torch.distributed.is_available() and torch.distributed.is_initialized()
        first = find_ranks().local == 0
        if together and not first:
            torch.distributed.barrier()  # the first rank of this machine reads the files, the others what it found
        self.fingerprint = encoder_files_fingerprint(backbone.origin.path, backbone.origin.dtype, digest)
        if together and first:
            torch.distributed.barrier()

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, T, 3, H, W) in [0, 1] to latents (B, Z, F, h, w); loads the VAE if it is not there."""
        bring(self.backbone, "vae")
        return self.backbone.encode_pixels(pixels)

    def encode_text(self, texts: list[str]) -> TextStates:
        """B texts to states; loads the text encoder if it is not there, but not for an empty text that is cached."""
        if self._on_disk and texts == [""]:
            known = self._cached_empty()
            if known is not None:
                return known
        bring(self.backbone, "text_encoder")
        return self.backbone.encode_text(texts)

    def _cached_empty(self) -> TextStates | None:
        """The states of "", which every run asks for first and every filled cache holds."""
        folder = cache_folder(self.cfg.data.cache_dir, self.fingerprint) / "texts"
        key = text_key(self.fingerprint, self.backbone.spec.text_length, "")
        if not folder.is_dir() or key not in (store := DiskTexts(Shards(folder))):
            return None
        store.finish([key], self.backbone.spec.text_length, self.backbone.device)
        return store.gather(np.zeros(1, dtype=np.int64))

    def release(self) -> None:
        """Drop the encoders, unless every batch is encoded anew."""
        if self.cfg.data.cache != "none":
            drop(self.backbone, *ENCODERS)


class _Remembered:
    """Digests of files, kept in a JSON file for as long as a file's place, size and age stay the same."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, path: Path) -> str:
        state = file_state(path)
        known = self._known()
        if state not in known:
            if path.stat().st_size > _LARGE:
                logger.info("reading %s once, to recognise what it has encoded ...", path.name)
            known[state] = file_digest(path)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self.file, known)
        return known[state]

    def _known(self) -> dict[str, str]:
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            logger.warning("%s is damaged (%s): digests are computed again", self.file, error)
            return {}
        return content if isinstance(content, dict) else {}
