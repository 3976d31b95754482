"""The picture sizes that `data.buckets` names: a list, or a ladder of aspect ratios around one size.

Sizes are (height, width) in pixels and are written HEIGHTxWIDTH, in the order of `data.height` and `data.width`.
Pure arithmetic: the rules between settings use it, and so does whoever reads pairs or counts their cost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

__all__ = ["AUTO", "LADDER", "Size", "bucket_sizes", "drawing_size", "ladder", "nearest_bucket", "size_name"]

Size = tuple[int, int]

AUTO = "auto:"
LADDER = (1.0, 4 / 3, 3 / 2, 16 / 9, 2.0, 21 / 9)
"""Aspect ratios, long side over short side, of `auto:`; each stands for both orientations."""

_AREA = (0.01, 0.03)  # a size's area may differ by this share; the second only where the first leaves a ratio empty
_RATIO = 0.05  # log distance of a size's aspect ratio from its rung
_APART = 0.1  # log distance of a rung from the size that was asked for, below which the rung is left out


def size_name(size: Size) -> str:
    """As it is written in `data.buckets`."""
    return f"{size[0]}x{size[1]}"


def bucket_sizes(entries: Sequence[str], multiple: int = 16) -> list[Size]:
    """The sizes of `data.buckets`, in the order given; those of `auto:` from tall to wide.

    Args:
        entries: "480x832", ...; or one "auto:480x832".
        multiple: Heights and widths must divide by it: pixels of a token (16 at Wan 2.1, 32 at Wan 2.2's 5B).

    Raises:
        ValueError: an entry is no size, does not divide, or can never be the nearest; the message says the fix.
    """
    if any(entry.startswith(AUTO) for entry in entries):
        if len(entries) > 1:
            raise ValueError(f"auto makes the whole list; write [{entries[0]}] alone, or name every size")
        return ladder(_parse(entries[0].removeprefix(AUTO), multiple), multiple)
    sizes = [_parse(entry, multiple) for entry in entries]
    for i, size in enumerate(sizes):
        for earlier in sizes[:i]:
            if size[0] * earlier[1] == size[1] * earlier[0]:
                raise ValueError(
                    f"{size_name(earlier)} and {size_name(size)} have one aspect ratio, so the second would stay "
                    "empty; keep one of them"
                )
    return sizes


def drawing_size(height: int, width: int, entries: Sequence[str]) -> Size:
    """The size in which an editor trained with these settings draws clips, if nobody says another.

    That is `data.height` x `data.width` unless `data.buckets` stood above it: then the size that `auto:` names, or the
    first of a list.
    """
    sizes = [_parse(entry.removeprefix(AUTO), 1) for entry in entries]
    return sizes[0] if sizes and (height, width) not in sizes else (height, width)


def _parse(entry: str, multiple: int) -> Size:
    found = re.fullmatch(r"\s*([1-9]\d{0,4})x([1-9]\d{0,4})\s*", entry)
    if found is None:
        raise ValueError(f"{entry!r} is no size; write HEIGHTxWIDTH such as 480x832, or auto:480x832")
    size = int(found[1]), int(found[2])
    if any(side % multiple for side in size):
        near = tuple(max(multiple, round(side / multiple) * multiple) for side in size)
        raise ValueError(
            f"{size_name(size)}: height and width must be multiples of {multiple}; the nearest is "
            f"{size_name((near[0], near[1]))}"
        )
    return size


def ladder(base: Size, multiple: int = 16) -> list[Size]:
    """Sizes of nearly the area of `base`, one for each aspect ratio of `LADDER` and its inverse, from tall to wide.

    `base` and `base` turned stand for the rungs nearest to them. Areas agree within 1%, or within 3% where the
    multiple leaves nothing closer (a square at 480x832 and 32); a rung that has not even that is left out.
    """
    area = (base[0] // multiple) * (base[1] // multiple)
    grid = [
        (rows, columns)
        for rows in range(1, area + 1)
        for columns in range(max(1, math.ceil(area * (1 - _AREA[1]) / rows)), int(area * (1 + _AREA[1]) / rows) + 1)
    ]
    chosen = {base, (base[1], base[0])}
    asked = sorted(chosen)
    for rung in sorted({ratio for long in LADDER for ratio in (long, 1 / long)}):
        if any(abs(math.log(size[1] / size[0] / rung)) < _APART for size in asked):
            continue
        for tolerance in _AREA:
            near = [
                (abs(math.log(columns / rows / rung)), abs(rows * columns / area - 1), rows, columns)
                for rows, columns in grid
                if abs(rows * columns / area - 1) <= tolerance
            ]
            if near and min(near)[0] <= _RATIO:
                _, _, rows, columns = min(near)
                chosen.add((rows * multiple, columns * multiple))
                break
    return sorted(chosen, key=lambda size: size[1] / size[0])


def nearest_bucket(size: Size, sizes: Sequence[Size]) -> int:
    """Which of `sizes` has the aspect ratio nearest to that of `size`, as the logarithm counts; ties to the first.

    A centred crop to that bucket keeps the largest share of the picture: exp(-|log ratio difference|).
    """
    ratio = math.log(size[1] / size[0])
    return min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i][1] / sizes[i][0]) - ratio))
