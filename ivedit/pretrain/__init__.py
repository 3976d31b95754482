"""How the shipped tiny pipeline was made: text encoder, reader, VAE and DiT, all on sprites, in that order.

Run by ``python -m ivedit.run experiment=pretrain_text|pretrain_reader|pretrain_vae|pretrain_dit``; the bars that the
result has to reach are measured by ``python -m ivedit.pretrain.bars FOLDER``, and ``python -m ivedit.pretrain.card
FOLDER`` writes its model card. See docs/pretraining.md.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivedit.config.schema import Config
    from ivedit.pretrain.module import PretrainModule

__all__ = ["run"]


def run(cfg: Config, run: Any, tracker: Any) -> None:
    """Do the pretraining task that ``cfg.task`` names.

    With ``train.devices`` above 1 every process makes the data pools and trains on draws of its own; only the first
    writes to ``pretrain.folder``.

    Args:
        cfg: A configuration with ``task: pretrain_*``.
        run: `ivedit.runfolder.RunFolder`; the checkpoint for ``resume=`` lies there, the weights go to
            ``pretrain.folder``.
        tracker: Where metrics go.

    Raises:
        IveditError: A part that the task needs is missing.
        Stopped: The run was stopped before its last step: the checkpoint is kept and nothing is written to
            ``pretrain.folder``.
    """
    import torch

    from ivedit.errors import IveditError, Stopped
    from ivedit.pretrain.tasks import TASKS, process_device
    from ivedit.training.callbacks import ema_weights
    from ivedit.training.loader import RunLoader
    from ivedit.training.trainer import build_trainer, fit

    steps = cfg.train.max_steps
    if steps is None:
        raise IveditError("train.max_steps is null: pretraining counts steps, not epochs; set it (see experiments/)")
    device = process_device(cfg)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # before any pool is made: Lightning chooses the device only in fit
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    Path(cfg.pretrain.folder).mkdir(parents=True, exist_ok=True)

    def fit_module(module: PretrainModule) -> dict[str, Any] | None:
        started = time.time()
        trainer = build_trainer(cfg, run, tracker, max_steps=steps, clip=cfg.train.clip)
        stopped = fit(trainer, module, RunLoader(steps, lambda start: range(start, steps)))
        if stopped:
            raise Stopped(stopped)
        if not trainer.is_global_zero:
            return None
        if cfg.train.ema > 0:
            with ema_weights(trainer):
                averaged = [p.detach().clone() for p in module.trained_parameters()]
            with torch.no_grad():
                for parameter, value in zip(module.trained_parameters(), averaged, strict=True):
                    parameter.copy_(value)
        return {
            "train_seconds": round(time.time() - started, 1),
            "final": {name: round(float(value), 5) for name, value in module.metrics.items()},
        }

    TASKS[cfg.task](cfg, fit_module)
