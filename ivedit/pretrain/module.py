"""What the four pretraining tasks share: a LightningModule whose loss is a pure function of the step.

The data of every task is a pool of sprites that already lies on the device; a step draws its rows from a generator
seeded by (seed, step, rank), so that a resumed run sees what an uninterrupted one would have seen, and the loader has
nothing to do but count.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

__all__ = ["PretrainModule"]


class PretrainModule(L.LightningModule, ABC):
    """Trains ``model`` by `loss` with AdamW: linear warm-up, then cosine decay to 2% of ``lr``.

    Args:
        model: What is trained.
        steps: Optimiser steps of the whole run; the decay ends there.
        lr: Peak learning rate.
        seed: Of the draws of every step.
        warmup: Steps of linear warm-up.
        weight_decay: For weights of two dimensions and more; biases, norms and tables of one have none.
        beta2: Of AdamW; beta1 is 0.9.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        lr: float,
        seed: int,
        warmup: int = 200,
        weight_decay: float = 0.01,
        beta2: float = 0.99,
    ) -> None:
        super().__init__()
        self.model = model
        self.steps, self.lr, self.seed, self.warmup = steps, lr, seed, warmup
        self.weight_decay, self.beta2 = weight_decay, beta2
        self.metrics: dict[str, Tensor] = {}

    @abstractmethod
    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one step (a scalar), and detached scalars to log; draws come from `generator`."""

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimiser and the moving average see."""
        return list(self.model.parameters())

    def generator(self, step: int) -> torch.Generator:
        """Randomness of a step on the CPU: a pure function of (seed, step, rank)."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + step) * 64 + self.global_rank)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss, self.metrics = self.loss(int(batch))
        self.metrics["loss"] = loss.detach()
        return loss

    def configure_optimizers(self) -> Any:
        parameters = self.trained_parameters()
        decayed = [p for p in parameters if p.ndim > 1]
        rest = [p for p in parameters if p.ndim <= 1]
        optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=self.lr,
            betas=(0.9, self.beta2),
            fused=self.device.type == "cuda",
        )

        def factor(step: int) -> float:
            if step < self.warmup:
                return (step + 1) / self.warmup
            done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
            return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
