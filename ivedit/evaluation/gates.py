"""Look into the gate: how well it finds the region of the edit, block by block and sigma by sigma.

The gate is recorded while the true edit stands at a given sigma, so that what is measured is the gate and not how far
a sampling has drifted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ivedit.config.schema import TextConfig
from ivedit.editor import GateRecord
from ivedit.evaluation.clips import ClipBatch, ClipSet, Latents
from ivedit.evaluation.metrics import GateAUC, token_coverage, weighted_auc
from ivedit.evaluation.probes import edit_text, noised
from ivedit.evaluation.statistics import mean_interval
from ivedit.evaluation.summary import jsonable

__all__ = ["GATE_SIGMAS", "GateSample", "GateScores", "gate_maps", "score_gate"]

GATE_SIGMAS = (0.3, 0.6, 0.9)
SAMPLES = 3


@dataclass(frozen=True)
class GateSample:
    """One clip's gate for a picture, at the middle latent frame.

    Attributes:
        number: Clip number.
        operation: Of the clip.
        instruction: Of the clip.
        source: (3, H, W) the source frame.
        mask: (H, W) bool, the true edit mask of that frame.
        maps: (K, S, h, w) gate per block and sigma.
    """

    number: int
    operation: str
    instruction: str
    source: Tensor
    mask: Tensor
    maps: Tensor


@dataclass
class GateScores:
    """A gate against the true masks of M clips.

    Attributes:
        blocks: K block numbers.
        sigmas: S values.
        table: (K, S) mean AUC over clips.
        per_clip: (M,) mean AUC over blocks and sigmas; NaN where the mask is empty or everything.
        ceiling: (M,) what the mask itself scores at token resolution.
        samples: Clips to draw.
    """

    blocks: list[int]
    sigmas: list[float]
    table: Tensor
    per_clip: Tensor
    ceiling: Tensor
    samples: list[GateSample] = field(default_factory=list)

    def as_dict(self, resamples: int) -> dict[str, Any]:
        """For results.json."""
        return {
            "blocks": self.blocks,
            "sigmas": self.sigmas,
            "table": jsonable(self.table),
            "auc": mean_interval(self.per_clip.double().numpy(), resamples=resamples).as_dict(),
            "ceiling": mean_interval(self.ceiling.double().numpy(), resamples=resamples).as_dict(),
            "per_clip": jsonable(self.per_clip),
        }


@torch.no_grad()
def gate_maps(
    backbone: Any,
    editor: Any,
    batch: ClipBatch,
    latents: Latents,
    *,
    text: TextConfig,
    seed: int,
    sigmas: Sequence[float] = GATE_SIGMAS,
) -> tuple[Tensor, list[int]] | None:
    """Gate maps (B, K, S, F, N) and the K block numbers; None for a variant without a gate."""
    texts = edit_text(backbone, batch, text)
    context = editor.prepare(backbone, latents.source, texts)
    maps: list[Tensor] = []
    blocks: list[int] = []
    for value in sigmas:
        noisy, sigma = noised(latents.target, value, batch.seeds(seed))
        record = GateRecord()
        editor.velocity(backbone, noisy, sigma, context, texts, record=record)
        if not record.maps:
            return None
        blocks = sorted(record.maps)
        maps.append(record.stacked().transpose(0, 1))
    return torch.stack(maps, dim=2), blocks


@torch.no_grad()
def score_gate(
    backbone: Any,
    editor: Any,
    clips: ClipSet,
    latents: Sequence[Latents] | None = None,
    *,
    text: TextConfig,
    seed: int,
    batch_size: int,
) -> GateScores | None:
    """Score an editor's gate on clips; None for a variant without a gate.

    Args:
        backbone: The frozen backbone.
        editor: Whose gate.
        clips: On which clips.
        latents: Of the batches of ``batch_size`` clips, where they are known already.
        text: Which words go where.
        seed: Of the noise.
        batch_size: Clips at once.
    """
    auc: GateAUC | None = None
    ceiling: list[Tensor] = []
    blocks: list[int] = []
    samples: list[GateSample] = []
    for number, batch in enumerate(clips.batches(batch_size)):
        known = latents[number] if latents else Latents(backbone.encode_pixels, batch.reference)
        found = gate_maps(backbone, editor, batch, known, text=text, seed=seed)
        if found is None:
            return None
        maps, blocks = found
        grid = backbone.grid(known.source)
        auc = auc or GateAUC((grid.rows, grid.columns)).to(maps.device)
        auc.update(maps, batch.reference)
        coverage = token_coverage(batch.reference.mask, grid.frames, grid.rows, grid.columns).flatten(1)
        ceiling.append(weighted_auc(coverage, coverage).cpu())
        _add_samples(samples, batch, maps.unflatten(-1, (grid.rows, grid.columns)), backbone.spec.time_factor)
    assert auc is not None
    return GateScores(
        blocks, list(GATE_SIGMAS), auc.compute().cpu(), auc.per_clip_mean().cpu(), torch.cat(ceiling), samples
    )


def _add_samples(samples: list[GateSample], batch: ClipBatch, maps: Tensor, time_factor: int) -> None:
    """Keep clips of different operations whose edit covers 2 to 50% of the frame: elsewhere there is nothing to see."""
    covered = batch.reference.mask.float().mean(dim=(1, 2, 3, 4)).tolist()
    latent = maps.shape[3] // 2
    frame = latent * time_factor
    assert batch.reference.clips is not None
    for i, (operation, share) in enumerate(zip(batch.operations, covered, strict=True)):
        known = {sample.operation for sample in samples}
        if len(samples) < SAMPLES and operation not in known and 0.02 <= share <= 0.5:
            samples.append(
                GateSample(
                    int(batch.reference.clips[i]),
                    operation,
                    batch.instructions[i],
                    batch.reference.source[i, frame].cpu(),
                    batch.reference.mask[i, frame, 0].cpu(),
                    maps[i, :, :, latent].cpu(),
                )
            )
