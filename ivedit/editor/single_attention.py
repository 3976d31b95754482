"""The ablation without predict-update: one 2D attention from target to source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ivedit.backbone import BackboneSpec
from ivedit.editor.attention import Rotary, SpatialAttention, linear_together, spatial_attention_size, split_heads
from ivedit.editor.context import ModuleText, SourceTokens
from ivedit.editor.registry import register
from ivedit.editor.two_stream import TwoStreamEditor

__all__ = ["SingleAttention", "SingleAttentionEditor"]


class SingleAttention(nn.Module):
    """Without predict-update: u = O SDPA(Q x, K s, V s), copied from the same frozen weights, O starting at 0."""

    def __init__(self, block: Any, width: int, head_dim: int, *, text: bool) -> None:
        super().__init__()
        self.attend = SpatialAttention(block, width, head_dim, text=text, zero_out=True)

    def project(self, s: Tensor, rotary: Rotary) -> SourceTokens:
        """K s and V s."""
        key, value = linear_together(s, self.attend.key, self.attend.value)
        return {"key": self.attend.turned_keys(key, rotary), "value": split_heads(value, self.attend.head_dim)}

    def forward(self, x: Tensor, source: SourceTokens, text: ModuleText, rotary: Rotary) -> tuple[Tensor, float]:
        """u (B, F, N, C), and no prediction: 0."""
        query = self.attend.turned_queries(self.attend.query(x), rotary)
        mixed = self.attend(query, source["key"], source["value"], text)
        return self.attend.out(mixed), 0.0


@register("single_attention")
class SingleAttentionEditor(TwoStreamEditor):
    """The method without predict-update: one 2D attention from target to source."""

    @staticmethod
    def build_path(config: Mapping[str, Any], block: Any, width: int, spec: BackboneSpec) -> nn.Module:
        return SingleAttention(block, width, spec.head_dim, text=config["text_update"])

    @staticmethod
    def path_size(config: Mapping[str, Any], width: int, spec: BackboneSpec) -> int:
        return spatial_attention_size(spec.width, width, text=config["text_update"])
