"""The edit module of one block, put together from parts: a path that makes the edit, a gate, a copy path.

The path is predict-update or a single attention (`paths.py`), the gate is one of `gate.py`. Which parts a module has
is decided when it is built; the forward pass is the same for all.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ivedit.editor.attention import (
    Rotary,
    SpatialAttention,
    aligned_map,
    copy_linear,
    kept_rows,
    spatial_attention_size,
    zero_linear,
)
from ivedit.editor.context import ModuleText, SourceTokens

__all__ = [
    "CopyPath", "EditModule", "MatchedAdapter", "NoCopy", "PredictUpdate", "SingleAttention", "copy_size",
    "predict_update_size",
]


class PredictUpdate(nn.Module):
    """Predict, difference, update (the lifting scheme).

    p = Op SDPA(Qp x, Kp s, Vp s) is what the source says should stand at each target token; d = p - Wd x is how far
    the target is from it, its size being the signal; u = Ou SDPA(Qu x, Ku s, Vu d), with text tokens among keys and
    values where asked.
    """

    def __init__(self, block: Any, width: int, head_dim: int, *, text: bool, difference: bool) -> None:
        super().__init__()
        self.predict = SpatialAttention(block, width, head_dim, text=False, zero_out=False)
        self.aligned = aligned_map(block, width) if difference else Nothing()
        self.update = SpatialAttention(block, width, head_dim, text=text, zero_out=True)

    def project(self, s: Tensor, rotary: Rotary) -> SourceTokens:
        """Kp s, Vp s and Ku s."""
        return {
            "predict_key": self.predict.keys(s, rotary),
            "predict_value": self.predict.values(s),
            "update_key": self.update.keys(s, rotary),
        }

    def forward(self, x: Tensor, source: SourceTokens, text: ModuleText, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """u (B, F, N, C), and the prediction before its output projection (B, F, N, r)."""
        query = self.predict.queries(x, rotary)
        predicted = self.predict(query, source["predict_key"], source["predict_value"], text)
        difference = self.predict.out(predicted) - self.aligned(x)
        query = self.update.queries(x, rotary)
        mixed = self.update(query, source["update_key"], self.update.values(difference), text)
        return self.update.out(mixed), predicted


class Nothing(nn.Module):
    """The zero map, as a number: d = p."""

    def forward(self, x: Tensor) -> float:
        return 0.0


class SingleAttention(nn.Module):
    """Without predict-update: u = O SDPA(Q x, K s, V s), copied from the same frozen weights, O starting at 0."""

    def __init__(self, block: Any, width: int, head_dim: int, *, text: bool) -> None:
        super().__init__()
        self.attend = SpatialAttention(block, width, head_dim, text=text, zero_out=True)

    def project(self, s: Tensor, rotary: Rotary) -> SourceTokens:
        """K s and V s."""
        return {"key": self.attend.keys(s, rotary), "value": self.attend.values(s)}

    def forward(self, x: Tensor, source: SourceTokens, text: ModuleText, rotary: Rotary) -> tuple[Tensor, float]:
        """u (B, F, N, C), and no prediction: 0."""
        mixed = self.attend(self.attend.queries(x, rotary), source["key"], source["value"], text)
        return self.attend.out(mixed), 0.0


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


class MatchedAdapter(nn.Module):
    """Extra capacity without the mechanism under test: u + Om silu(Mx x + Ms s), per token, Om starting at 0.

    `editor.match_parameters` sizes it, so that an ablation has as many trained weights as the full method.
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


class NoAdapter(nn.Module):
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


def predict_update_size(channels: int, width: int, *, text: bool, difference: bool) -> int:
    """Number of weights of a `PredictUpdate`."""
    size = spatial_attention_size(channels, width, text=False) + spatial_attention_size(channels, width, text=text)
    if difference:
        full = (channels + 1) * channels
        size += full if width == channels else (channels + 1) * width + (width + 1) * channels
    return size


def copy_size(channels: int, width: int) -> int:
    """Number of weights of a `CopyPath`."""
    return (channels + 1) * width + (width + 1) * channels
