"""The method's path: predict, difference, update (docs/method.md), reconstructed from the lifting scheme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivedit.backbone import BackboneSpec
from ivedit.editor.attention import (
    Rotary,
    SpatialAttention,
    aligned_map,
    linear_together,
    spatial_attention_size,
    split_heads,
)
from ivedit.editor.context import ModuleText, SourceTokens
from ivedit.editor.registry import register
from ivedit.editor.two_stream import TwoStreamEditor

__all__ = ["PredictUpdate", "PredictUpdateEditor", "predict_update_size"]


class PredictUpdate(nn.Module):
    """Predict, difference, update (the lifting scheme).

    p = Op SDPA(Qp x, Kp s, Vp s) is what the source says should stand at each target token; d = p - Wd x is how far
    the target is from it, its size being the signal; u = Ou SDPA(Qu x, Ku s, Vu d), with text tokens among keys and
    values where asked.
    """

    def __init__(self, block: Any, width: int, head_dim: int, *, text: bool, difference: bool) -> None:
        super().__init__()
        self.predict = SpatialAttention(block, width, head_dim, text=False, zero_out=False)
        self.aligned: Any = aligned_map(block, width) if difference else NoDifference()
        self.update = SpatialAttention(block, width, head_dim, text=text, zero_out=True)

    def project(self, s: Tensor, rotary: Rotary) -> SourceTokens:
        """Kp s, Vp s and Ku s."""
        key, value, update_key = linear_together(s, self.predict.key, self.predict.value, self.update.key)
        return {
            "predict_key": self.predict.turned_keys(key, rotary),
            "predict_value": split_heads(value, self.predict.head_dim),
            "update_key": self.update.turned_keys(update_key, rotary),
        }

    def forward(self, x: Tensor, source: SourceTokens, text: ModuleText, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """u (B, F, N, C), and the prediction before its output projection (B, F, N, r)."""
        query, update_query, *aligned = linear_together(x, self.predict.query, self.update.query, *self.of_x)
        query = self.predict.turned_queries(query, rotary)
        predicted = self.predict(query, source["predict_key"], source["predict_value"], text)
        difference = self.difference(predicted, *aligned)
        query = self.update.turned_queries(update_query, rotary)
        mixed = self.update(query, source["update_key"], self.update.values(difference), text)
        return self.update.out(mixed), predicted

    @property
    def of_x(self) -> list[nn.Linear]:
        """The part of Wd that reads x: all of it at full width, its first factor below, none without a difference."""
        aligned: Any = self.aligned
        if isinstance(aligned, NoDifference):
            return []
        first: Any = aligned[0] if isinstance(aligned, nn.Sequential) else aligned
        return [first]

    def difference(self, predicted: Tensor, aligned: Tensor | None = None) -> Tensor:
        """d = Op p - Wd x from p (B, F, N, r) and what `of_x` made of x."""
        out, second = self.predict.out, self.aligned
        if aligned is None:
            return out(predicted)
        if not isinstance(second, nn.Sequential):
            return out(predicted) - aligned
        # Op p - W2 (W1 x) in one product: [Op, -W2] [p, W1 x].
        last: Any = second[1]
        weight = torch.cat((out.weight, -last.weight), dim=1)
        return F.linear(torch.cat((predicted, aligned), dim=-1), weight, out.bias - last.bias)


class NoDifference(nn.Module):
    """The zero map: d = p."""


def predict_update_size(channels: int, width: int, *, text: bool, difference: bool) -> int:
    """Number of weights of a `PredictUpdate`."""
    size = spatial_attention_size(channels, width, text=False) + spatial_attention_size(channels, width, text=text)
    if difference:
        full = (channels + 1) * channels
        size += full if width == channels else (channels + 1) * width + (width + 1) * channels
    return size


@register("predict_update")
class PredictUpdateEditor(TwoStreamEditor):
    """The method: predict, difference, update, gate."""

    @staticmethod
    def build_path(config: Mapping[str, Any], block: Any, width: int, spec: BackboneSpec) -> nn.Module:
        return PredictUpdate(block, width, spec.head_dim, text=config["text_update"], difference=config["difference"])

    @staticmethod
    def path_size(config: Mapping[str, Any], width: int, spec: BackboneSpec) -> int:
        return predict_update_size(spec.width, width, text=config["text_update"], difference=config["difference"])
