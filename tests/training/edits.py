"""A whole edit run on a tiny random backbone: real sprites, real datamodule, real editor, seconds."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ivedit.config.schema import Config
from ivedit.data.datamodule import PairDataModule
from ivedit.editor import build_editor
from ivedit.ranks import leave
from ivedit.training import train
from tests.backbone.tiny import tiny_backbone


def edit_config(**train_settings: Any) -> Config:
    cfg = Config()
    cfg.data.pairs, cfg.data.validation_pairs, cfg.data.height, cfg.data.width = 24, 8, 16, 16
    cfg.text.dropout = 0.2
    cfg.train.accelerator = "cpu"
    cfg.train.batch_size, cfg.train.epochs, cfg.train.lr, cfg.train.warmup_steps = 4, 2, 3e-3, 2
    cfg.train.checkpoint_every, cfg.train.log_every, cfg.train.validate_every = 3, 4, 0
    for name, value in train_settings.items():
        setattr(cfg.train, name, value)
    return cfg


def run_edit(folder: Path, cfg: Config, *, tracker: Any = None, pause: float = 0.0):
    """Train in ``folder``; returns (outcome, editor with the averaged weights, backbone)."""
    backbone = tiny_backbone(blocks=2)
    editor = build_editor(cfg.editor, backbone, seed=cfg.seed)
    datamodule = PairDataModule(cfg, backbone.encode_pixels, backbone.encode_text, backbone.fingerprint())
    if pause:
        batches = datamodule._batches

        def slowly(name, epoch, wanted):
            for batch in batches(name, epoch, wanted):
                time.sleep(pause)
                yield batch

        datamodule._batches = slowly
    outcome = train(cfg, backbone, editor, datamodule, SimpleNamespace(path=Path(folder)), tracker)
    return outcome, editor, backbone


if __name__ == "__main__":  # python edits.py FOLDER EPOCHS ACCUMULATE DEVICES
    torch.set_num_threads(1)
    cfg = edit_config(
        epochs=int(sys.argv[2]), accumulate=int(sys.argv[3]), devices=int(sys.argv[4]), checkpoint_every=2
    )
    run_edit(Path(sys.argv[1]), cfg)
    leave()  # threads of a process group that nobody ends may abort the process at its exit
