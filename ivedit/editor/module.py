"""The edit module of one block, put together from parts: a path that makes the edit, a gate, a copy path.

The path is a family's own (`predict_update.py`, `single_attention.py`), the gate one of `gate.py`. Which parts a module
has is decided when it is built; the forward pass is the same for all.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ivedit.editor.attention import (
    Rotary,
    copy_linear,
    kept_rows,
    zero_linear,
)
from ivedit.editor.context import ModuleText, SourceTokens

__all__ = ["CopyPath", "EditModule", "NoCopy", "NoTokenMap", "TokenMap", "copy_size"]


class CopyPath(nn.Module):
    """Oc (p + A s), ungated: what is kept is copied here, so that the gate can become an edit mask.

    A starts as the frozen V of the kept heads, p is the prediction in the same r-wide space (before its output
    projection; 0 without predict-update), and Oc, which starts at 0, maps both to C.
    """

    def __init__(self, block: Any, width: int) -> None:
        super().__init__()
        attn = block.attn1
        channels = attn.to_v.weight.shape[1]
        self.aligned = nn.Linear(channels, width)
        self.out = nn.Linear(width, channels)
        copy_linear(self.aligned, attn.to_v, kept_rows(attn, width))
        zero_linear(self.out)

    def project(self, s: Tensor) -> SourceTokens:
        """A s."""
        return {"copy": self.aligned(s)}

    def forward(self, edit: Tensor, predicted: Tensor | float, source: SourceTokens) -> Tensor:
        """Edit plus copy, (B, F, N, C)."""
        return edit + self.out(predicted + source["copy"])


class NoCopy(nn.Module):
    """No copy path."""

    def project(self, s: Tensor) -> SourceTokens:
        """Nothing of the source is needed."""
        return {}

    def forward(self, edit: Tensor, predicted: Tensor | float, source: SourceTokens) -> Tensor:
        """The edit as it is."""
        return edit


class TokenMap(nn.Module):
    """u + Om silu(Mx x + Ms s), per token, Om starting at 0: what attention with linear values cannot express.

    `editor.mlp` sizes it. `editor.match_parameters` sizes it too, as capacity without the mechanism under test, so
    that an ablation has as many trained weights as the full method.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.from_x = nn.Linear(channels, hidden)
        self.from_s = nn.Linear(channels, hidden, bias=False)
        self.out = nn.Linear(hidden, channels)
        zero_linear(self.out)

    def project(self, s: Tensor) -> SourceTokens:
        """Ms s."""
        return {"adapter": self.from_s(s)}

    def forward(self, u: Tensor, x: Tensor, source: SourceTokens) -> Tensor:
        """u plus the adapter's output, (B, F, N, C)."""
        return u + self.out(F.silu(self.from_x(x) + source["adapter"]))

    @staticmethod
    def size(channels: int, hidden: int) -> int:
        """Number of weights."""
        return 2 * channels * hidden + hidden + (hidden + 1) * channels


class NoTokenMap(nn.Module):
    """No extra capacity."""

    def project(self, s: Tensor) -> SourceTokens:
        """Nothing of the source is needed."""
        return {}

    def forward(self, u: Tensor, x: Tensor, source: SourceTokens) -> Tensor:
        """u as it is."""
        return u


class EditModule(nn.Module):
    """One block's edit: x, s and text in, what is added to the residual stream out.

    `rounds` repeats path and gate with the same weights, each round seeing the features with the edit so far added.
    """

    path: Any
    gate: Any
    copy: Any
    adapter: Any

    def __init__(self, path: nn.Module, gate: nn.Module, copy: nn.Module, adapter: nn.Module, rounds: int) -> None:
        super().__init__()
        self.path = path
        self.gate = gate
        self.copy = copy
        self.adapter = adapter
        self.rounds = rounds

    def project(self, s: Tensor, rotary: Rotary) -> SourceTokens:
        """Everything that depends on the source alone, from its features (B, F, N, C)."""
        tokens: SourceTokens = self.path.project(s, rotary)
        return tokens | self.gate.project(s) | self.copy.project(s) | self.adapter.project(s)

    def forward(
        self, x: Tensor, source: SourceTokens, text: ModuleText, rotary: Rotary
    ) -> tuple[Tensor, Tensor | None]:
        """Edit (B, F, N, C) for modulated target features x of that shape, and the last round's gate."""
        edit: Tensor | float = 0.0
        for _ in range(self.rounds):
            u, predicted = self.path(x, source, text, rotary)
            gated, gate = self.gate(x, source, text, self.adapter(u, x, source))
            edit = gated + edit
            x = x + gated
        return self.copy(edit, predicted, source), gate


def copy_size(channels: int, width: int) -> int:
    """Number of weights of a `CopyPath`."""
    return (channels + 1) * width + (width + 1) * channels
