"""Parts of a backbone that come when they are needed and leave when they are not.

The text encoder of real Wan is larger than most transformers it writes to, and all it does is done before the first
training step. So a backbone may begin as its configs alone, have its encoders for a while, and then its transformer.
"""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ivedit.backbone.loading import read_parts
from ivedit.config.wan_folder import COMPONENTS
from ivedit.errors import IveditError

__all__ = ["Origin", "bring", "drop"]

logger = logging.getLogger("ivedit.backbone")


@dataclass(frozen=True)
class Origin:
    """Where a backbone's parts are read from, and how the frozen weights are stored."""

    path: str | Path
    dtype: torch.dtype


def bring(backbone: Any, *parts: str, device: str | torch.device | None = None) -> None:
    """Load those of ``parts`` that the backbone does not have.

    Args:
        backbone: from `Backbone.load`.
        parts: of transformer, vae, text_encoder (which brings its tokenizer).
        device: where they go; None: where the backbone is.

    Raises:
        IveditError: a backbone made in memory lacks one; otherwise as `Backbone.load`.
    """
    missing = [part for part in parts if part not in COMPONENTS or getattr(backbone, part) is None]
    if not missing:
        return
    if backbone.origin is None:
        raise IveditError(f"this backbone was made in memory without its {' and '.join(missing)}")
    place = backbone.device if device is None else torch.device(device)
    names = " and ".join(part.replace("_", " ") for part in missing)
    logger.info("loading the %s of %s ...", names, backbone.spec.name)
    read = read_parts(
        backbone.origin.path,
        dtype=backbone.origin.dtype,
        components=missing,
        text_length=backbone.spec.text_length,
        device=place,
    )
    for part in missing:
        setattr(backbone, part, getattr(read, part).requires_grad_(False).eval().to(place))
    if read.tokenizer is not None:
        backbone.tokenizer = read.tokenizer


def drop(backbone: Any, *parts: str) -> None:
    """Let parts go, with their memory on the host and on the GPU; `bring` reads them again."""
    gone = [part for part in parts if getattr(backbone, part) is not None]
    for part in gone:
        setattr(backbone, part, None)
    if gone:
        gc.collect()  # modules hold each other in circles
        if backbone.device.type == "cuda":
            torch.cuda.empty_cache()
