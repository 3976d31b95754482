"""Which file names are pictures, and which output fits which source: known here without anything heavy, so that a wrong
name is told at once.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["PICTURES", "edited_suffixes", "output_problems"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def edited_suffixes(clip: Path) -> tuple[str, ...]:
    """What the edited file of this source may end in, the usual one first."""
    return PICTURES if clip.suffix.lower() in PICTURES else (".mp4",)


def output_problems(clip: Path, out: Path) -> list[str]:
    """Why ``out`` cannot hold what is made of ``clip``, one plain line each; empty: it can."""
    problems, suffixes = [], edited_suffixes(clip)
    if out.suffix.lower() not in suffixes:
        problems.append(f"{out}: the edited file is a {suffixes[0]} file")
    if out.resolve() == clip.resolve():
        problems.append(f"{out} would overwrite the source")
    place = next(folder for folder in out.resolve().parents if folder.exists())
    if out.is_dir() or not (place.is_dir() and os.access(place, os.W_OK)):
        problems.append(f"{out} cannot be written in {place}")
    return problems
