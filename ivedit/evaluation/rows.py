"""What stands in a results table: trained editors and the controls that say what their numbers mean.

| control | what it shows |
|---|---|
| `source_copy` | doing nothing: what the kept region scores for free, and the source's own warp error |
| `frozen` | the frozen backbone given the true target caption and no source: what training added |
| `vae_ceiling` | the true edit through the VAE: no editor in these latents can score higher |
| `still_clip` | the first editor on a clip whose first frame is repeated: video without motion, against a still truth |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ivedit.config.schema import Config
from ivedit.errors import ConfigError, or_nearest
from ivedit.evaluation.clips import ClipBatch, Latents
from ivedit.evaluation.metrics import Reference, SourceFlow
from ivedit.evaluation.quick import edit_batch
from ivedit.pipeline import IVEditPipeline

__all__ = ["CONTROLS", "Row", "build_rows", "still"]

CONTROLS = ("source_copy", "frozen", "vae_ceiling", "still_clip")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: Shown.
        kind: ``editor`` or ``control``.
        produce: (batch, its latents) -> edited pixels (B, T, 3, H, W) in [0, 1].
        prepare: What the row sees in place of the batch; None: the batch itself.
    """

    name: str
    kind: str
    produce: Callable[[ClipBatch, Latents], Tensor]
    prepare: Callable[[ClipBatch], ClipBatch] | None = None


def build_rows(cfg: Config, backbone: Any, editors: Mapping[str, Any]) -> list[Row]:
    """Rows of the editors, in their order, then of the controls that the configuration names.

    Raises:
        ConfigError: an unknown control, a control's name on an editor, or `still_clip` without an editor.
    """
    problems = [
        f"evaluation.controls: {name!r} is not known; {or_nearest(name, CONTROLS)}"
        for name in cfg.evaluation.controls
        if name not in CONTROLS
    ]
    problems += [
        f"an editor's row cannot be called {name!r}, a control's name; rename the run or that evaluation.editors"
        for name in editors
        if name in CONTROLS
    ]
    if "still_clip" in cfg.evaluation.controls and not editors:
        problems.append("evaluation.controls: still_clip edits with the first editor, but there is none")
    if problems:
        raise ConfigError(problems)

    def editing(editor: Any | None) -> Callable[[ClipBatch, Latents], Tensor]:
        pipeline = IVEditPipeline(backbone, editor)

        def produce(batch: ClipBatch, latents: Latents) -> Tensor:
            edited = edit_batch(pipeline, batch, latents.source, sampling=cfg.sampling, text=cfg.text)
            return backbone.decode_latents(edited)

        return produce

    controls = {
        "source_copy": Row("source_copy", "control", lambda batch, latents: batch.reference.source),
        "frozen": Row("frozen", "control", editing(None)),
        "vae_ceiling": Row(
            "vae_ceiling",
            "control",
            lambda batch, latents: backbone.decode_latents(latents.target),
        ),
        "still_clip": Row("still_clip", "control", editing(next(iter(editors.values()), None)), still),
    }
    rows = [Row(name, "editor", editing(editor)) for name, editor in editors.items()]
    return rows + [controls[name] for name in cfg.evaluation.controls]


def still(batch: ClipBatch) -> ClipBatch:
    """The same edits on clips that repeat their first frame."""
    reference = batch.reference

    def repeat(clip: Tensor) -> Tensor:
        return clip[:, :1].expand_as(clip).contiguous()

    b, t, _, h, w = reference.source.shape
    device = reference.source.device
    at_rest = SourceFlow(
        torch.zeros(b, t - 1, 2, h, w, device=device), torch.ones(b, t - 1, 1, h, w, dtype=torch.bool, device=device)
    )
    stopped = Reference(
        repeat(reference.source), repeat(reference.target), repeat(reference.mask), reference.clips, at_rest
    )
    frames = batch.frames[..., :1].expand_as(batch.frames)
    return replace(batch, reference=stopped, needs_motion=torch.zeros_like(batch.needs_motion), frames=frames)
