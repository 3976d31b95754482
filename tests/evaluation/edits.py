"""Small folders of finished edits for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivedit.evaluation.manifest import write_manifest
from ivedit.media import to_pil, write_video


def moving(seed: int = 0, frames: int = 5, size: tuple[int, int] = (32, 48), colour: Any = (0.9, 0.1, 0.1)) -> Tensor:
    """(T, 3, H, W) uint8: a coloured square that moves over a textured ground."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    ground = 0.5 + 0.2 * torch.sin(x / 3 + seed) * torch.cos(y / 4)
    clip = ground.expand(frames, 3, -1, -1).clone()
    for t in range(frames):
        clip[t, :, 10:22, 6 + 3 * t : 18 + 3 * t] = torch.tensor(colour).view(3, 1, 1)
    return (clip * 255).round().to(torch.uint8)


def mask_of(source: Tensor, edited: Tensor) -> Tensor:
    return (source != edited).any(dim=1, keepdim=True)


def write(path: Path, clip: Tensor) -> None:
    """A video, a picture or a folder of frames, as the name says."""
    if path.suffix == ".mp4":
        write_video(path, clip, 8, lossless=True)
    elif path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(clip[0]).save(path)
    else:
        path.mkdir(parents=True)
        for t, frame in enumerate(clip):
            to_pil(frame).save(path / f"{t:05d}.png")


def finished(folder: Path, clips: int = 3, *, method: str = "", truth: bool = True, mask: bool = True) -> list[dict]:
    """A folder with a manifest in which blue squares were asked for and rather blue ones made; returns its lines."""
    lines = []
    for i in range(clips):
        source, wanted = moving(i), moving(i, colour=(0.1, 0.1, 0.9))
        made = wanted.clone()
        made[:, 1] = (made[:, 1].int() + 20 + 10 * i).clamp(max=255).to(torch.uint8)
        line = {"id": f"clip-{i}", "source": f"sources/{i}.mp4", "edited": f"edits/{i}.mp4",
                "instruction": "make the square blue", "operation": "recolour"}  # fmt: skip
        write(folder / line["source"], source)
        write(folder / line["edited"], made)
        if truth:
            line["truth"] = f"truths/{i}.mp4"
            write(folder / line["truth"], wanted)
        if mask:
            line["mask"] = f"masks/{i}"
            write(folder / line["mask"], (mask_of(source, wanted).expand(-1, 3, -1, -1) * 255).to(torch.uint8))
        if method:
            line["method"] = method
        lines.append(line)
    write_manifest(folder, lines)
    return lines
