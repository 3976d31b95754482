"""The names of the sprite world and what they stand for: shapes, colours, sizes, motions, backgrounds, places, splits.

Tensors hold positions in these tuples. Object colours and background colours are disjoint sets of words and
well apart in RGB, so an object can be seen on every background and a caption says without doubt what a colour
word belongs to.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

FRAMES = 17
CANVAS = 64.0  # all coordinates are in pixels of a 64 x 64 frame, x to the right and y down, whatever size is rendered
MAX_OBJECTS = 3

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
# Turning a round shape shows nothing, so its angle is always 0.
ROUND = tuple(name in ("circle", "ring") for name in SHAPES)
# Degrees after which a turned shape looks as before: turned by less than half of this, its angle shows in any frame.
SYMMETRY = (360.0, 90.0, 120.0, 72.0, 90.0, 360.0, 180.0, 360.0)

COLOURS = ("red", "green", "blue", "yellow", "cyan", "purple", "pink", "white")
COLOUR_RGB = (
    (0.85, 0.05, 0.08),
    (0.15, 0.78, 0.15),
    (0.10, 0.30, 0.98),
    (1.00, 0.93, 0.10),
    (0.10, 0.90, 0.95),
    (0.64, 0.18, 0.92),
    (1.00, 0.42, 0.70),
    (1.00, 1.00, 1.00),
)

SIZES = ("small", "medium", "large")
RADII = (7.0, 10.0, 13.5)
# Radius of the circle that holds a shape at any angle, its soft edge included; multiples of 1/8 keep layouts
# exact in float32.
BOUNDS = (8.5, 11.75, 15.625)

DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
SPEEDS = ("still", "slowly", "quickly")
# Pixels per frame in multiples of 1/32, so that paths are exact; diagonals are shorter per axis for an equal
# pace.
STRAIGHT = (0.0, 24 / 32, 48 / 32)
DIAGONAL = (0.0, 17 / 32, 34 / 32)
HEADINGS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))
SPIN = 4.0  # degrees per frame; positive is clockwise on the screen
SPINS = ("none", "clockwise", "anticlockwise")

BACKGROUNDS = ("plain", "gradient", "striped", "checkered")
BACKGROUND_COLOURS = ("black", "grey", "brown", "navy", "teal", "beige", "maroon", "lavender")
BACKGROUND_RGB = (
    (0.04, 0.04, 0.05),
    (0.50, 0.50, 0.50),
    (0.52, 0.36, 0.16),
    (0.08, 0.10, 0.42),
    (0.00, 0.42, 0.40),
    (0.82, 0.74, 0.54),
    (0.38, 0.04, 0.16),
    (0.70, 0.66, 0.88),
)
TILE = 8.0  # width of a stripe and side of a checker square, pixels

STYLES = ("none", "grey", "inverted", "outline")
STYLE_PHRASES = ("", "greyscale", "inverted colours", "an outline drawing")

PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
PLACE_CENTRES = tuple((x, y) for y in (16.0, 32.0, 48.0) for x in (16.0, 32.0, 48.0))

RELATIONS = ("left of", "right of", "above", "below")
RELATION_STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))
GAP = 2.0  # pixels between the bounding circles of an added object and of the object that it was placed beside

# The colour of the colour-shape pair that training never shows, per shape: a permutation, so that every shape
# and every colour is trained in seven of its eight pairs.
HELD_OUT_COLOUR = (5, 3, 0, 2, 7, 4, 1, 6)
HELD_OUT_SHAPE = tuple(HELD_OUT_COLOUR.index(colour) for colour in range(len(COLOURS)))

SPLITS = ("pretrain", "train", "val", "test", "test_combination", "test_phrasing", "test_three")

OPERATIONS = (
    "recolour",
    "reshape",
    "remove",
    "add",
    "resize",
    "background_colour",
    "background_pattern",
    "style",
    "compound",
)


@cache
def table(values: tuple, device: torch.device) -> Tensor:
    """The tuple as a tensor on `device`, made once per device."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def check_split(split: str) -> None:
    """Raise ValueError naming the known splits when `split` is not one of them."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
