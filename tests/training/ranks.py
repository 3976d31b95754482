"""Edit runs on the ranks that torchrun started, several in one start: torchrun ... ranks.py FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from ivedit.config.schema import Config
from ivedit.ranks import join, leave
from ivedit.training import EditModule
from tests.training.edits import edit_config, run_edit

HARD = {"optimizer": "muon", "variant": "side_by_side", "gradient_checkpointing": True}
CASES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "captured": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "fsdp_in_two_goes": {"strategy": "fsdp"},
    "ddp_hard": {"strategy": "ddp", **HARD},
    "fsdp_hard": {"strategy": "fsdp", **HARD},
}
"""What two ranks run with two micro-batches a step; one rank has four."""


def case_config(*, devices: int, **settings: Any) -> Config:
    """Three steps of sixteen pairs."""
    variant, recompute = settings.pop("variant", "predict_update"), settings.pop("gradient_checkpointing", False)
    cfg = edit_config(devices=devices, accumulate=4 // devices, checkpoint_every=2, log_every=1, **settings)
    cfg.editor.variant, cfg.backbone.gradient_checkpointing = variant, recompute
    return cfg


def run_case(folder: Path, name: str, *, devices: int, tracker: Any = None) -> None:
    settings = dict(CASES[name])
    if devices == 1:
        del settings["strategy"]
    cfg = case_config(devices=devices, **settings)
    if name == "fsdp_in_two_goes":
        stop = folder / "stop"
        os.environ["IVEDIT_STOP_FILE"] = str(stop)
        folder.mkdir(parents=True, exist_ok=True)
        stop.write_text("enough\n")
        outcome, _, _ = run_edit(folder, cfg)
        assert outcome.stopped_early == "enough" and outcome.steps == 1
        del os.environ["IVEDIT_STOP_FILE"]
    decided = EditModule.capture_mode
    if name == "captured":  # on a CPU the static step runs its buffers eagerly: everything but the graph itself
        EditModule.capture_mode = lambda self: (True, "test")  # type: ignore[method-assign]
    run_edit(folder, cfg, tracker=tracker)
    EditModule.capture_mode = decided  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    join(edit_config().train)
    for case in CASES:
        run_case(Path(sys.argv[1]) / case, case, devices=2)
    leave()
