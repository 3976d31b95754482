"""A step can be captured as a CUDA graph: after one warm-up call it never reads a value back to the host, never makes
a tensor from Python numbers, and asks for the same operations whatever the data is.
"""

from __future__ import annotations

import pytest
import torch
from backbone.tiny import tiny_backbone
from torch.utils._python_dispatch import TorchDispatchMode

from ivedit.editor import EditText, build_editor, variant_names

FORBIDDEN = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "is_nonzero", "equal.default", "unique")


class Recorder(TorchDispatchMode):
    """Names and output shapes of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        shape = tuple(out.shape) if isinstance(out, torch.Tensor) else None
        self.calls.append(f"{func}{shape}")
        return out


@pytest.mark.parametrize("settings", [{"variant": name} for name in variant_names()] + [{"rounds": 2, "width": 24}])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_step_needs_nothing_from_the_host_and_does_the_same_whatever_the_data(settings, frames):
    backbone = tiny_backbone()
    editor = build_editor(settings, backbone)

    def step(seed: int, words: list[str]) -> list[str]:
        torch.manual_seed(seed)
        latents, source = torch.randn(2, 2, 4, frames, 6, 10).unbind()
        sigma = torch.rand(2)
        states = backbone.encode_text(words)
        text = EditText(states, states, states)
        editor.zero_grad()
        with Recorder() as recorder:
            context = editor.prepare(backbone, source, text).repeat(1)
            (editor.velocity(backbone, latents, sigma, context, text) - source).square().mean().backward()
        return recorder.calls

    step(0, ["a", "a"])
    first = step(1, ["make the red circle blue", ""])
    assert not [call for call in first if any(name in call for name in FORBIDDEN)]
    assert step(2, ["", "remove the star"]) == first
