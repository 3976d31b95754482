"""Target and source side by side in latent width, after ViFeEdit (Yu et al., arXiv 2603.15478).

The frozen 3D attention runs on each half alone. Two 2D attentions over both halves of each frame, both started from
the 3D attention and the second's output projection negated, cancel at the start; low-rank weights on them and on the
feed-forward network are what is trained. The source half stands at timestep 0, the target half at sigma, both read
the same text, and only the target half's velocity is returned.

The halves never meet outside the 2D attentions. So they are held as a batch of 2B streams with their own timesteps,
which is the same arithmetic as one wide latent with per-token timesteps and block-diagonal 3D attention, without the
masks. Both halves are run again at every sampling step, as the mechanism needs: the source half sees the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ivedit.backbone import Backbone, BackboneSpec, Grid
from ivedit.backbone.blocks import attention
from ivedit.editor.base import Editor, module_blocks
from ivedit.editor.context import EditText, GateRecord, SourceContext
from ivedit.editor.lowrank import LowRankAttention, LowRankFeedForward
from ivedit.editor.registry import register
from ivedit.errors import ConfigError

__all__ = ["SideBySideEditor"]

Rotary = tuple[Tensor, Tensor]


class SideBySideModule(nn.Module):
    """One block's cancelling pair of 2D attentions and its low-rank feed-forward weights."""

    def __init__(self, spec: BackboneSpec, rank: int) -> None:
        super().__init__()
        self.plus = LowRankAttention(spec.width, rank)
        self.minus = LowRankAttention(spec.width, rank, sign=-1.0)
        self.ffn = LowRankFeedForward(spec.width, spec.ffn_width, rank)

    def attend(self, attn: Any, x: Tensor, rotary: Rotary, wide: Rotary, frames: int, scale: float) -> Tensor:
        """x (2B, F*N, C), targets first, to the block's attention output of that shape."""
        alone = attention(attn, x, rotary)
        target, source = x.unflatten(1, (frames, -1)).flatten(0, 1).chunk(2)
        both = torch.cat((target, source), dim=1)
        # The pair is added up first: only then is their sum exactly 0 at the start.
        pair = self.plus(attn, both, wide) + self.minus(attn, both, wide)
        pair = torch.cat(pair.chunk(2, dim=1)).view_as(x)
        return alone + (pair if scale == 1.0 else scale * pair)

    @staticmethod
    def size(spec: BackboneSpec, rank: int) -> int:
        """Number of weights."""
        return 2 * LowRankAttention.size(spec.width, rank) + LowRankFeedForward.size(spec.width, spec.ffn_width, rank)


@register("side_by_side")
class SideBySideEditor(Editor):
    """ViFeEdit's mechanism on the same backbone; it has no gate and no source stream of its own.

    `editor.width`, `rounds`, `difference`, `text_update`, `copy_path` and the gate's settings do not apply.
    """

    uses_source_stream: ClassVar[bool] = False

    def __init__(self, config: Mapping[str, Any], backbone: Backbone) -> None:
        super().__init__(config, backbone)
        rank = self.chosen_rank(config, backbone.spec)
        self.modules_of: Any = nn.ModuleList(SideBySideModule(backbone.spec, rank) for _ in self.blocks)
        self._wide: dict[tuple[int, int, torch.device], Rotary] = {}

    @staticmethod
    def chosen_rank(config: Mapping[str, Any], spec: BackboneSpec) -> int:
        """`editor.rank`, or the rank that comes nearest to `match_parameters`.

        Raises:
            ConfigError: no rank comes within 2%.
        """
        wanted = config["match_parameters"]
        if wanted is None:
            return int(config["rank"])
        step = SideBySideModule.size(spec, 1) * len(module_blocks(config["every"], spec.blocks))
        rank = max(1, round(wanted / step))
        if abs(rank * step - wanted) > 0.02 * wanted:
            raise ConfigError(
                f"editor.match_parameters: side_by_side has a multiple of {step} weights, none within 2% of {wanted}"
            )
        return rank

    @classmethod
    def expected_parameters(cls, config: Mapping[str, Any], spec: BackboneSpec) -> int:
        modules = len(module_blocks(config["every"], spec.blocks))
        return modules * SideBySideModule.size(spec, cls.chosen_rank(config, spec))

    def prepare(
        self, backbone: Backbone, source_latents: Tensor, text: EditText, *, project: bool = False
    ) -> SourceContext:
        backbone.grid(source_latents)
        return SourceContext(source_latents)

    def wide_rotary(self, backbone: Backbone, grid: Grid) -> Rotary:
        """Frame-0 tables of the double-width grid, (1, 2N, 1, head size): the target's columns, then the source's."""
        key = (grid.rows, grid.columns, backbone.device)
        if key not in self._wide:
            tables = backbone.rotary(Grid(1, grid.rows, 2 * grid.columns))

            def halves(table: Tensor) -> Tensor:
                cells = table.unflatten(1, (grid.rows, 2, grid.columns))
                return cells.transpose(1, 2).flatten(1, 3).contiguous()

            self._wide[key] = halves(tables[0]), halves(tables[1])
        return self._wide[key]

    def velocity(
        self,
        backbone: Backbone,
        latents: Tensor,
        sigma: Tensor,
        context: SourceContext,
        text: EditText,
        *,
        scale: float = 1.0,
        record: GateRecord | None = None,
    ) -> Tensor:
        self.check_context(context, latents)
        source = context.latents.to(latents.dtype).repeat_interleave(context.copies, dim=0)
        with self.precision(backbone):
            grid = backbone.grid(latents)
            rotary, wide = backbone.rotary(grid), self.wide_rotary(backbone, grid)
            words = backbone.embed_text(text.target)
            conditioning = backbone.condition(torch.cat((sigma, torch.zeros_like(sigma))), torch.cat((words, words)))
            hidden = backbone.embed(torch.cat((latents, source)))
            slots = {block: slot for slot, block in enumerate(self.blocks)}
            for index in range(backbone.spec.blocks):
                slot = slots.get(index)
                openings = {} if slot is None else self.openings(slot, backbone, rotary, wide, grid.frames, scale)
                hidden = backbone.block(index, hidden, conditioning, rotary, **openings)
            return backbone.head(hidden, conditioning, grid).chunk(2)[0]

    def openings(
        self, slot: int, backbone: Backbone, rotary: Rotary, wide: Rotary, frames: int, scale: float
    ) -> dict[str, Any]:
        """What module `slot` puts into its block."""
        module, block = self.modules_of[slot], backbone.blocks[self.blocks[slot]]
        return {
            "attend": lambda x: module.attend(block.attn1, x, rotary, wide, frames, scale),
            "ffn": lambda y: module.ffn(block.ffn, y, scale),
        }
