"""The sprite world: clips of moving shapes with captions, instructions, edited targets and masks, all from (seed, index)."""

from .language import caption_words, captions, describe, parse_caption
from .render import object_masks, render
from .scene import SceneBatch, direction_labels, facts, sample_scenes
from .vocabulary import FRAMES, MAX_OBJECTS, OPERATIONS, SPLITS
