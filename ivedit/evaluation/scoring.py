"""Run every row of the table over the same clips and keep what each scored, clip by clip.

Clips are made, encoded and given their optical flow once per batch, and all rows see that batch before the next is
made: nothing is computed twice, and memory holds one batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ivedit.data.progress import Progress
from ivedit.evaluation.clips import ClipSet, Latents
from ivedit.evaluation.metrics import ClipMetric, FramePSNR, build_metrics, measure
from ivedit.evaluation.readback import ReadBackScore
from ivedit.evaluation.rows import Row
from ivedit.evaluation.saving import EditWriter
from ivedit.media import to_uint8
from ivedit.sprites.reader import SpriteReader

__all__ = ["Kept", "RowScores", "score_rows"]


@dataclass
class RowScores:
    """What one row scored on M clips, in the order of the clips.

    Attributes:
        values: {metric: (M,)}, NaN for no value.
        per_frame: (M, T) edited-region PSNR of each frame.
        per_latent: (M, F) edited-region PSNR of each latent frame's frames.
        readback: (M, 4) shares of frames (see `readback.FACTS`), or None without a reader.
        seconds: Time that editing took, all clips together; encoding falls to the row that is first, scoring to none.
    """

    values: dict[str, Tensor]
    per_frame: Tensor
    per_latent: Tensor
    readback: Tensor | None
    seconds: float


@dataclass
class Kept:
    """What later parts of an evaluation use again.

    Attributes:
        source: Clips for pictures, (T, 3, H, W) uint8 on the CPU.
        truth: Their true edits.
        edits: {row: its edits of them}.
        latents: Of all clips, one entry a batch; empty unless asked for.
    """

    source: list[Tensor] = field(default_factory=list)
    truth: list[Tensor] = field(default_factory=list)
    edits: dict[str, list[Tensor]] = field(default_factory=dict)
    latents: list[Latents] = field(default_factory=list)


class _RowMetrics:
    """The metrics of one row while it runs."""

    def __init__(self, row: Row, cfg: Any, backbone: Any, reader: SpriteReader | None) -> None:
        device, time_factor = backbone.device, backbone.spec.time_factor
        self.row = row
        self.seconds = 0.0
        self.metrics = {name: metric.to(device) for name, metric in build_metrics(cfg.evaluation).items()}
        self.per_frame = FramePSNR("edited").to(device)
        self.per_latent = FramePSNR("edited", time_factor).to(device)
        self.readback = ReadBackScore(reader).to(device) if reader is not None else None

    def scores(self) -> RowScores:
        return RowScores(
            values={name: _values(metric) for name, metric in self.metrics.items()},
            per_frame=_values(self.per_frame),
            per_latent=_values(self.per_latent),
            readback=None if self.readback is None else _values(self.readback),
            seconds=self.seconds,
        )


def _values(metric: ClipMetric) -> Tensor:
    return metric.per_clip()[1].cpu()


@torch.no_grad()
def score_rows(
    cfg: Any,
    backbone: Any,
    rows: Sequence[Row],
    clips: ClipSet,
    reader: SpriteReader | None,
    *,
    keep: int,
    keep_latents: bool,
    writer: EditWriter | None = None,
) -> tuple[dict[str, RowScores], Kept]:
    """Score each row on each clip; the edits of the first ``keep`` clips are returned too.

    Args:
        cfg: The whole configuration.
        backbone: The frozen backbone.
        rows: What to score, by unique names.
        clips: On what.
        reader: For the read-back; None: without.
        keep: Clips to keep for pictures.
        keep_latents: Whether the latents of all clips are wanted afterwards.
        writer: Given every edit of the clips as they are; None: edits are not kept.
    """
    size = cfg.evaluation.batch_size
    running = [_RowMetrics(row, cfg, backbone, reader) for row in rows]
    kept = Kept(edits={row.name: [] for row in rows if row.prepare is None})
    with Progress("evaluating", len(rows) * len(clips)) as progress:
        for start, batch in zip(range(0, len(clips), size), clips.batches(size, flow=True), strict=True):
            latents = Latents(backbone.encode_pixels, batch.reference)
            wanted = max(0, min(keep - start, len(batch)))
            kept.source += _some(batch.reference.source, wanted)
            kept.truth += _some(batch.reference.target, wanted)
            for state in running:
                seen = batch if state.row.prepare is None else state.row.prepare(batch)
                own = latents if seen is batch else Latents(backbone.encode_pixels, seen.reference)
                _synchronise(backbone.device)
                started = time.monotonic()
                edited = state.row.produce(seen, own)
                _synchronise(backbone.device)
                state.seconds += time.monotonic() - started
                edited = to_uint8(edited).float() / 255  # as every image and video file is
                if writer is not None and state.row.prepare is None:
                    writer.add(batch, state.row.name, edited)
                measure(state.metrics, edited, seen.reference)
                for per_time in (state.per_frame, state.per_latent):
                    per_time.update(edited, seen.reference)
                if state.readback is not None:
                    state.readback.update(edited, seen)
                if state.row.name in kept.edits:
                    kept.edits[state.row.name] += _some(edited, wanted)
                seen.reference.release(edited)
                progress.advance(len(batch))
            if keep_latents:
                kept.latents.append(latents.keep_latents_only())
    if writer is not None:
        writer.close([row.name for row in rows])
    return {state.row.name: state.scores() for state in running}, kept


def _some(clips: Tensor, count: int) -> list[Tensor]:
    return list(to_uint8(clips[:count]).cpu())


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
