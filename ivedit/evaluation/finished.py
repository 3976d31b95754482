"""Score finished edits: every method of a manifest on every clip, with the metrics that also end a training run.

One clip is in memory at a time, with the edits of all methods, so that what depends on the source alone (its optical
flow) is found once, and an estimated mask is the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivedit.data.progress import Progress
from ivedit.errors import IveditError
from ivedit.evaluation.files import fit_clip, read_clip, read_mask
from ivedit.evaluation.manifest import CONTROL, EditedClip, Manifest
from ivedit.evaluation.masks import agreed_mask, estimate_mask
from ivedit.evaluation.metrics import (
    METRICS,
    MOVES_OTHERWISE,
    ClipMetric,
    MotionAgreement,
    Reference,
    build_metrics,
    measure,
    skipped_metrics,
    start_source_flow,
    weights_digest,
)
from ivedit.evaluation.statistics import detectable_difference, paired_difference
from ivedit.evaluation.summary import HEADLINE, estimate, grouped, jsonable, operation_groups

__all__ = ["FORMAT", "MASKS", "LoadedClip", "load_clip", "reference_of", "score_finished"]

FORMAT = 1
"""Version of evaluation.json."""

_ROWS = 2
"""Rows measured at once."""

MASKS = ("given", "from the true edit", "estimated")
"""Where a clip's mask comes from. Estimated: where at least half of the methods changed the source."""


@dataclass(frozen=True)
class LoadedClip:
    """A clip's pixels.

    Attributes:
        clip: What it is.
        source: uint8 (T, 3, H, W).
        edits: {method: the same shape}.
        truth: The true edit; None: not known.
        mask: bool (T, 1, H, W).
        mask_from: One of `MASKS`.
    """

    clip: EditedClip
    source: Tensor
    edits: Mapping[str, Tensor]
    truth: Tensor | None
    mask: Tensor
    mask_from: str


def load_clip(clip: EditedClip) -> LoadedClip:
    """Read a clip's files. IveditError when one is no longer what it was when the manifest was checked."""
    source = fit_clip(read_clip(clip.source), clip.facts)
    edits = {method: read_clip(path) for method, path in clip.edits.items()}
    truth = None if clip.truth is None else fit_clip(read_clip(clip.truth), clip.facts)
    mask, origin = None, MASKS[0]
    if clip.mask is not None:
        mask = fit_clip(read_mask(clip.mask, clip.facts.frames), clip.facts)
    elif truth is not None:
        mask, origin = estimate_mask(source, truth), MASKS[1]
    else:
        mask, origin = agreed_mask(source, list(edits.values())), MASKS[2]
    shape = (clip.facts.frames, 3, clip.facts.height, clip.facts.width)
    for name, pixels in {"source": source, **edits, "truth": source if truth is None else truth}.items():
        if tuple(pixels.shape) != shape:
            raise IveditError(f"clip {clip.id!r}: {name} changed on disk since it was checked")
    return LoadedClip(clip, source, edits, truth, mask, origin)


def reference_of(loaded: LoadedClip, number: int, device: torch.device | str = "cpu") -> Reference:
    """What the edits of a clip are measured against, as a batch of one."""

    def pixels(clip: Tensor) -> Tensor:
        return (clip.to(device).float() / 255)[None]

    source = pixels(loaded.source)
    known = loaded.truth is not None
    return Reference(
        source,
        source if loaded.truth is None else pixels(loaded.truth),
        loaded.mask[None].to(device),
        torch.tensor([number], device=device),
        start_source_flow(source),
        truth=torch.tensor([known], device=device),
        captions=[loaded.clip.target_caption],
        source_captions=[loaded.clip.source_caption],
    )


@torch.no_grad()
def score_finished(
    manifest: Manifest, evaluation: Any, *, device: torch.device | str = "cpu", name: str = "evaluation"
) -> dict[str, Any]:
    """Score every method, and the source itself as the control of doing nothing.

    Args:
        manifest: Checked edits.
        evaluation: That section of the configuration: thresholds, bootstrap, weights.
        device: Where metrics are computed.
        name: Of the evaluation.

    Returns:
        The content of evaluation.json but for what the judge and the environment add; see docs/evaluation.md.
    """
    rows = [*manifest.methods, CONTROL]
    metrics = {row: {k: m.to(device) for k, m in build_metrics(evaluation).items()} for row in rows}
    clips: list[dict[str, Any]] = []
    # Most of the work lets go of the interpreter: two rows at a time keep two cores busy, and memory bounded.
    with Progress("measuring", len(manifest.clips)) as progress, ThreadPoolExecutor(_ROWS) as pool:
        for number, clip in enumerate(manifest.clips):
            clips.append(_measure_clip(clip, number, metrics, pool, device))
            progress.advance(1)
    values = {row: {k: m.per_clip()[1].double().cpu().numpy() for k, m in found.items()}
              for row, found in metrics.items()}  # fmt: skip
    return {
        "format": FORMAT,
        "name": name,
        "folders": [str(place) for place in manifest.places],
        "methods": manifest.methods,
        "thresholds": {"edited_db": evaluation.edited_db, "kept_db": evaluation.kept_db},
        "clips": clips,
        "skipped": skipped_metrics(evaluation),
        "weights": {name: weights_digest(Path(place).expanduser()) for name, place in evaluation.weights.items()},
        **tables(values, [clip["operation"] for clip in clips], evaluation.bootstrap),
    }


