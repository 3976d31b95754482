"""Which names are pictures, which folders are clips, and which output fits which source: known here without anything
heavy, so that a wrong name is told at once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ivedit.errors import IveditError

__all__ = ["PICTURES", "edited_suffixes", "frame_files", "output_problems", "writes_frames"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def frame_files(folder: Path) -> list[Path]:
    """The frames of a folder in the order of the numbers in their names: 2.png before 10.png.

    Raises:
        IveditError: it holds no picture, or anything else.
    """
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    other = [path.name for path in files if path.suffix.lower() not in PICTURES]
    if other or not files:
        raise IveditError(f"{folder} is no folder of frames: it has {other[0] if other else 'no pictures'}")

    def order(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)]

    return sorted(files, key=order)


def edited_suffixes(clip: Path) -> tuple[str, ...]:
    """What the edited file of this source may end in, the usual one first; nothing: a folder of frames."""
    if clip.is_dir():
        return (".mp4", "")
    return PICTURES if clip.suffix.lower() in PICTURES else (".mp4",)


def writes_frames(clip: Path, out: Path) -> bool:
    """Whether ``out`` is a folder that gets the edited frames of the folder ``clip``."""
    return clip.is_dir() and (not out.suffix or out.is_dir())


def output_problems(clip: Path, out: Path) -> list[str]:
    """Why ``out`` cannot hold what is made of ``clip``, one plain line each; empty: it can."""
    try:
        out.exists()
    except OSError as error:  # a name too long
        return [f"{out} cannot be written: {error.strerror}"]
    problems, suffixes, frames = [], edited_suffixes(clip), writes_frames(clip, out)
    place = next(folder for folder in out.resolve().parents if folder.exists())
    if out.suffix.lower() not in suffixes and not frames:
        folder = ", or a folder: a name without an end" if "" in suffixes else ""
        problems.append(f"{out}: the edited file is a {suffixes[0]} file{folder}")
    if out.resolve() == clip.resolve():
        return [*problems, f"{out} would overwrite the source"]
    if clip.is_dir() and out.resolve().is_relative_to(clip.resolve()):
        problems.append(f"{out} would lie among the frames of the source: name a place outside {clip.resolve()}")
    elif frames and out.is_dir():
        place = out
        known = {path.name for path in clip.iterdir()}
        other = sorted(path.name for path in out.iterdir() if path.name not in known and path.name[0] != ".")
        if other:
            problems.append(f"{out} holds something else, such as {other[0]}: name a new folder, or an empty one")
    if (out.exists() and out.is_dir() != frames) or not (place.is_dir() and os.access(place, os.W_OK)):
        problems.append(f"{out} cannot be written in {place}")
    return problems
