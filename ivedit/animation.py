"""Clips that play beside each other in one picture, for pages: an animated GIF.

A film strip is better for comparing places, an animation for judging motion, flicker and timing at a glance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ivedit.media import enlarge, to_pil, to_uint8

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["Panel", "write_animation"]

Panel = tuple[str, Mapping[str, Tensor]]
"""A heading, such as the instruction, and below it clips by their label: (T, 3, H, W), uint8 or float in [0, 1]."""

_GAP = 6
_LINE = 15
_COLOURS = 255


def write_animation(
    path: str | Path, panels: Sequence[Panel], *, fps: int = 8, columns: int = 4, cell: int = 128
) -> Path:
    """Write panels beside each other, each with its clips below each other, as an animated GIF that plays for ever.

    Args:
        path: Ends in .gif.
        panels: All with the same labels, which stand at the left. Shorter clips stop at their end.
        fps: Frames per second; GIF knows hundredths of a second.
        columns: Panels in a row.
        cell: Width of a clip in pixels: smaller ones are enlarged by a whole factor, without smoothing; larger ones
            are scaled down.

    Raises:
        ValueError: no panel, or panels with other labels than the first.
    """
    if not panels or any(list(rows) != list(panels[0][1]) for _, rows in panels):
        raise ValueError("an animation needs panels, all with the same labels")
    import PIL.Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    small = [(title, {label: _scaled(clip, cell) for label, clip in rows.items()}) for title, rows in panels]
    length = max(len(clip) for _, rows in small for clip in rows.values())
    frames = [_frame(small, number, columns) for number in range(length)]
    # One palette for all frames: a palette each would make still places flicker.
    palette = _beside(frames).quantize(_COLOURS)
    drawn = [frame.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for frame in frames]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=round(100 / fps) * 10, loop=0, optimize=False)
    return path


def _scaled(clip: Tensor, cell: int) -> Tensor:
    """(T, 3, h, w) uint8, at most ``cell`` wide."""
    height, width = clip.shape[-2:]
    clip = to_uint8(clip).cpu().expand(-1, 3, -1, -1)
    if width <= cell:
        return enlarge(clip, cell // width)
    size = (max(1, round(height * cell / width)), cell)
    return to_uint8(torch.nn.functional.interpolate(clip.float() / 255, size, mode="bilinear", antialias=True))


def _frame(panels: Sequence[Panel], number: int, columns: int) -> PIL.Image.Image:
    """One frame of the whole picture."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    font = PIL.ImageFont.load_default(12)
    labels = list(panels[0][1])
    left = max(int(font.getlength(label)) for label in labels) + 2 * _GAP
    width = max(clip.shape[-1] for _, rows in panels for clip in rows.values())
    headings = [_lines(title, font, width) for title, _ in panels]
    bands = [range(begin, min(begin + columns, len(panels))) for begin in range(0, len(panels), columns)]
    heights = [[max(panels[i][1][label].shape[-2] for i in band) for label in labels] for band in bands]
    tops = [max(len(headings[i]) for i in band) * _LINE + _GAP for band in bands]
    whole = (
        left + min(columns, len(panels)) * (width + _GAP),
        sum(top + sum(rows) + (len(rows) + 1) * _GAP for top, rows in zip(tops, heights, strict=True)),
    )
    sheet = PIL.Image.new("RGB", whole, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    y = 0
    for band, top, rows in zip(bands, tops, heights, strict=True):
        for column, i in enumerate(band):
            x = left + column * (width + _GAP)
            draw.multiline_text((x, y + _GAP), "\n".join(headings[i]), fill="black", font=font, spacing=3)
            below = y + top + _GAP
            for clip, height in zip(panels[i][1].values(), rows, strict=True):
                sheet.paste(to_pil(clip[min(number, len(clip) - 1)]), (x, below))
                below += height + _GAP
        below = y + top + _GAP
        for label, height in zip(labels, rows, strict=True):
            draw.text((left - _GAP, below + height / 2), label, fill="#555555", font=font, anchor="rm")
            below += height + _GAP
        y = below
    return sheet


def _lines(text: str, font: Any, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, cut between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _beside(frames: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """Some of the frames in one picture, whose colours are those of all."""
    import PIL.Image

    some = frames[:: max(1, len(frames) // 6)]
    width, height = frames[0].size
    sheet = PIL.Image.new("RGB", (width, height * len(some)))
    for number, frame in enumerate(some):
        sheet.paste(frame, (0, number * height))
    return sheet
