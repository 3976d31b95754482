"""Training the edit modules of one run, from a configuration to the exported editor."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ivedit.backbone import Backbone
from ivedit.editor import Editor, parameter_count
from ivedit.errors import ConfigError, IveditError
from ivedit.ranks import process_rank
from ivedit.training.callbacks import EmaCallback, Validation, find_callback
from ivedit.training.distributed import local_device, share_editing
from ivedit.training.loader import RunLoader
from ivedit.training.module import EditModule
from ivedit.training.trainer import build_trainer, fit

__all__ = ["TrainOutcome", "prepare_pairs", "total_steps", "train"]

logger = logging.getLogger("ivedit.training")


@dataclass(frozen=True)
class TrainOutcome:
    """What training came to.

    Attributes:
        steps: Optimiser steps done, those before a resume included.
        seconds: Wall time of this process's part.
        val_loss: Of the averaged weights at the last validation; None where there was none.
        editor_file: The exported averaged weights.
        stopped_early: Why the run stopped before its last step; None when it is complete.
    """

    steps: int
    seconds: float
    val_loss: float | None
    editor_file: Path
    stopped_early: str | None


def total_steps(cfg: Any, batches_per_epoch: int) -> int:
    """Optimiser steps of a run: ``train.max_steps``, else ``train.epochs`` passes over the pairs.

    Raises:
        ConfigError: The epochs hold fewer micro-batches than one step needs.
    """
    train = cfg.train
    if train.max_steps is not None:
        return int(train.max_steps)
    steps = train.epochs * batches_per_epoch // train.accumulate
    if steps < 1 and train.epochs > 0:
        raise ConfigError(
            f"train.epochs={train.epochs} of {batches_per_epoch} micro-batches make no step of "
            f"train.accumulate={train.accumulate}: lower train.accumulate or train.batch_size, or raise train.epochs"
        )
    return int(steps)


def prepare_pairs(cfg: Any, datamodule: Any) -> None:
    """Make the readers and fill the cache; all that needs the encoders. A second call does nothing.

    Which pairs are whose must be known before the number of steps, and that before the trainer.
    """
    world = cfg.train.devices * cfg.train.nodes
    datamodule.trainer = SimpleNamespace(global_rank=process_rank(cfg.train.devices), world_size=world)
    datamodule.setup("fit")


def train(cfg: Any, backbone: Backbone, editor: Editor, datamodule: Any, run: Any, tracker: Any) -> TrainOutcome:
    """Train ``editor``, from ``run``'s last checkpoint when there is one; afterwards it holds the averaged weights.

    Args:
        cfg: The run's `Config`.
        backbone: Frozen; its weights' fingerprint is compared before and after.
        editor: From `build_editor` (or `load_editor`, for ``init_from``).
        datamodule: `PairDataModule`.
        run: `RunFolder`; checkpoints and ``editor.safetensors`` go to its ``checkpoints/``.
        tracker: `Tracker`, or None.

    Raises:
        ConfigError: Settings and data do not fit together.
        IveditError: The checkpoint is of another run, the loss is no longer finite, a frozen weight changed.
    """
    started = time.monotonic()
    prepare_pairs(cfg, datamodule)
    steps = total_steps(cfg, datamodule.batches_per_epoch)
    if cfg.train.strategy == "fsdp":
        share_editing(backbone, editor, cfg, local_device(cfg.train))
    module = EditModule(
        backbone, editor, cfg, max_steps=max(steps, 1), validation=datamodule.val_dataloader,
        pairs=datamodule.training_pairs,
    )  # fmt: skip
    trainer = build_trainer(cfg, run, tracker, max_steps=steps)
    if tracker is not None:
        tracker.log_params(
            {"trained_parameters": parameter_count(editor), "steps": steps, "training_pairs": datamodule.training_pairs}
        )

    def batches(position: int) -> Iterator[Any]:
        datamodule.set_micro_batches(position)
        while True:
            yield from datamodule.train_dataloader()  # the rest of its epoch; the position moves on to the next

    before = backbone.fingerprint(exact=True)
    reason = fit(trainer, module, RunLoader(steps * cfg.train.accumulate, batches), datamodule=datamodule)
    if backbone.fingerprint(exact=True) != before:
        raise IveditError(
            "a frozen weight of the backbone changed during training, so the result means nothing; "
            "a plugin or callback must have written to it"
        )
    validation = find_callback(trainer, Validation)
    ema = find_callback(trainer, EmaCallback)
    if ema is not None and ema.ema is not None:
        ema.ema.copy_to_parameters()
    file = Path(run.path) / "checkpoints" / "editor.safetensors"
    # Rank 0 has written it, if anybody has: another rank looking for itself might see it later, and meet nobody.
    missing = trainer.strategy.broadcast(not file.exists())
    if missing and (trainer.is_global_zero or module.shares.spread):
        module.export_to(file, step=0)
    done = trainer.global_step if steps else 0
    return TrainOutcome(
        steps=done,
        seconds=time.monotonic() - started,
        val_loss=validation.values.get("loss") if validation is not None else None,
        editor_file=file,
        stopped_early=reason,
    )
