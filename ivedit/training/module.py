"""The LightningModule of the method: a frozen backbone, an editor, and one training step.

All randomness of a step is a function of (seed, step, place in the step), over micro-batches and ranks together: a
batch of 64 draws the same timesteps and noise in one piece, as four micro-batches of 16, or on two devices with 32
each, so the loss is the same too. Nothing in a step waits for the device; losses are read every ``log_every`` steps.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from ivedit.backbone import Backbone
from ivedit.backbone.compiled import compile_failed
from ivedit.data.text import TextStates
from ivedit.editor import Editor, EditText, save_editor
from ivedit.errors import IveditError
from ivedit.flow import (
    change_weight,
    draw_noise,
    even_draws,
    interpolate,
    sample_sigma,
    training_draws,
    velocity_loss,
    velocity_target,
)
from ivedit.training.bins import BinMeans, on_host
from ivedit.training.captured import CapturedSteps, choose_capture, to_device
from ivedit.training.compiled import StepCompiler
from ivedit.training.distributed import average_gradients, gradient_sync
from ivedit.training.optim import build_optimizer, clip_and_guard, warmup_cosine
from ivedit.training.shares import Shares

__all__ = ["EditModule", "training_shift"]

logger = logging.getLogger("ivedit.training")

Batch = Mapping[str, Any]
_TEXTS = ("target", "gate", "source")
_BAD_STEPS = 3
_VALIDATION_SEED = 20260407
"""Validation noise is the same for every run, so that losses of runs with other seeds compare."""


def training_shift(cfg: Any, folder_shift: float) -> float:
    """Flow shift k of training: the larger of the one asked for and the one that sampling uses.

    With a smaller one, many sampling steps would stand at sigmas where hardly any training fell.
    """
    asked = cfg.flow.shift if cfg.flow.shift is not None else folder_shift
    sampling = cfg.sampling.shift if cfg.sampling.shift is not None else folder_shift
    if asked < sampling:
        logger.warning("flow.shift=%g is raised to the %g that sampling uses", asked, sampling)
    return max(asked, sampling)


class EditModule(L.LightningModule):
    """Trains ``editor`` on batches of the datamodule (see `ivedit.data.PairDataModule` for their content).

    Args:
        backbone: Frozen.
        editor: Trained in float32.
        cfg: The run's `Config`.
        max_steps: Optimiser steps of the whole run, for the learning rate.
        validation: Gives the validation batches, anew at each call; None: no validation.
        pairs: How many training pairs there are, for the exported file; None: not told.
    """

    backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        editor: Editor,
        cfg: Any,
        *,
        max_steps: int,
        validation: Callable[[], Iterable[Batch]] | None = None,
        pairs: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        # Not a submodule: what is frozen is not moved, broadcast, counted or checkpointed with what is trained.
        self.__dict__["backbone"] = backbone
        self.editor = editor
        self.shares = Shares(self.trained_parameters())
        self.cfg = cfg
        self.max_steps = max_steps
        self.validation = validation
        self.pairs = pairs
        self.shift = training_shift(cfg, backbone.spec.shift)
        self.sampling_shift = cfg.sampling.shift if cfg.sampling.shift is not None else backbone.spec.shift
        self.draws = cfg.flow.draws_per_pair
        self.pairs_per_step = cfg.train.batch_size * cfg.train.accumulate * cfg.train.devices * cfg.train.nodes
        self._micro = 0
        self._records: list[tuple[int, Tensor, Tensor]] = []
        self._norms: list[Tensor] = []
        self._bins = BinMeans()
        self._bad_streak = 0
        self._captures = False
        self._compiler: StepCompiler | None = None
        self._steps: CapturedSteps | None = None
        self._sums: list[Tensor] = []

    # ---- what the trainer and its callbacks ask

    def trained_parameters(self) -> list[nn.Parameter]:
        """The editor's."""
        return [p for p in self.editor.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        train = self.cfg.train
        optimizer = build_optimizer(self.shares.kept, train, self.shares)
        schedule = warmup_cosine(optimizer, warmup=train.warmup_steps, total=self.max_steps, final=train.final_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are moved tensor by tensor where they are used, without waiting."""
        return batch

    def export(self, folder: Path) -> None:
        """Write ``folder/editor.safetensors`` with the weights the editor holds now, on rank 0.

        Where ranks share one copy of them, all must call it.
        """
        self.export_to(folder / "editor.safetensors", step=self.trainer.global_step)

    def export_to(self, file: Path, *, step: int) -> None:
        """Write the editor together with the settings that whoever samples with it needs; as `export`."""
        cfg = self.cfg
        weights = None
        if self.shares.spread:
            weights = self.shares.whole_weights([name for name, p in self.editor.named_parameters() if p.requires_grad])
            if weights is None:  # rank 0 has them
                return
        config: dict[str, Any] = {name: _plain(getattr(cfg, name)) for name in ("backbone", "text", "flow", "sampling")}
        config["data"] = {name: getattr(cfg.data, name) for name in ("reader", "height", "width", "buckets")}
        extra = {"run": cfg.name, "seed": cfg.seed, "step": step, "pairs": self.pairs, "config": config}
        save_editor(file, self.editor, backbone=self.backbone, weights=weights, extra=extra)

    # ---- one step

    @property
    def mixed(self) -> bool:
        """Whether the step runs in bfloat16 autocast."""
        wanted = self.cfg.train.precision
        return wanted == "bf16-mixed" or (wanted == "auto" and self.device.type == "cuda")

    def training_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """`sample_losses` with the weights that training gives to the places of a pair (``flow.change_share``)."""
        share = self.cfg.flow.change_share
        weight = None if share == 0 else change_weight(tensors["source"], tensors["target"], share)
        if self._compiler is None:  # outside of a training run, whoever calls decides
            return self.sample_losses(tensors, weight)
        with self.backbone.compiling(self._compiler.active):
            return self.sample_losses(tensors, weight)

    def sample_losses(self, tensors: Mapping[str, Tensor], weight: Tensor | None = None) -> Tensor:
        """Velocity loss of each (pair, draw): (B * draws,), from tensors alone, so that it can be captured.

        Args:
            tensors: ``source``, ``target`` (B, Z, 1, h, w); ``sigma`` (B*D,), ``noise`` (B*D, Z, 1, h, w), the D
                draws of a pair consecutive, all sharing one source pass; ``target_states`` (B, L, D_text),
                ``target_mask`` (B, L) and, where they are other texts, the same of ``gate`` and ``source``.
            weight: (B, 1, 1, h, w) of the places of each pair, with mean 1; None: all alike.
        """
        draws = len(tensors["sigma"]) // len(tensors["target"])
        parts: dict[str, TextStates] = {}
        for name in _TEXTS:
            # The same object where the texts are the same: the editor then embeds them once.
            shared = f"{name}_states" not in tensors
            parts[name] = (
                parts["target"] if shared else TextStates(tensors[f"{name}_states"], tensors[f"{name}_mask"])
            )
        text = EditText(**parts)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed, cache_enabled=False):
            context = self.editor.prepare(self.backbone, tensors["source"], text)
            target = tensors["target"]
            if draws > 1:
                context, text = context.repeat(draws), _repeat(text, draws)
                target = target.repeat_interleave(draws, dim=0)
            x = interpolate(target, tensors["noise"], tensors["sigma"])
            v_hat = self.editor.velocity(self.backbone, x, tensors["sigma"], context, text)
        if weight is not None:
            weight = weight.repeat_interleave(draws, dim=0)
        return velocity_loss(v_hat, velocity_target(target, tensors["noise"]), weight)

    def step_tensors(
        self, batch: Batch, r: Tensor, noise_seeds: Sequence[int], *, shift: float, kind: str
    ) -> dict[str, Tensor]:
        """The tensors of `sample_losses`, where they are; sigma and noise on the CPU."""
        flow = self.cfg.flow
        target: Tensor = batch["target"]
        tensors = {
            "source": batch["source"],
            "target": target,
            "sigma": sample_sigma(kind, r, shift=shift, mean=flow.logit_mean, std=flow.logit_std),
            "noise": draw_noise(target.shape[1:], noise_seeds),
        }
        for name in _TEXTS:
            text: TextStates = batch[f"text_{name}"]
            if name == "source" and self.cfg.text.source == "empty":
                text = text[:1]  # the same for all: its keys and values are made once, and one text travels
            if name == "target" or text is not batch["text_target"]:
                tensors[f"{name}_states"], tensors[f"{name}_mask"] = text.states, text.mask
        return tensors

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Forward and backward of a micro-batch; after the last one of a step, the optimiser's update."""
        train, world = self.cfg.train, self.trainer.world_size
        step = self.trainer.global_step
        place = self._micro * world + self.global_rank
        r, seeds = training_draws(
            self.cfg.seed, step, 0, place, len(batch["target"]), self.draws, micros=train.accumulate * world
        )
        tensors = self.step_tensors(batch, r, seeds, shift=self.shift, kind=self.cfg.flow.timesteps)
        losses = self._compiled_backward(tensors, first=self._micro == 0)
        self._records.append((step, tensors["sigma"], losses))
        self._micro += 1
        if self._micro == train.accumulate:
            self._micro = 0
            self._update()
            if self.device.type == "cpu":
                self._read_records()  # free on a CPU, so a loss that is not finite is seen at once

    def _compiled_backward(self, tensors: dict[str, Tensor], *, first: bool) -> Tensor:
        """`_backward`, compiled where that was chosen; once more without, where compiling fails under ``auto``."""
        if self._compiler is None:
            return self._backward(tensors, first=first)
        try:
            with self._compiler:
                return self._backward(tensors, first=first)
        except RuntimeError as error:
            if not first or not self._compiler.give_up(error):
                raise
        return self._backward(tensors, first=first)

    def _backward(self, tensors: dict[str, Tensor], *, first: bool) -> Tensor:
        """Add this micro-batch's share to the gradients; returns its losses (B*D,), detached and its own."""
        replayed = self._replay(tensors) if self._captures else None
        accumulate = self.cfg.train.accumulate
        if replayed is None:
            if first:
                self.shares.clear_gradients()
            on_device = {name: to_device(value, self.device) for name, value in tensors.items()}
            losses = self.training_losses(on_device)
            with gradient_sync(self.trainer, last=self._micro + 1 == accumulate):
                self.manual_backward(losses.mean() / accumulate)
            return losses.detach()
        losses, sums = replayed  # the gradients are overwritten by the next replay: no zeroing, no copy
        if accumulate > 1:
            if not self._sums:
                self._sums = [torch.zeros_like(g) for g in sums]
            if first:
                torch._foreach_zero_(self._sums)
            torch._foreach_add_(self._sums, sums, alpha=1 / accumulate)
            sums = self._sums
        for parameter, gradient in zip(self.trained_parameters(), sums, strict=True):
            parameter.grad = gradient
        return losses.clone()

    def _update(self) -> None:
        optimizer = self.optimizers()
        if self.sums_gradients:  # a rank may have given capturing up: where it has no gradient, others have zeros
            for weight in self.trained_parameters():
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            average_gradients(self.shares.gradients())
        norm = clip_and_guard(
            optimizer.optimizer,  # type: ignore[union-attr]
            self.shares.gradients(),
            self.cfg.train.clip,
            total=self.shares.total_norm,
        )
        self._norms.append(norm)
        optimizer.step()  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr,call-arg]

    # ---- capture

    def on_fit_start(self) -> None:
        if self.backbone.device != self.device:
            self.backbone.to(self.device)

    def on_train_start(self) -> None:
        self._micro = 0
        self._captures, why = self.capture_mode()
        logger.info("training step: %s (%s)", "captured" if self._captures else "eager", why)
        self._compiler = StepCompiler(self.cfg, self.backbone, self.device)
        logger.info("blocks: %s (%s)", "compiled" if self._compiler.active else "eager", self._compiler.why)

    def capture_mode(self) -> tuple[bool, str]:
        """Whether the step is captured, and why.

        Raises:
            IveditError: ``train.capture=on`` where it is impossible.
        """
        return choose_capture(self.cfg.train, self.device, checkpointing=self.backbone.gradient_checkpointing)

    @cached_property
    def sums_gradients(self) -> bool:
        """Whether this module sums its gradients over the ranks, in place of DDP; fixed before training begins."""
        return self.trainer.world_size > 1 and self.capture_mode()[0]

    def _replay(self, tensors: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]] | None:
        """Losses and gradients from the captured step of these inputs; None when capturing fails under ``auto``."""
        if self._steps is None:
            self._steps = CapturedSteps(self.training_losses, self.trained_parameters(), self.device)
        if tensors in self._steps:  # what fails now is no failure of capturing
            return self._steps(tensors)
        try:
            return self._steps(tensors)
        except RuntimeError as error:
            if compile_failed(error):
                raise
            reason = str(error).splitlines()[0]
            if self.cfg.train.capture == "on":
                raise IveditError(f"train.capture=on, but the step cannot be captured: {reason}") from error
            logger.warning("the step cannot be captured (%s); training goes on eagerly, more slowly", reason)
            self._captures, self._steps = False, None  # what graphs hold would be lost to eager steps
            return None

    # ---- what is logged

    def _read_records(self) -> None:
        """Bring waiting losses to the host, put them into their bins and look for steps that went wrong."""
        for step, sigma, losses in on_host(self._records):
            self._bins.add(sigma, losses)
            if math.isfinite(float(losses.sum())):
                self._bad_streak = 0
                continue
            self._bad_streak += 1
            if self._bad_streak >= _BAD_STEPS * self.cfg.train.accumulate:
                raise IveditError(
                    f"the loss was not finite in {_BAD_STEPS} steps in a row, up to step {step + 1}: lower train.lr "
                    f"({self.cfg.train.lr:g}), or use train.precision=32-true; the last checkpoint is from before that"
                )
        self._records.clear()

    def pop_metrics(self) -> dict[str, float]:
        """Means since the last call: loss, gradient norm and the loss by sigma. Waits for the device and the ranks."""
        self._read_records()
        self._over_ranks()
        values = self._bins.pop()
        if self._norms:
            values["grad_norm"] = float(torch.stack(self._norms).mean())
            self._norms.clear()
        return values

    def _over_ranks(self, bins: BinMeans | None = None) -> None:
        """Make the sums those of all ranks, so that a run on several tells the losses that one would."""
        bins = self._bins if bins is None else bins
        if self.trainer.world_size > 1:
            whole = bins.state.to(self.device)
            torch.distributed.all_reduce(whole)
            bins.state = whole.cpu()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss on the validation pairs, with the same noise and evenly spread sigmas at every call and in every run.

        The sigmas are uniform with the sampler's shift, whatever the training draws, so that the number compares
        between runs with other timestep settings.
        """
        if self.validation is None:
            return {}
        bins = BinMeans()
        for batch in self.validation():  # as many on every rank, which shared blocks need
            r, seeds = even_draws(_VALIDATION_SEED, batch["numbers"].tolist())
            tensors = self.step_tensors(batch, r, seeds, shift=self.sampling_shift, kind="uniform")
            on_device = {name: to_device(value, self.device) for name, value in tensors.items()}
            bins.add(tensors["sigma"], self.sample_losses(on_device).cpu())
        self._over_ranks(bins)
        return bins.pop()


def _plain(section: Any) -> dict[str, Any]:
    """A section of the configuration, a dataclass or an OmegaConf node, as a dict."""
    return dict(dataclasses.asdict(section) if dataclasses.is_dataclass(section) else section)  # type: ignore[arg-type]


def _repeat(text: EditText, times: int) -> EditText:
    """Each text ``times`` times in a row; texts that are one object stay one."""
    target = text.target.repeat_interleave(times)
    gate = target if text.gate is text.target else text.gate.repeat_interleave(times)
    return EditText(target, gate, text.source)  # the source has been read