def _measure_clip(
    clip: EditedClip, number: int, metrics: Mapping[str, Mapping[str, ClipMetric]], pool: ThreadPoolExecutor,
    device: torch.device | str,
) -> dict[str, Any]:  # fmt: skip
    """Show one clip to the metrics of every row; its pixels are let go of before the next one's are read."""
    loaded = load_clip(clip)
    reference = reference_of(loaded, number, device)
    for task in [pool.submit(_measure_row, found, row, loaded, reference) for row, found in metrics.items()]:
        task.result()
    return _about(loaded, reference)


@torch.no_grad()
def _measure_row(metrics: Mapping[str, ClipMetric], row: str, loaded: LoadedClip, reference: Reference) -> None:
    edited = reference.source
    if row != CONTROL:
        edited = (loaded.edits[row].to(edited.device).float() / 255)[None]
    measure(metrics, edited, reference)
    reference.release(edited)


def tables(
    values: Mapping[str, Mapping[str, np.ndarray]], operations: Sequence[str], resamples: int
) -> dict[str, Any]:
    """``rows``, ``paired`` and ``detectable`` of evaluation.json from {row: {metric: one value per clip}}.

    Every method is paired with every later one and with the source copy.
    """
    groups = operation_groups(operations, []) if any(operations) else {}
    rows = {}
    for row, found in values.items():
        moved = found["motion_agreement"]
        rows[row] = {
            "kind": "control" if row == CONTROL else "method",
            "metrics": {k: estimate(k, v, resamples).as_dict() for k, v in found.items()},
            "groups": grouped({k: torch.from_numpy(found[k]) for k in HEADLINE}, groups, resamples),
            "moves_otherwise": [i for i, value in enumerate(moved) if value < MOVES_OTHERWISE],
            "per_clip": jsonable(dict(found)),
        }
    paired: dict[str, Any] = {}
    detectable: dict[str, Any] = {}
    names = list(values)
    for i, ours in enumerate(names):
        for theirs in names[i + 1 :]:
            differences = {k: values[ours][k] - values[theirs][k] for k in values[ours]}
            paired.setdefault(ours, {})[theirs] = {
                k: paired_difference(values[ours][k], values[theirs][k], resamples=resamples).as_dict()
                for k in differences
            }
            detectable.setdefault(ours, {})[theirs] = {k: detectable_difference(d) for k, d in differences.items()}
    return {"rows": rows, "paired": paired, "detectable": detectable, "columns": _columns(values)}


def _columns(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Metric names in the order of the table: what is edited, what is kept, how it moves, what needs weights."""
    there = list(next(iter(values.values())))
    first = ("success", "edit_progress", "edited_psnr", "edited_ssim", "kept_psnr", "kept_ssim", "warp_error",
             "motion_agreement", "motion_ratio", "flicker_ratio", "sharpness_ratio")  # fmt: skip
    return [name for name in first if name in there] + [
        name for name in sorted(there, key=lambda n: (bool(METRICS.info(n)["needs"]), n)) if name not in first
    ]


def _about(loaded: LoadedClip, reference: Reference) -> dict[str, Any]:
    clip = loaded.clip
    return {
        "id": clip.id,
        "operation": clip.operation,
        "instruction": clip.instruction,
        "frames": clip.facts.frames,
        "height": clip.facts.height,
        "width": clip.facts.width,
        "truth": loaded.truth is not None,
        "truth_moves_otherwise": loaded.truth is not None
        and float(MotionAgreement().measure(reference.target, reference)) < MOVES_OTHERWISE,
        "mask": loaded.mask_from,
        "edited_share": round(float(reference.mask.float().mean()), 6),
        "fitted": clip.fitted,
    }
