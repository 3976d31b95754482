"""Building the one Trainer that everything in this package trains with, and running it.

Any LightningModule can be trained: the edit modules (`ivedit.training.EditModule`) and the pieces of the tiny
pipeline (`ivedit.pretrain`). What it must offer:

- ``trained_parameters() -> list[nn.Parameter]``: what the optimiser updates. Only these are averaged (EMA),
  checkpointed and checked on resume; frozen weights never enter a checkpoint.
- ``configure_optimizers()`` with a schedule by optimiser step.
- ``metrics: dict[str, Tensor]`` (optional): scalars of the latest step, detached and on the device. They are
  averaged over ``train.log_every`` steps and logged as ``train/<name>``, with one device synchronisation each time.
  ``pop_metrics() -> dict[str, float]`` replaces that where a module does its own accounting.
- ``training_step`` whose randomness is a function of (seed, step, rank), where step is ``trainer.global_step``.
- ``validate() -> dict[str, float]`` (optional): run under the EMA weights every ``train.validate_every`` steps and
  after the last one, logged as ``val/<name>``.

A run is **one** Lightning epoch: its train loader is a `RunLoader`, which covers all micro-batches of the run and
begins at the step that was reached. So resuming is the same everywhere, also in the middle of a pass over the data::

    trainer = build_trainer(cfg, run, tracker, max_steps=steps, clip=1.0)
    stopped = fit(trainer, module, RunLoader(steps, lambda start: range(start, steps)))
    with ema_weights(trainer):          # the averaged weights, inside the block
        save(module)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ivedit.errors import IveditError
from ivedit.quiet import no_trainer_tips
from ivedit.training.callbacks import EmaCallback, MetricsLogger, Stopper, Validation, find_callback
from ivedit.training.checkpoint import LAST, Checkpointer, check_fits, read_checkpoint
from ivedit.training.distributed import build_environment, build_strategy
from ivedit.training.loader import RunLoader
from ivedit.training.progress import ProgressLines

__all__ = ["build_trainer", "fit"]

logger = logging.getLogger("ivedit.training")


def build_trainer(
    cfg: Any,
    run: Any,
    tracker: Any,
    *,
    max_steps: int,
    callbacks: Sequence[Callback] = (),
    clip: float = 0.0,
    accumulate: int = 1,
    minutes: float | None = None,
) -> L.Trainer:
    """The Trainer for one run, with averaging, metrics, validation, checkpoints and orderly stops.

    Args:
        cfg: The run's `Config`; ``cfg.train`` is read (accelerator, devices, nodes, ema, log_every,
            validate_every, checkpoint_every, max_minutes, threads).
        run: `RunFolder`: checkpoints go to ``run.path/checkpoints``; None: nothing is written.
        tracker: `Tracker` for metrics, or None.
        max_steps: Optimiser steps of the whole run, those before a resume included.
        callbacks: More callbacks; they run after the averaging and before the checkpoint of a step.
        clip: Gradient norm for modules with automatic optimisation; 0: none. `EditModule` clips by itself.
        accumulate: Micro-batches per step for modules with automatic optimisation.
        minutes: Time limit in place of ``train.max_minutes``.

    The precision is the module's own business: the Trainer runs in float32 and modules enter autocast themselves,
    because a captured step needs autocast inside.
    """
    train = cfg.train
    if train.threads:
        torch.set_num_threads(train.threads)
    accelerator = {"cuda": "gpu"}.get(train.accelerator, train.accelerator)
    chosen: list[Callback] = []
    if train.ema > 0:
        chosen.append(EmaCallback(train.ema))
    chosen += [MetricsLogger(tracker, train.log_every), Validation(tracker, train.validate_every), *callbacks]
    if run is not None:
        chosen.append(Checkpointer(Path(run.path) / "checkpoints", train.checkpoint_every))
    stop_file = os.environ.get("IVEDIT_STOP_FILE")
    chosen += [Stopper(minutes if minutes is not None else train.max_minutes, stop_file), ProgressLines()]
    with no_trainer_tips():
        return L.Trainer(
            accelerator=accelerator,
            devices=train.devices,
            num_nodes=train.nodes,
            strategy=build_strategy(train),
            plugins=build_environment(train),
            precision="32-true",
            max_epochs=-1,
            max_steps=max_steps,
            gradient_clip_val=clip or None,
            accumulate_grad_batches=accumulate,
            callbacks=chosen,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_autolog_hparams=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            default_root_dir=None if run is None else str(run.path),
        )


def fit(
    trainer: L.Trainer,
    module: L.LightningModule,
    loader: RunLoader,
    *,
    datamodule: L.LightningDataModule | None = None,
) -> str | None:
    """Train to ``trainer.max_steps``, from ``checkpoints/last.ckpt`` of the run folder when there is one.

    Args:
        trainer: From `build_trainer`.
        module: See the head of this file.
        loader: All micro-batches of the run.
        datamodule: Its ``prepare_data``, ``setup`` and ``teardown`` are called around the training; the batches
            come from ``loader``.

    Returns:
        Why the run stopped before its last step (a checkpoint is there), or None when it is complete.

    Raises:
        IveditError: The checkpoint is of other modules or damaged, or the loss is no longer finite.
    """
    if trainer.max_steps < 1:
        return None
    per_step, rest = divmod(len(loader), trainer.max_steps)
    if rest or not per_step:
        raise ValueError(f"{len(loader)} micro-batches do not make {trainer.max_steps} whole steps")
    loader.position = lambda: trainer.global_step * per_step
    checkpointer = find_callback(trainer, Checkpointer)
    checkpoint = None
    if checkpointer is not None:
        checkpointer.micro_batches_per_step = per_step
    if checkpointer is not None and (checkpointer.folder / LAST).exists():
        checkpoint = checkpointer.folder / LAST
        content = read_checkpoint(checkpoint)
        check_fits(content, module, checkpoint)
        stored = content.get("micro_batches_per_step", per_step)
        if stored != per_step:
            raise IveditError(
                f"resume: {checkpoint} was made with train.accumulate={stored}, now {per_step}, so it cannot continue "
                "with the same batches; use the same value, or init_from= to start anew"
            )
        logger.info("resuming at step %d of %d", content["global_step"], trainer.max_steps)
    with no_trainer_tips():
        trainer.fit(
            module,
            datamodule=_RunData(loader, datamodule),
            ckpt_path=None if checkpoint is None else str(checkpoint),
            weights_only=True,
        )
    stopper = find_callback(trainer, Stopper)
    reason = stopper.reason if stopper is not None else None
    if reason is None and trainer.global_step < trainer.max_steps:
        raise IveditError(
            f"the data ended at step {trainer.global_step} of {trainer.max_steps}: the loader is shorter than it says"
        )
    return reason


class _RunData(L.LightningDataModule):
    """Hands the trainer the run's loader, and its hooks to the datamodule behind it."""

    def __init__(self, loader: RunLoader, inner: L.LightningDataModule | None) -> None:
        super().__init__()
        self.loader = loader
        self.inner = inner

    def prepare_data(self) -> None:
        if self.inner is not None:
            self.inner.prepare_data()

    def setup(self, stage: str) -> None:
        if self.inner is not None:
            self.inner.trainer = self.trainer
            self.inner.setup(stage)

    def teardown(self, stage: str) -> None:
        if self.inner is not None:
            self.inner.teardown(stage)

    def train_dataloader(self) -> RunLoader:
        return self.loader

    def state_dict(self) -> dict[str, Any]:
        return {} if self.inner is None else self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.inner is not None:
            self.inner.load_state_dict(state_dict)  # refuses a position that means other batches now
