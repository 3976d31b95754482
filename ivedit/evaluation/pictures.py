"""Pictures of an evaluation: film strips, side-by-side videos, gate maps, success per operation."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ivedit.animation import write_animation
from ivedit.evaluation.gates import GateSample, GateScores
from ivedit.evaluation.scoring import Kept
from ivedit.evaluation.summary import in_order
from ivedit.media import can_write_video, film_strip, side_by_side, to_pil, write_video

__all__ = ["FRAMES", "write_gate_pictures", "write_media", "write_success_chart"]

log = logging.getLogger("ivedit.evaluation")

FPS = 8
STRIP_FRAMES = 6
STRIP_CELL = 128
GATE_BLOCKS = 4
MOVING = 8
"""Clips in the animation of all."""

FRAMES = "frames"
"""Folder under media/ with bare frames: ``<clip>-source.png``, ``<clip>-edit.png`` (the run's own) and
``<clip>-truth.png``, a row of `STRIP_FRAMES` each, from which a page puts the edits of many runs under one source."""


def write_media(folder: Path, kept: Kept, editors: Sequence[str], results: Mapping[str, Any]) -> dict[str, Path]:
    """A film strip and a side-by-side mp4 of each kept clip: source, each editor's edit, truth; one GIF of them all.

    Without editors the frozen backbone's clip stands in the middle, when it is a row. Returns {key: file}. The bare
    frames of the first editor go to `FRAMES` beside them.
    """
    shown = [name for name in editors if name in kept.edits] or [name for name in ("frozen",) if name in kept.edits]
    written: dict[str, Path] = {}
    panels = []
    videos = can_write_video()
    if kept.source and not videos:
        log.info("no mp4s: PyAV is not installed")
    for number, (source, truth) in enumerate(zip(kept.source, kept.truth, strict=True)):
        clip = results["clips"][number]
        stem = f"{number:02d}-{clip['operation']}"
        rows = {"source": source, **{name: kept.edits[name][number] for name in shown}, "truth": truth}
        panels.append((clip["instruction"], rows))
        title = f'{clip["operation"].replace("_", " ")}: "{clip["instruction"]}"   (edited / kept PSNR)'
        _write_frames(folder / FRAMES, stem, source, kept.edits[shown[0]][number] if shown else None, truth)
        labelled = {_marked(name, results["rows"], number): pixels for name, pixels in rows.items()}
        strip = film_strip(labelled, STRIP_FRAMES, title=title, cell=STRIP_CELL)
        path = folder / f"strip-{stem}.png"
        strip.save(path)
        written[f"strip-{stem}"] = path
        if videos and len(source) > 1:
            written[f"clip-{stem}"] = write_video(folder / f"clip-{stem}.mp4", side_by_side(rows), FPS)
    if panels and len(kept.source[0]) > 1:
        written["edits"] = write_animation(folder / "edits.gif", panels[:MOVING], fps=FPS)
    return written


def _write_frames(folder: Path, stem: str, source: Tensor, edit: Tensor | None, truth: Tensor) -> None:
    """Each clip's frames, evenly spread, beside each other at their own size."""
    folder.mkdir(exist_ok=True)
    picked = np.unique(np.linspace(0, len(source) - 1, STRIP_FRAMES).round().astype(int))
    for name, pixels in (("source", source), ("edit", edit), ("truth", truth)):
        if pixels is not None:
            to_pil(torch.cat([pixels[number] for number in picked], dim=-1)).save(folder / f"{stem}-{name}.png")


def _marked(name: str, rows: Mapping[str, Any], number: int) -> str:
    """A row's label with the edited and kept PSNR of this clip and what they come to; other labels as they are."""
    if name not in rows:
        return name
    edited, kept, success = (rows[name]["per_clip"][key][number] for key in ("edited_psnr", "kept_psnr", "success"))
    values = " / ".join("-" if value is None else f"{value:.0f}" for value in (edited, kept))
    return f"{name}: {values} dB, {'success' if success else 'failed'}"


def write_success_chart(path: Path, results: Mapping[str, Any]) -> Path:
    """Bars of success per operation with 95% intervals, one colour a row; controls that edit nothing are left out."""
    from matplotlib.figure import Figure

    rows = {name: row for name, row in results["rows"].items() if name not in ("source_copy", "still_clip")}
    groups = in_order(group for row in rows.values() for group in row["groups"])
    names = ["all", *groups]
    figure = Figure(figsize=(max(6.0, 1.1 * len(names) + 1.5), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(rows))
    colours = {"frozen": "#b8b8b8", "vae_ceiling": "#e3e3e3"}
    editor_colours = iter(["#2a6fbb", "#d9822b", "#3d9a50", "#a04bb0", "#c0392b", "#17a2a2"] * len(rows))
    for offset, (name, row) in enumerate(rows.items()):
        found = [row["metrics"]["success"], *(row["groups"].get(group, {}).get("success") for group in groups)]
        places = [(x, f) for x, f in enumerate(found) if f and f["mean"] is not None]
        x = [place + (offset - (len(rows) - 1) / 2) * width for place, _ in places]
        height = [100 * f["mean"] for _, f in places]
        errors = [[100 * (f["mean"] - f["low"]) for _, f in places], [100 * (f["high"] - f["mean"]) for _, f in places]]
        axes.bar(x, height, width * 0.94, label=name.replace("_", " "), color=colours.get(name) or next(editor_colours))
        axes.errorbar(x, height, errors, fmt="none", ecolor="#333333", elinewidth=0.9, capsize=2)
    counts = [len(results["clips"]), *(_count(rows.values(), group) for group in groups)]
    labels = ["needs new motion" if name == "needs_motion" else name.replace("_", " ") for name in names]
    axes.set_xticks(
        range(len(names)), [f"{label}\n(n={n})" for label, n in zip(labels, counts, strict=True)],
        rotation=30, ha="right", rotation_mode="anchor",
    )  # fmt: skip
    axes.axvline(0.5, color="#999999", linewidth=0.8)
    axes.set_ylim(0, 105)
    axes.set_ylabel("clips edited successfully, %")
    axes.set_title(f"{results['name']}: edit success on held-out clips, 95% intervals")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=len(rows), loc="outside lower center")
    figure.savefig(path, dpi=120)
    return path


def _count(rows: Iterable[Mapping[str, Any]], group: str) -> int:
    return max(row["groups"][group]["success"]["total"] for row in rows if group in row["groups"])


def write_gate_pictures(folder: Path, name: str, gate: GateScores) -> dict[str, Path]:
    """The gate of some blocks at each sigma beside the source frame and the true mask, for a few clips.

    Returns {key: file}; the editor's name is in the file's name only.
    """
    written: dict[str, Path] = {}
    for sample in gate.samples:
        clip = f"{sample.number:02d}-{sample.operation}"
        path = folder / f"gate-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}-{clip}.png"
        _gate_picture(path, name, sample, gate)
        written[f"gate-{clip}"] = path
    return written


def _gate_picture(path: Path, name: str, sample: GateSample, gate: GateScores) -> None:
    """Rows: sigma. Columns: source frame, true mask, gate of each block, all gates on one colour scale."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    picked = sorted({round(i * (len(gate.blocks) - 1) / (GATE_BLOCKS - 1)) for i in range(GATE_BLOCKS)})
    maps = sample.maps[picked]
    low = float(maps.min())
    scale = Normalize(low, max(float(maps.max()), low + 1e-3))
    height, width = sample.mask.shape

    def tile(values: Tensor) -> np.ndarray:
        return F.interpolate(values.float()[None], (height, width))[0].permute(1, 2, 0).clamp(0, 1).numpy()

    def coloured(values: Tensor) -> Tensor:
        return torch.from_numpy(colormaps["magma"](scale(values.numpy()))[..., :3].copy()).permute(2, 0, 1)

    # one picture put together from tiles: a grid of axes takes matplotlib seconds
    gap = max(2, width // 16)
    heads = ["source", "true mask", *(f"gate, block {gate.blocks[k]}" for k in picked)]
    across, down = width + gap, height + gap
    sheet = np.ones((down * len(gate.sigmas) - gap, across * len(heads) - gap, 3))
    for row in range(len(gate.sigmas)):
        tiles = [sample.source, sample.mask.expand(3, -1, -1), *(coloured(block[row]) for block in maps)]
        for column, values in enumerate(tiles):
            y, x = row * down, column * across
            sheet[y : y + height, x : x + width] = tile(values)
    figure = Figure(figsize=(1.5 * len(heads) + 1.4, 1.5 * len(gate.sigmas) * height / width + 0.8))
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_xticks([column * across + width / 2 for column in range(len(heads))], heads)
    axes.set_yticks([row * down + height / 2 for row in range(len(gate.sigmas))], [f"sigma {s}" for s in gate.sigmas])
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False, labelsize=9)
    axes.spines[:].set_visible(False)
    figure.colorbar(ScalarMappable(scale, "magma"), ax=axes, shrink=0.85, pad=0.02, label="gate, mean over channels")
    axes.set_title(f'{name}: "{sample.instruction}"', fontsize=10, pad=12)
    figure.savefig(path, dpi=110, bbox_inches="tight")
