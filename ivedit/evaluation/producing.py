"""Make the finished edits of trained editors: held-out clips, edited and kept with a manifest, nothing scored yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ivedit.config.schema import Config
from ivedit.data.progress import Progress
from ivedit.evaluation.clips import Latents, configured_clips
from ivedit.evaluation.rows import build_rows
from ivedit.evaluation.saving import EditWriter

__all__ = ["produce_edits"]


@torch.no_grad()
def produce_edits(cfg: Config, backbone: Any, editors: Mapping[str, Any], folder: Path) -> None:
    """Edit the held-out clips that ``evaluation.*`` names with every editor, and keep the edits in ``folder``.

    Args:
        cfg: Sections ``evaluation``, ``sampling``, ``text``, ``data``, as a training run has them.
        backbone: The frozen backbone.
        editors: {row name: trained editor}; ``evaluation.controls`` but the source copy become methods too.
        folder: New or empty.

    Raises:
        ConfigError: as `ivedit.evaluation.clips.configured_clips` and `ivedit.evaluation.rows.build_rows`.
    """
    clips = configured_clips(cfg, backbone)
    rows = [row for row in build_rows(cfg, backbone, editors) if row.prepare is None]
    writer = EditWriter(folder, clips.ids)
    with Progress("editing", len(rows) * len(clips)) as progress:
        for batch in clips.batches(cfg.evaluation.batch_size):
            latents = Latents(backbone.encode_pixels, batch.reference)
            for row in rows:
                writer.add(batch, row.name, row.produce(batch, latents))
                progress.advance(len(batch))
    writer.close([row.name for row in rows])
