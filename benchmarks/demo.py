"""The moving picture of the README: one held-out clip, edited as several instructions say by the shipped editor.

    python benchmarks/demo.py --clip docs/sprites/clip.mp4 --out docs/sprites/edits.gif

The clip is one of the held-out ones on which that editor succeeds; it does so on two of three (the README's table).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone that is not installed

INSTRUCTIONS = (
    "make the blue heart green", "make the background beige", "turn the red cross into a circle",
    "add a small white star",
)  # fmt: skip
NUMBER = 99
"""Of the clip among the 243 of the evaluation's split `test`."""


def make_clip(path: Path) -> None:
    """Draw the clip as evaluations do."""
    import torch

    from ivedit.evaluation.clips import SET_SEED
    from ivedit.media import to_uint8, write_video
    from ivedit.sprites import render_pairs, sample_pairs

    pairs = sample_pairs(SET_SEED, torch.tensor([NUMBER]), "test", balanced=True)
    source, _, _ = render_pairs(pairs, torch.arange(17))
    write_video(path, to_uint8(source[0]), 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, required=True, help="the clip to edit; drawn where there is none")
    parser.add_argument("--out", type=Path, required=True, help="the animation, .gif")
    parser.add_argument("--instructions", nargs="+", default=INSTRUCTIONS, metavar="TEXT")
    given = parser.parse_args()
    if not given.clip.exists():
        make_clip(given.clip)
    from ivedit.animation import write_animation
    from ivedit.media import read_video
    from ivedit.pipeline import IVEditPipeline

    source = read_video(given.clip).pixels
    pipeline = IVEditPipeline.from_pretrained("wan-sprites", editor="shipped")
    panels = [("source", {"": source})]
    panels += [(words, {"": pipeline(source / 255, words)}) for words in given.instructions]
    print(write_animation(given.out, panels, columns=len(panels)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
