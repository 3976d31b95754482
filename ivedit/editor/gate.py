"""The gate: where, and in which channels, an edit is let through.

a = Wx x + Ws s;  c = Og SDPA(Qg a, Kg t, Vg t) over the real text tokens;  g = sigmoid(Wg silu(a + c)).
Wg starts at 0 with bias 1, so that g = 0.73 everywhere and the modules behind it learn from the first step. The
gate depends on the timestep through x. It replaces the mask a user would have to draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivedit.backbone.spec import BackboneSpec
from ivedit.editor.attention import HeadNorm, TextKeys, kept_rows, split_heads
from ivedit.editor.context import ModuleText, SourceTokens
from ivedit.editor.padded import attend
from ivedit.errors import ConfigError

__all__ = ["FeatureGate", "OpenGate", "TextGate", "build_gate", "gate_size"]

GRAINS = ("channel", "head", "token")


class OpenGate(nn.Module):
    """g = 1: no gate at all."""

    def project(self, s: Tensor) -> SourceTokens:
        """Nothing of the source is needed."""
        return {}

    def forward(self, x: Tensor, source: SourceTokens, text: ModuleText, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return u as it is, and no gate."""
        return u, None


class FeatureGate(nn.Module):
    """A gate from target and source features, without text (a control)."""

    def __init__(self, spec: BackboneSpec, width: int, grain: str) -> None:
        super().__init__()
        self.from_x = nn.Linear(spec.width, width)
        self.from_s = nn.Linear(spec.width, width, bias=False)
        values = {"channel": spec.width, "head": spec.heads, "token": 1}[grain]
        self.repeats = spec.width // values
        self.to_gate = nn.Linear(width, values)
        nn.init.zeros_(self.to_gate.weight)
        nn.init.ones_(self.to_gate.bias)

    def project(self, s: Tensor) -> SourceTokens:
        """Ws s, (B, F, N, r)."""
        return {"gate": self.from_s(s)}

    def read_text(self, a: Tensor, text: ModuleText) -> Tensor:
        """What is added to a; here nothing."""
        return a

    def forward(self, x: Tensor, source: SourceTokens, text: ModuleText, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gate u (B, F, N, C); also return g, (B, F, N, C or heads or 1)."""
        a = self.from_x(x) + source["gate"]
        g = torch.sigmoid(self.to_gate(F.silu(self.read_text(a, text))))
        gated = (u.unflatten(-1, (-1, self.repeats)) * g.unsqueeze(-1)).flatten(-2)
        return gated, g


class TextGate(FeatureGate):
    """The gate of the method: features ask the instruction's tokens."""

    def __init__(self, spec: BackboneSpec, width: int, grain: str, block: Any) -> None:
        super().__init__(spec, width, grain)
        self.head_dim = spec.head_dim
        self.query = nn.Linear(width, width)
        self.norm = HeadNorm(block.attn2.norm_q, kept_rows(block.attn2, width))
        self.text = TextKeys(block.attn2, width, spec.head_dim)
        self.out = nn.Linear(width, width)

    def read_text(self, a: Tensor, text: ModuleText) -> Tensor:
        """a + c, (B, F, N, r)."""
        # Text is the same for all frames, so the frames stay side by side in the query: (B, heads, F*N, head size).
        query = split_heads(self.norm(self.query(a.flatten(1, 2))), self.head_dim)
        key, value = self.text(text.tokens)
        c = attend(query, key, value, text.alone)
        return a + self.out(c.transpose(1, 2).flatten(2)).view_as(a)


def build_gate(kind: str, grain: str, spec: BackboneSpec, width: int, block: Any) -> nn.Module:
    """The gate named by `editor.gate` and `editor.gate_grain`."""
    if grain not in GRAINS:
        raise ConfigError(f"editor.gate_grain: {grain!r} is not one of {', '.join(GRAINS)}")
    builders: dict[str, Callable[[], nn.Module]] = {
        "text": lambda: TextGate(spec, width, grain, block),
        "features": lambda: FeatureGate(spec, width, grain),
        "none": OpenGate,
    }
    if kind not in builders:
        raise ConfigError(f"editor.gate: {kind!r} is not one of {', '.join(builders)}")
    return builders[kind]()


def gate_size(kind: str, grain: str, spec: BackboneSpec, width: int) -> int:
    """Number of weights of a gate."""
    if kind == "none":
        return 0
    channels = spec.width
    values = {"channel": channels, "head": spec.heads, "token": 1}[grain]
    size = (channels + 1) * width + channels * width + (width + 1) * values
    if kind == "text":
        size += 2 * (width + 1) * width + width + 2 * (channels + 1) * width + width
    return size
