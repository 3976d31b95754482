"""What makes a part of the tiny pipeline: the settings that count, and the record of what was done.

``pretraining.json`` lies in the pipeline's folder. For each task it holds one entry a piece (a warm start adds a
piece, anything else starts anew), and under ``bars`` what `ivedit.pretrain.bars` measured last. The model card is
written from it.
"""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivedit.config.schema import Config

__all__ = ["EXPERIMENTS", "RECORD", "SETTINGS", "add_piece", "read_record", "settings_of", "write_record"]

RECORD = "pretraining.json"

_EVERY = ("seed", "train.lr", "train.warmup_steps", "train.weight_decay", "train.beta2", "train.clip", "train.ema",
          "train.devices", "pretrain.scenes")  # fmt: skip
_POOLS = ("pretrain.frame_batch", "pretrain.clip_batch", "pretrain.compile", "pretrain.warm_start")

SETTINGS: dict[str, tuple[str, ...]] = {
    "pretrain_text": _EVERY,
    "pretrain_reader": (*_EVERY, "train.batch_size"),
    "pretrain_vae": (
        *_EVERY, *_POOLS, "pretrain.image_steps", "pretrain.base_dim", "pretrain.kl_weight", "pretrain.code_weight",
    ),
    "pretrain_dit": (
        *_EVERY, *_POOLS, "pretrain.frames_per_scene", "pretrain.frame_share", "pretrain.layers", "pretrain.heads",
        "pretrain.ffn", "pretrain.shift", "pretrain.edge_share",
    ),
}  # fmt: skip
"""For each task, the settings that its result depends on, beside ``train.max_steps``."""

EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "pretrain_text": ("pretrain_text",),
    "pretrain_reader": ("pretrain_reader",),
    "pretrain_vae": ("pretrain_vae",),
    "pretrain_dit": ("pretrain_dit", "pretrain_dit_more", "pretrain_dit_clips", "pretrain_dit_last"),
}
"""For each task, the shipped experiments that made the shipped weights: one a piece, in order."""


def settings_of(cfg: Config) -> dict[str, Any]:
    """``{key: value}`` of `SETTINGS` for the task of a configuration."""
    return {key: reduce(getattr, key.split("."), cfg) for key in SETTINGS[cfg.task]}  # type: ignore[arg-type]


def read_record(folder: str | Path) -> dict[str, Any]:
    """The record of a pipeline folder; empty when it has none."""
    file = Path(folder) / RECORD
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def write_record(folder: str | Path, record: dict[str, Any]) -> None:
    """Replace the record of a pipeline folder, in one go."""
    from ivedit.runfolder import write_text_atomic

    write_text_atomic(Path(folder) / RECORD, json.dumps(record, indent=1) + "\n")


def add_piece(folder: str | Path, cfg: Config, piece: dict[str, Any]) -> None:
    """Put a finished task on record; the bars on record are of other weights from now on, so they go."""
    record = read_record(folder)
    before = record.get(cfg.task, []) if cfg.pretrain.warm_start else []
    record[cfg.task] = [*before, {"steps": cfg.train.max_steps, **piece, "settings": settings_of(cfg)}]
    record.pop("bars", None)
    write_record(folder, record)
