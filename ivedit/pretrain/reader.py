"""Training the sprite reader (`ivedit.sprites.reader`) on rendered frames, blurred and noised a little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ivedit.pretrain.module import PretrainModule
from ivedit.sprites import SceneBatch, object_masks, render
from ivedit.sprites.reader import SpriteReader
from ivedit.sprites.vocabulary import COLOURS, FRAMES, SHAPES

__all__ = ["ReaderModule", "frame_labels"]


def frame_labels(scenes: SceneBatch, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and colour class (B, 32, 32) of each grid cell in frame ``frames`` (B,) of every scene."""
    masks = object_masks(scenes, frames[:, None])[:, :, 0]  # (B, K, 64, 64)
    cover = F.avg_pool2d(masks * scenes.present[..., None, None], 2)  # (B, K, 32, 32)
    most, which = cover.max(dim=1)
    rows = torch.arange(len(which), device=which.device)[:, None, None]
    shape = torch.where(most > 0.5, scenes.shape[rows, which], len(SHAPES))
    colour = torch.where(most > 0.5, scenes.colour[rows, which], len(COLOURS))
    return shape, colour


class ReaderModule(PretrainModule):
    """Trains a reader on random frames of ``scenes`` (on the training device), shown without a style.

    Pixels are blended with their 3 x 3 mean and given noise of up to 0.08, because the reader looks at generated and
    decoded pictures.
    """

    def __init__(self, reader: SpriteReader, scenes: SceneBatch, *, batch: int = 256, **settings: Any) -> None:
        super().__init__(reader, **settings)
        self.scenes = replace(scenes, style=torch.zeros_like(scenes.style))
        self.batch = batch

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        generator = self.generator(step)
        rows = torch.randint(len(self.scenes), (self.batch,), generator=generator)
        scenes = self.scenes[rows.to(self.scenes.device)]
        frames = torch.randint(FRAMES, (self.batch,), generator=generator).to(self.device)
        pixels = render(scenes, frames[:, None])[:, 0]
        shape, colour = frame_labels(scenes, frames)
        noise = torch.randn(pixels.shape, generator=generator).to(self.device)
        strength = 0.08 * torch.rand(self.batch, 1, 1, 1, generator=generator).to(self.device)
        blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        blend = torch.rand(self.batch, 1, 1, 1, generator=generator).to(self.device)
        pixels = torch.lerp(pixels, blurred, blend) + strength * noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            shape_logits, colour_logits = self.model(pixels)
        loss = F.cross_entropy(shape_logits.float(), shape) + F.cross_entropy(colour_logits.float(), colour)
        object_cells = shape != len(SHAPES)
        right = (shape_logits.argmax(1) == shape) & (colour_logits.argmax(1) == colour)
        return loss, {"cell_accuracy": (right & object_cells).sum() / object_cells.sum().clamp(min=1)}
