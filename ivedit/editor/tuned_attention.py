"""A control: the method plus low-rank weights on the 3D attention that the method leaves frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ivedit.backbone import Backbone, BackboneSpec
from ivedit.editor.context import GateRecord, ModuleText, SourceContext
from ivedit.editor.lowrank import LowRankAttention
from ivedit.editor.predict_update import PredictUpdateEditor
from ivedit.editor.registry import register

__all__ = ["TunedAttentionEditor"]


@register("tuned_attention")
class TunedAttentionEditor(PredictUpdateEditor):
    """A control: the method plus low-rank weights on the frozen 3D attention of the target stream.

    The same pairs train it; its motion metrics beside the method's tell whether freezing is what keeps the motion.
    """

    def __init__(self, config: Mapping[str, Any], backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.tuning = nn.ModuleList(LowRankAttention(backbone.spec.width, int(config["rank"])) for _ in self.blocks)

    @classmethod
    def own_size(cls, config: Mapping[str, Any], spec: BackboneSpec) -> int:
        return super().own_size(config, spec) + LowRankAttention.size(spec.width, config["rank"])

    def openings(
        self,
        slot: int,
        backbone: Backbone,
        context: SourceContext,
        words: ModuleText,
        rotary: tuple[Tensor, Tensor],
        spatial: tuple[Tensor, Tensor],
        scale: float,
        record: GateRecord | None,
    ) -> dict[str, Any]:
        attn, tuning = backbone.blocks[self.blocks[slot]].attn1, self.tuning[slot]

        def attend(x: Tensor) -> Tensor:
            return tuning(attn, x, rotary, scale)

        return {
            **super().openings(slot, backbone, context, words, rotary, spatial, scale, record),
            "attend": attend,
        }
