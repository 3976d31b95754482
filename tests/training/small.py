"""A module that trains in milliseconds, with a frozen part, for testing everything around the training step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import torch
from torch import nn

from ivedit.config.schema import Config
from ivedit.training import RunLoader, build_adamw, build_trainer, ema_weights, fit, warmup_cosine


class SmallModule(L.LightningModule):
    """A frozen projection and a trained layer; data are functions of the position in the run."""

    def __init__(self, total: int, broken_from: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.layer = nn.Linear(6, 3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.total, self.broken_from = total, broken_from
        self.metrics: dict[str, torch.Tensor] = {}
        self.seen: list[int] = []

    def trained_parameters(self) -> list[nn.Parameter]:
        return list(self.layer.parameters())

    def training_step(self, batch: int, batch_idx: int) -> torch.Tensor:
        self.seen.append(int(batch))
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(int(batch)))
        jitter = torch.randn(())  # the global generator: it must be resumed as well
        loss = (self.layer(self.frozen(x)) - x[:, :3] - 0.01 * jitter).square().mean()
        if self.broken_from is not None and batch >= self.broken_from:
            loss = loss * float("nan")
        self.metrics = {"loss": loss.detach()}
        return loss

    def validate(self) -> dict[str, float]:
        return {"weight": float(self.layer.weight.sum())}

    def configure_optimizers(self):
        optimizer = build_adamw(self.trained_parameters(), lr=0.05, weight_decay=0.01, beta1=0.9, beta2=0.99)
        schedule = warmup_cosine(optimizer, warmup=3, total=self.total, final=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def settings(**train) -> Config:
    cfg = Config()
    cfg.train.accelerator = "cpu"
    cfg.train.checkpoint_every, cfg.train.log_every, cfg.train.validate_every = 4, 5, 10
    for name, value in train.items():
        setattr(cfg.train, name, value)
    return cfg


def run_small(folder: Path, steps: int, *, accumulate: int = 1, tracker=None, module=None, **train):
    """Train the small module in ``folder``; returns (module, its EMA weights, reason)."""
    module = module or SmallModule(steps)
    torch.manual_seed(5)
    run = SimpleNamespace(path=Path(folder))
    trainer = build_trainer(settings(**train), run, tracker, max_steps=steps, clip=1.0, accumulate=accumulate)
    reason = fit(trainer, module, RunLoader(steps * accumulate, lambda start: range(start, steps * accumulate)))
    with ema_weights(trainer):
        average = {name: p.detach().clone() for name, p in module.layer.state_dict().items()}
    return module, average, reason
