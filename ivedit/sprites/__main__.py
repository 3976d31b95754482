"""Look at the world: `python -m ivedit.sprites --split train --out pairs.png` draws edit pairs as film strips.

Each pair shows its instruction and its captions above three rows: the source, the target and the mask of what
changes.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from . import OPERATIONS, SPLITS, render_pairs, sample_pairs
from .pairs import PairBatch

_LINE = 11  # height of a line of the built-in font, pixels
_LETTER = 6


def sheet(pairs: PairBatch, frames: Sequence[int], size: int = 64, columns: int = 1) -> Image.Image:
    """The pairs as film strips with their words, `columns` pairs side by side."""
    source, target, mask = render_pairs(pairs, torch.tensor(list(frames)), size)
    strips = torch.stack((source, target, mask[:, :, None].expand_as(source)), 1)  # (B, 3, T, 3, H, W)
    width, height = (size + 2) * len(frames), (size + 2) * 3
    words = [_words(pairs, row, width // _LETTER) for row in range(len(pairs))]
    head = _LINE * max((text.count("\n") for text in words), default=0) + _LINE + 6
    rows = -(-len(pairs) // columns)
    page = Image.new("RGB", (columns * (width + 12), rows * (height + head + 6)), (245, 245, 245))
    pen = ImageDraw.Draw(page)
    pixels = (strips * 255).round().byte().permute(0, 1, 2, 4, 5, 3).cpu().numpy()
    for number, text in enumerate(words):
        left, top = (number % columns) * (width + 12) + 4, (number // columns) * (height + head + 6)
        pen.multiline_text((left, top + 3), text, fill=(20, 20, 20), spacing=0, font_size=_LINE - 1)
        for kind in range(3):
            for time in range(len(frames)):
                image = Image.fromarray(np.ascontiguousarray(pixels[number, kind, time]))
                page.paste(image, (left + time * (size + 2), top + head + kind * (size + 2)))
    return page


def _words(pairs: PairBatch, row: int, letters: int) -> str:
    title = f"[{OPERATIONS[int(pairs.operation[row])]}] {pairs.instruction[row]}"
    lines = (title, f"from: {pairs.source_caption[row]}", f"to: {pairs.target_caption[row]}")
    return "\n".join("\n".join(textwrap.wrap(line, letters)) for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one sheet of pairs, as the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m ivedit.sprites", description="Draw edit pairs as film strips.")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="index of the first pair")
    parser.add_argument("--count", type=int, default=9, help="how many pairs; operations follow one another")
    parser.add_argument("--operation", action="append", choices=OPERATIONS, help="only these operations (repeatable)")
    parser.add_argument("--frames", type=int, nargs="+", default=[0, 4, 8, 12, 16])
    parser.add_argument("--size", type=int, default=64, help="height and width of a frame, pixels")
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--out", required=True, help="the PNG to write")
    options = parser.parse_args(arguments)
    index = torch.arange(options.start, options.start + options.count)
    pairs = sample_pairs(options.seed, index, options.split, options.operation, balanced=True)
    sheet(pairs, options.frames, options.size, options.columns).save(options.out, optimize=True)
    print(f"{options.count} pairs of {options.split} in {options.out}")


if __name__ == "__main__":
    main()
