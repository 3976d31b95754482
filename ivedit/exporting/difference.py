"""What storing an editor in fewer bits changes: the same velocity, computed with both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ivedit.backbone import Backbone, TextStates
from ivedit.editor import EditText, build_editor
from ivedit.flow import draw_noise

__all__ = ["velocity_difference"]

_FRAMES, _TOKENS, _SIGMA = 2, 32, 0.5


@torch.no_grad()
def velocity_difference(
    backbone: Backbone, config: Mapping[str, Any], weights: Mapping[str, Tensor], stored: Mapping[str, Tensor],
    size: tuple[int, int],
) -> dict[str, Any]:  # fmt: skip
    """How far one predicted velocity moves when ``stored`` weights stand in for the trained ones.

    Random source, target and text of fixed seeds, two latent frames, noise level 0.5, in float32 where the backbone is.

    Args:
        backbone: with its transformer.
        config: of the editor.
        weights: as trained, float32.
        stored: the same names in another type.
        size: (H, W) of pixels.

    Returns:
        ``relative``: |v_stored - v| / |v|. ``of_edit``: the same over what the editor adds, |v - v_frozen|; None where
        it adds nothing. ``frames``, ``size``, ``sigma``: what was looked at.
    """
    spec, device = backbone.spec, backbone.device
    latent = (spec.latent_channels, _FRAMES, size[0] // spec.space_factor, size[1] // spec.space_factor)
    source, target = (draw_noise(latent, [seed]).to(device) for seed in (1, 2))
    states = draw_noise((_TOKENS, spec.text_dim), [3, 4]).to(device, backbone.compute_dtype())
    mask = torch.ones(1, _TOKENS, dtype=torch.bool, device=device)
    words, nothing = (TextStates(states[i : i + 1], mask) for i in range(2))
    text = EditText(words, words, nothing)
    sigma = torch.full((1,), _SIGMA, device=device)

    def velocity(values: Mapping[str, Tensor]) -> Tensor:
        editor = build_editor(config, backbone)
        editor.load_state_dict({name: value.float() for name, value in values.items()})
        return editor.velocity(backbone, target, sigma, editor.prepare(backbone, source, text), text)

    full, less = velocity(weights), velocity(stored)
    moved = float((less - full).norm())
    added = float((full - backbone.velocity(target, sigma, words)).norm())
    return {
        "relative": moved / float(full.norm()),
        "of_edit": moved / added if added else None,
        "frames": _FRAMES, "size": list(size), "sigma": _SIGMA,
    }  # fmt: skip
