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

    reader: str = _f("sprites", "Where pairs come from (a registry name): sprites, folder, set, or one from `plugins`.")
    pairs: int = _f(13000, "Number of distinct training pairs.", min=1)
    validation_pairs: int = _f(512, "Number of held-out pairs for the validation loss.", min=1)
    operations: list[str] = _f(
        [], "Sprites: only these edit operations; empty: all. See docs/sprites.md for their names."
    )
    path: Optional[str] = _f(
        None,
        "folder: the directory that holds the table and the images. set: a directory or file of parquet, tar shards, "
        "CSV or JSONL, or a hub name; none: the preset's hub name.",
    )
    table: str = _f("pairs.csv", "folder, and set where there is one: the CSV or JSONL table, relative to data.path.")
    columns: dict[str, str] = _f(
        {}, "Column of the table for each field of a pair, e.g. {source: src_img, target: edited_img}."
    )
    preset: Optional[str] = _f(
        None, "set: columns, splits and hub name of a known set (docs/data.md lists them), or your own ./FILE.yaml."
    )
    subset: Optional[str] = _f(
        None, "set: the set's configuration, where it has several; none: the preset's, or its only one."
    )
    split: Optional[str] = _f(None, "set: the split to train on; none: the preset's, or train.")
    validation_split: Optional[str] = _f(
        None, "set: the split to validate on; none: the preset's, or some pairs of the training split are held out."
    )
    min_scores: dict[str, float] = _f(
        {}, "set: the least value of a score column, e.g. {o_score: 7}; pairs without that score are left out."
    )
    frame: str = _f(
        "none",
        "set: which frame to take where source and target are videos, the same of both; random is drawn once per pair. "
        "none: videos are refused.",
        choices=("none", "first", "middle", "random"),
    )
    streaming: bool = _f(
        False, "set: read the pairs of every pass from the hub without storing them; needs data.cache=none."
    )
    shuffle_buffer: int = _f(1000, "Streaming: pairs held to draw the next one from.", min=1)
    height: int = _f(64, "Height in pixels that pairs are resized and cropped to.", min=16)
    width: int = _f(64, "Width in pixels that pairs are resized and cropped to.", min=16)
    buckets: list[str] = _f(
        [], "Sizes HEIGHTxWIDTH that pairs are sorted into by their aspect ratio, one size a batch, e.g. "
        "[480x832,832x480,624x640]; [auto:480x832]: a ladder of ratios of that area; empty: data.height x data.width "
        "for all. See docs/buckets.md."
    )
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
    encode_batch: Optional[int] = _f(
        None, "Pairs encoded at once while the cache is filled; null: as many as 2 megapixels hold on a GPU.", min=1
    )
