"""From a configuration to an editor: resolve every field, find the variant, start it from the frozen weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch

from ivedit.backbone import Backbone, BackboneSpec
from ivedit.backbone.published import published, published_names
from ivedit.config.schema import EditorConfig
from ivedit.editor.base import Editor, parameter_count
from ivedit.editor.registry import VARIANTS
from ivedit.errors import ConfigError, IveditError, or_nearest

__all__ = ["build_editor", "count_weights", "editor_config"]

_log = logging.getLogger("ivedit.editor")

_LARGE_WIDTH = 1024  # of a backbone, from which on modules of its own width are billions of weights


def editor_config(config: Any) -> dict[str, Any]:
    """Every field of `EditorConfig` as a plain dict, from the dataclass, an OmegaConf node or a partial mapping.

    Raises:
        ConfigError: a key that `EditorConfig` does not have.
    """
    resolved = dataclasses.asdict(EditorConfig())
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        given: dict[str, Any] = dataclasses.asdict(config)
    elif isinstance(config, Mapping) or hasattr(config, "items"):
        given = {str(key): value for key, value in config.items()}
    else:
        raise ConfigError(f"editor: expected EditorConfig or a mapping, got {type(config).__name__}")
    unknown = [f"editor.{key} is not a setting: {or_nearest(key, resolved)}" for key in given if key not in resolved]
    if unknown:
        raise ConfigError(unknown)
    return resolved | given


def build_editor(config: Any, backbone: Backbone, *, seed: int = 0) -> Editor:
    """A new editor on the backbone's device; float32 weights.

    Args:
        config: `EditorConfig`, an OmegaConf node or a mapping of some of its fields.
        backbone: its frozen weights are the starting point.
        seed: of the weights that do not start as copies or zeros.

    Raises:
        ConfigError: unknown variant or key, or a setting that the backbone's shapes do not allow.
        IveditError: a variant that miscounts its own weights.
    """
    resolved = editor_config(config)
    variant = VARIANTS.get(resolved["variant"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        editor = variant(resolved, backbone)
    said, made = variant.expected_parameters(resolved, backbone.spec), parameter_count(editor)
    if said != made:
        raise IveditError(
            f"editor.variant {resolved['variant']!r} has {made} weights and says {said}, by which match_parameters and "
            "the plan of a run go: correct its expected_parameters (with a TwoStreamEditor, its path_size)"
        )
    return editor.to(backbone.device)


def count_weights(config: Any, spec: BackboneSpec) -> int:
    """Trained weights of the editor that `build_editor` would make; needs the backbone's shapes only.

    On a large backbone a warning says when modules of full width are about to be made, and which width we recommend.

    Raises:
        ConfigError: as `build_editor`.
    """
    resolved = editor_config(config)
    variant = VARIANTS.get(resolved["variant"])
    count = variant.expected_parameters(resolved, spec)
    if resolved["width"] is None and spec.width >= _LARGE_WIDTH:
        recommended = next(
            (known.editor_width for known in map(published, published_names()) if spec.name in (known.name, known.hub)),
            max(1, round(spec.width / 4 / spec.head_dim)) * spec.head_dim,
        )
        less = variant.expected_parameters({**resolved, "width": recommended}, spec)
        if less < count:  # the variant has a width
            _log.warning(
                "editor.width=null is the backbone's own width of %d: %.1f billion trained weights; "
                "editor.width=%d has %.1f", spec.width, count / 1e9, recommended, less / 1e9,
            )  # fmt: skip
    return count
