"""The published backbones by their short names: where their weights are, what their configs say, how large they are.

The table is `known.yaml` beside this file and the configs lie in `configs/NAME/`, as they were published (attribute
for attribute what `transformer/config.json` and its neighbours hold), so that shapes are known, and true sizes can
be built with random weights, where no weights can be fetched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ivedit.errors import IveditError, or_nearest

__all__ = ["CONFIGS", "Published", "published", "published_config", "published_names"]

CONFIGS = ("transformer", "vae", "scheduler", "text_encoder")
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Published:
    """A published backbone.

    Attributes:
        name: the short name.
        hub: owner/name of the pipeline in diffusers' layout.
        gigabytes: size of the published files of transformer, text_encoder and vae.
        text_length: tokens that texts are padded to.
        editor_width: the inner width r of the edit modules that we recommend.
    """

    name: str
    hub: str
    gigabytes: dict[str, float]
    text_length: int
    editor_width: int


@cache
def _table() -> dict[str, Published]:
    content = yaml.safe_load((_HERE / "known.yaml").read_text(encoding="utf-8"))
    return {name: Published(name, **entry) for name, entry in content.items()}


def published_names() -> list[str]:
    """The short names, in the table's order."""
    return list(_table())


def published(name: str) -> Published:
    """The backbone called ``name``.

    Raises:
        IveditError: there is none; the message has the nearest names.
    """
    if name not in _table():
        raise IveditError(f"backbone {name!r} is not a published one: {or_nearest(name, _table())}")
    return _table()[name]


def published_config(name: str, part: str) -> dict[str, Any]:
    """The published config of one part (of `CONFIGS`) of a backbone.

    Raises:
        IveditError: no such backbone.
        KeyError: no such part.
    """
    if part not in CONFIGS:
        raise KeyError(f"{part} has no published config; known: {', '.join(CONFIGS)}")
    file = _HERE / "configs" / published(name).name / f"{part}.json"
    return json.loads(file.read_text(encoding="utf-8"))
