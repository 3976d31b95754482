"""Checkpoints: the trained weights, their average, the optimiser and the place in the run, and nothing frozen.

A checkpoint is a Lightning checkpoint of plain containers (it is read with ``weights_only=True``), written to a
temporary file and renamed, so that a kill at any moment leaves the previous one whole. It is taken between two
optimiser steps, where data order, timesteps and noise are functions of the step: a resumed run goes on as if it
had never stopped.
"""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from ivedit.errors import IveditError
from ivedit.training.callbacks import StepCallback, ema_weights, shares_of, trained_names

__all__ = ["LAST", "Checkpointer", "check_fits", "reached_step", "read_checkpoint"]

LAST = "last.ckpt"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        IveditError: The file is missing, damaged, or holds anything but tensors and plain containers.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise IveditError(f"there is no checkpoint {path}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise IveditError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise IveditError(f"{path} is not a training checkpoint: it has no state_dict")
    return checkpoint


def reached_step(folder: str | Path) -> int:
    """Optimiser steps done according to ``folder``/last.ckpt; 0 when there is none."""
    path = Path(folder) / LAST
    return int(read_checkpoint(path)["global_step"]) if path.exists() else 0


def check_fits(checkpoint: dict[str, Any], module: L.LightningModule, path: str | Path) -> None:
    """Refuse a checkpoint whose trained weights are not exactly this module's, naming the difference.

    Lightning's own check is off (``strict_loading=False``), since the frozen weights are never in the file.
    """
    own = {name: tuple(p.shape) for name, p in trained_names(module).items()}
    stored = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    problems = [f"{name} is missing" for name in own.keys() - stored.keys()]
    problems += [f"{name} is unknown" for name in stored.keys() - own.keys()]
    problems += [
        f"{name} has shape {stored[name]}, not {own[name]}"
        for name in own.keys() & stored.keys()
        if own[name] != stored[name]
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:3])
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise IveditError(
            f"{path} was trained with other modules: {shown}{more}. Use the configuration that it was made with."
        )


class Checkpointer(StepCallback):
    """Writes ``folder/last.ckpt`` every ``every`` steps, after the last one, and when asked to (`save`).

    A module with ``export(folder: Path)`` is also asked to export, under its averaged weights.
    """

    def __init__(self, folder: str | Path, every: int) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.every = every
        self.saved_step: int | None = None
        self.micro_batches_per_step = 1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pl_module.strict_loading = False
        if trainer.is_global_zero:
            for left in (*self.folder.glob(f".{LAST}.*"), *self.folder.glob(".*.partial")):
                left.unlink(missing_ok=True)  # what a killed process was writing

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        if step % self.every == 0 or step >= trainer.max_steps:
            self.save(trainer, pl_module)

    def save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the checkpoint of this step, once; all ranks must call it. Only rank 0 writes."""
        step = trainer.global_step
        if self.saved_step == step:
            return
        self.saved_step = step
        spread = shares_of(pl_module).spread
        if not (trainer.is_global_zero or spread):
            return
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)  # spread: the ranks meet in it
        if trainer.is_global_zero:
            self._write(checkpoint)
        export: Any = getattr(pl_module, "export", None)
        if export is not None:
            with ema_weights(trainer):
                export(self.folder)

    def _write(self, checkpoint: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{LAST}.{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / LAST)
        finally:
            temporary.unlink(missing_ok=True)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Drop what is frozen, add the generators' states."""
        names = trained_names(pl_module)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in names}
        checkpoint["rng"] = _rng_state(pl_module.device)
        checkpoint["micro_batches_per_step"] = self.micro_batches_per_step
        # A run that is continued beyond its former end must not believe that its last batch was the last.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._rng = checkpoint.get("rng")
        self.saved_step = int(checkpoint["global_step"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        rng = self.__dict__.pop("_rng", None)
        if rng is not None and trainer.world_size == 1:  # the file holds the generators of rank 0 alone
            _restore_rng(rng, pl_module.device)


def _rng_state(device: torch.device) -> dict[str, Any]:
    """States of the global generators as plain containers."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_rng(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


