"""The frozen backbone: load a diffusers Wan folder, run source and target streams through its frozen blocks."""

from ivedit.backbone.model import Backbone
from ivedit.backbone.random_weights import random_backbone
from ivedit.backbone.spec import BackboneSpec, Grid
from ivedit.data.text import TextStates

__all__ = ["Backbone", "BackboneSpec", "Grid", "TextStates", "random_backbone"]
