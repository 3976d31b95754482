"""The sprite world: clips of moving shapes with captions, instructions, edited targets and masks.

Everything is a pure function of (seed, index), vectorised in torch, on any device. Scenes are sampled and
drawn by `sample_scenes` and `render`, put in words by `captions`; edits with their targets come from
`sample_pairs` and `render_pairs`. `python -m ivedit.sprites --out sheet.png` shows some.
"""

from .instructions import all_words, parse_instruction, resolve
from .language import captions, describe, parse_caption
from .pairs import PairBatch, render_pairs, sample_pairs
from .render import object_masks, render
from .scene import SceneBatch, direction_labels, facts, sample_scenes
from .vocabulary import FRAMES, MAX_OBJECTS, OPERATIONS, SPLITS

__all__ = [
    "FRAMES",
    "MAX_OBJECTS",
    "OPERATIONS",
    "SPLITS",
    "PairBatch",
    "SceneBatch",
    "all_words",
    "captions",
    "describe",
    "direction_labels",
    "facts",
    "object_masks",
    "parse_caption",
    "parse_instruction",
    "render",
    "render_pairs",
    "resolve",
    "sample_pairs",
    "sample_scenes",
]
