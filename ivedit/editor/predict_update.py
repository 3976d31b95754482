"""The method's path: predict, difference, update (docs/method.md), reconstructed from the lifting scheme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ivedit.backbone import BackboneSpec
from ivedit.editor.attention import Rotary, SpatialAttention, aligned_map, spatial_attention_size
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
        self.aligned = aligned_map(block, width) if difference else NoDifference()
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


class NoDifference(nn.Module):
    """The zero map, as a number: d = p."""

    def forward(self, x: Tensor) -> float:
        return 0.0


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
