"""The triage table: not learned, not transferred to video, or not within what the backbone can draw?

Success per operation on training pairs, on held-out pairs and on held-out clips, beside the ceiling of the backbone
and the one-step estimate. Low on training pairs: not learned. High there and low on held-out pairs: learned by heart.
High on pairs and low on clips: not transferred. A low ceiling: the backbone cannot draw it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ivedit.config.schema import Config
from ivedit.data.progress import Progress
from ivedit.evaluation.clips import ClipBatch, ClipSet, held_out_frames, training_frames
from ivedit.evaluation.probes import CEILING_SIGMAS, ceiling_scores, one_step
from ivedit.evaluation.quick import edit_batch, region_scores
from ivedit.evaluation.statistics import mean_interval, paired_difference
from ivedit.evaluation.summary import estimate, grouped, operation_groups
from ivedit.pipeline import IVEditPipeline

__all__ = ["triage"]

FRAMES_PER_CLIP = 4
"""Single frames are this many times cheaper than clips, at least: their batches are larger by it."""


def triage(
    cfg: Config,
    backbone: Any,
    editors: Mapping[str, Any],
    clips: ClipSet,
    clip_values: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Score single frames and the backbone's ceiling.

    Args:
        cfg: The whole configuration.
        backbone: The frozen backbone.
        editors: Rows to triage.
        clips: The held-out clips of the main table.
        clip_values: {editor: {metric: values per clip}} of that table.

    Returns:
        ``{"ceiling": {sigma: {...}}, "editors": {name: {"training_pairs", "held_out_pairs", "held_out_clips",
        "image_minus_video", "one_step"}}}``; each set is ``{"n", "all": {metric: estimate}, "operations": {name:
        {metric: estimate}}}``, or ``{"skipped": reason}``.
    """
    evaluation = cfg.evaluation
    batch = evaluation.batch_size * FRAMES_PER_CLIP
    device = clips.pairs.operation.device
    unseen = held_out_frames(clips, evaluation.triage_pairs)
    seen: ClipSet | None = None
    if cfg.data.reader == "sprites":
        seen = training_frames(
            cfg.data.pairs,
            evaluation.triage_pairs,
            operations=list(cfg.data.operations),
            size=clips.size,
            device=device,
        )
    found: dict[str, Any] = {"ceiling": {}, "editors": {}}
    with Progress("triage", len(CEILING_SIGMAS) + 3 * len(editors)) as progress:
        for sigma in CEILING_SIGMAS:
            values = ceiling_scores(
                backbone,
                unseen,
                sigma,
                sampling=cfg.sampling,
                batch_size=batch,
                edited_db=evaluation.edited_db,
                kept_db=evaluation.kept_db,
            )
            found["ceiling"][str(sigma)] = _summary(values, unseen, evaluation.bootstrap)
            progress.advance(1)
        for name, editor in editors.items():
            entry: dict[str, Any] = {}
            if seen is None:
                entry["training_pairs"] = {"skipped": f"data.reader is {cfg.data.reader}, not sprites"}
            else:
                values = _edit_frames(cfg, backbone, editor, seen, batch)
                entry["training_pairs"] = _summary(values, seen, evaluation.bootstrap)
            progress.advance(1)
            values = _edit_frames(cfg, backbone, editor, unseen, batch)
            entry["held_out_pairs"] = _summary(values, unseen, evaluation.bootstrap)
            entry["held_out_clips"] = _summary(clip_values[name], clips, evaluation.bootstrap)
            entry["image_minus_video"] = _image_minus_video(values, clip_values[name], unseen, evaluation.bootstrap)
            progress.advance(1)
            entry["one_step"] = _one_step(cfg, backbone, editor, unseen, batch)
            progress.advance(1)
            found["editors"][name] = entry
    return found


def _edit_frames(cfg: Config, backbone: Any, editor: Any, frames: ClipSet, batch_size: int) -> dict[str, Tensor]:
    pipeline = IVEditPipeline(backbone, editor)

    def produce(batch: ClipBatch) -> Tensor:
        latents = backbone.encode_pixels(batch.reference.source)
        return backbone.decode_latents(edit_batch(pipeline, batch, latents, sampling=cfg.sampling, text=cfg.text))

    return region_scores(
        frames,
        produce,
        batch_size=batch_size,
        edited_db=cfg.evaluation.edited_db,
        kept_db=cfg.evaluation.kept_db,
    )


def _summary(values: Mapping[str, Tensor], clips: ClipSet, resamples: int) -> dict[str, Any]:
    everything = list(range(len(clips)))
    groups = operation_groups(clips.operations, clips.pairs.needs_motion.tolist())
    found = grouped(values, {"all": everything, **groups}, resamples)
    return {"n": len(clips), "all": found.pop("all"), "operations": found}


def _image_minus_video(
    image: Mapping[str, Tensor], video: Mapping[str, Tensor], frames: ClipSet, resamples: int
) -> dict[str, Any]:
    """Success on one frame of a scene minus success on its clip, overall and per operation."""
    count = len(frames)
    groups = operation_groups(frames.operations, frames.pairs.needs_motion.tolist())
    one, many = image["success"].double().numpy(), video["success"][:count].double().numpy()
    found = {
        group: paired_difference(one[rows], many[rows], resamples=resamples).as_dict()
        for group, rows in {"all": list(range(count)), **groups}.items()
    }
    return {"n": count, "all": found.pop("all"), "operations": found}


def _one_step(cfg: Config, backbone: Any, editor: Any, frames: ClipSet, batch_size: int) -> dict[str, Any]:
    values = one_step(backbone, editor, frames, text=cfg.text, seed=cfg.sampling.seed, batch_size=batch_size)
    summary = _summary(values, frames, cfg.evaluation.bootstrap)
    error = values["colour_error"]
    if bool(torch.isfinite(error).any()):
        summary["recolour_colour_error"] = mean_interval(
            error.double().numpy()[[name == "recolour" for name in frames.operations]],
            resamples=cfg.evaluation.bootstrap,
        ).as_dict()
    summary["edited_psnr"] = estimate("edited_psnr", values["edited_psnr"], cfg.evaluation.bootstrap).as_dict()
    return summary
