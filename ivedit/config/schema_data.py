"""The settings of image pairs: where they come from, and how they become batches.

See `ivedit.config.schema`, which puts the sections together; nothing heavy is imported here either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ivedit.config.declare import declare

__all__ = ["DataConfig"]

_f = declare


@dataclass
class DataConfig:
    """Image pairs (source, edited, instruction)."""

    reader: str = _f("sprites", "Where pairs come from (a registry name): sprites, folder, or one from `plugins`.")
    pairs: int = _f(13000, "Number of distinct training pairs.", min=1)
    validation_pairs: int = _f(512, "Number of held-out pairs for the validation loss.", min=1)
    operations: list[str] = _f(
        [], "Sprites: only these edit operations; empty: all. See docs/sprites.md for their names."
    )
    path: Optional[str] = _f(None, "folder: the directory that holds the table and the images.")
    table: str = _f("pairs.csv", "folder: the CSV or JSONL table, relative to data.path.")
    columns: dict[str, str] = _f(
        {}, "folder: column of the table for each field of a pair, e.g. {source: src_img, target: edited_img}."
    )
    height: int = _f(64, "Height in pixels that pairs are resized and cropped to.", min=16)
    width: int = _f(64, "Width in pixels that pairs are resized and cropped to.", min=16)
    unequal_size: str = _f(
        "refuse", "A pair whose two images differ in size.", choices=("refuse", "resize")
    )
    flip: float = _f(
        0.0, "Chance to mirror both images; never when the instruction names left or right.", min=0, max=1
    )
    null_edits: float = _f(
        0.0, "Share of samples with an empty instruction and target = source, which teaches to keep.", min=0, max=1
    )
    bad_share: float = _f(
        0.01, "Stop when more than this share of the records read is corrupt or missing.", min=0, max=1
    )
    workers: int = _f(0, "Loader processes.", min=0)
    cache: str = _f(
        "memory", "Encoded latents and texts: recomputed each time, kept in memory, or kept on disk.",
        choices=("none", "memory", "disk"),
    )
    cache_dir: str = _f("cache", "disk: the folder, relative to the working directory.")
