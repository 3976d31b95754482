"""Two numbers for a pilot: edited and kept PSNR and success per operation, with no files written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ivedit.backbone.compiled import sampling_compiles
from ivedit.config.schema import SamplingConfig, TextConfig
from ivedit.evaluation.clips import ClipBatch, ClipSet
from ivedit.evaluation.metrics import RegionPSNR
from ivedit.evaluation.metrics.region import success_of
from ivedit.media import to_uint8
from ivedit.pipeline import IVEditPipeline
from ivedit.sprites import FRAMES, PairBatch

__all__ = ["edit_batch", "per_operation", "quick_scores", "region_scores"]


def edit_batch(
    pipeline: IVEditPipeline,
    batch: ClipBatch,
    source_latents: Tensor,
    *,
    sampling: SamplingConfig,
    text: TextConfig | None = None,
    start: tuple[Tensor, float] | None = None,
) -> Tensor:
    """Latents (B, Z, F, h, w) of a batch of clips, edited as the ``sampling`` section says.

    A pipeline without an editor is the frozen backbone: it is given the target caption and no source. With one, the
    target caption is used only where ``text.target`` asks for it. ``start``: (latents, sigma) to begin from, with the
    share sigma of the steps (at least one), in place of pure noise.
    """
    asked = pipeline.editor is None or (text is not None and text.target == "target_caption")
    return pipeline.edit_latents(
        source_latents,
        batch.instructions,
        seeds=batch.seeds(sampling.seed),
        steps=sampling.steps if start is None else max(1, round(sampling.steps * start[1])),
        guidance=sampling.guidance,
        scheduler=sampling.scheduler,
        shift=sampling.shift,
        target_captions=batch.target_captions if asked else None,
        gate_instructions=batch.other_instructions if text is not None and text.gate == "shuffled" else None,
        text=text,
        start=start,
        compile=sampling_compiles(sampling.compile, pipeline.backbone),
    )


@torch.no_grad()
def region_scores(
    clips: ClipSet,
    produce: Callable[[ClipBatch], Tensor],
    *,
    batch_size: int,
    edited_db: float = 16.0,
    kept_db: float = 20.0,
) -> dict[str, Tensor]:
    """Edited PSNR, kept PSNR and success of each clip, (M,) each; ``produce`` gives the edited pixels of a batch."""
    edited, kept = RegionPSNR("edited"), RegionPSNR("kept")
    for batch in clips.batches(batch_size):
        pixels = to_uint8(produce(batch)).float() / 255  # as every image and video file is
        for metric in (edited, kept):
            metric.to(pixels.device).update(pixels, batch.reference)
    values = {"edited_psnr": edited.per_clip()[1].cpu(), "kept_psnr": kept.per_clip()[1].cpu()}
    values["success"] = success_of(values["edited_psnr"], values["kept_psnr"], edited_db, kept_db)
    return values


def per_operation(values: dict[str, Tensor], operations: list[str]) -> dict[str, Any]:
    """Means over clips with a value, over all clips and per operation; None where no clip has one."""

    def means(rows: Tensor) -> dict[str, Any]:
        found: dict[str, Any] = {"n": int(rows.sum())}
        for name, value in values.items():
            mean = float(value[rows].nanmean())
            found[name] = None if mean != mean else mean
        return found

    everything = means(torch.ones(len(operations), dtype=torch.bool))
    kinds = {kind: torch.tensor([name == kind for name in operations]) for kind in dict.fromkeys(operations)}
    return {**everything, "operation": {kind: means(rows) for kind, rows in kinds.items()}}


@torch.no_grad()
def quick_scores(
    backbone: Any,
    editor: Any | None,
    pairs: PairBatch,
    *,
    frames: Tensor | None = None,
    sampling: SamplingConfig | None = None,
    text: TextConfig | None = None,
    batch_size: int = 64,
    size: int = 64,
    edited_db: float = 16.0,
    kept_db: float = 20.0,
) -> dict[str, Any]:
    """How well ``editor`` does on ``pairs``: means and success, per operation, without intervals and files.

    Args:
        backbone: The frozen backbone.
        editor: Trained modules; None: the frozen backbone given the target caption.
        pairs: From `ivedit.sprites.sample_pairs`, best with ``balanced=True``.
        frames: Frame numbers: (T,) the same for every pair, or (B, 1) one each; None: whole clips. Use
            ``torch.tensor([0])`` for single images.
        sampling: Steps, guidance, scheduler, seed; None: the defaults.
        text: Which words go where; None: the defaults.
        batch_size: Pairs edited at once.
        size: Height and width in pixels.
        edited_db: Success: edited region above this PSNR.
        kept_db: And kept region above this one.

    Returns:
        ``{"edited_psnr", "kept_psnr", "success", "n", "operation": {name: {the same}}}``; None: no clip has a value.
    """
    device = next(backbone.parameters()).device
    times = torch.arange(FRAMES) if frames is None else frames
    clips = ClipSet("quick", pairs.to(device), times.to(device), size)
    pipeline = IVEditPipeline(backbone, editor)
    sampling = sampling or SamplingConfig()

    def produce(batch: ClipBatch) -> Tensor:
        latents = backbone.encode_pixels(batch.reference.source)
        return backbone.decode_latents(edit_batch(pipeline, batch, latents, sampling=sampling, text=text))

    values = region_scores(clips, produce, batch_size=batch_size, edited_db=edited_db, kept_db=kept_db)
    return per_operation(values, clips.operations)
