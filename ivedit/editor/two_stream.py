"""Editors with two streams through one frozen transformer (docs/method.md): predict_update and its ablations.

The source stream runs once; each chosen block of the target stream adds its module's edit beside the frozen 3D
attention: h <- h + gate_msa * Attn3D(x) + edit(x, s, text).
"""

from __future__ import annotations

import contextlib
import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ivedit.backbone import Backbone, BackboneSpec
from ivedit.editor.attention import check_width
from ivedit.editor.base import Editor, module_blocks
from ivedit.editor.context import EditText, GateRecord, ModuleText, SourceContext, module_text
from ivedit.editor.gate import build_gate, gate_size
from ivedit.editor.module import (
    CopyPath,
    EditModule,
    NoCopy,
    NoTokenMap,
    TokenMap,
    copy_size,
)
from ivedit.errors import ConfigError, IveditError

__all__ = ["TwoStreamEditor", "free_memory"]

_log = logging.getLogger(__name__)

WORTH_TELLING = 10**8  # bytes kept


def free_memory(device: torch.device) -> int:
    """Bytes free on a GPU; elsewhere the operating system pages, so there is no bound."""
    if device.type != "cuda":
        return 2**62
    return int(torch.cuda.mem_get_info(device)[0])


class TwoStreamEditor(Editor):
    """Shared machinery; a family says which path its modules have."""

    def __init__(self, config: Mapping[str, Any], backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self._told = ""
        spec = backbone.spec
        width = check_width(config["width"], spec)
        hidden = self.adapter_width(config, spec)
        built = []
        for index in self.blocks:
            block = backbone.blocks[index]
            built.append(
                EditModule(
                    path=self.build_path(config, block, width, spec),
                    gate=build_gate(config["gate"], config["gate_grain"], spec, width, block),
                    copy=CopyPath(block, width) if config["copy_path"] else NoCopy(),
                    adapter=TokenMap(spec.width, hidden) if hidden else NoTokenMap(),
                    rounds=int(config["rounds"]),
                )
            )
        self.modules_of: Any = nn.ModuleList(built)

    @staticmethod
    @abstractmethod
    def build_path(config: Mapping[str, Any], block: Any, width: int, spec: BackboneSpec) -> nn.Module:
        """The path of one block's module."""

    @staticmethod
    @abstractmethod
    def path_size(config: Mapping[str, Any], width: int, spec: BackboneSpec) -> int:
        """Number of weights of that path."""

    @classmethod
    def own_size(cls, config: Mapping[str, Any], spec: BackboneSpec) -> int:
        """Weights of one block's module without its token map (`mlp`, `match_parameters`)."""
        width = check_width(config["width"], spec)
        size = cls.path_size(config, width, spec) + gate_size(config["gate"], config["gate_grain"], spec, width)
        return size + (copy_size(spec.width, width) if config["copy_path"] else 0)

    @classmethod
    def adapter_width(cls, config: Mapping[str, Any], spec: BackboneSpec) -> int:
        """Hidden width of the token map: `mlp`, or what brings the count to `match_parameters`; 0 for none.

        Raises:
            ConfigError: the variant already has more weights than asked for, or not within 2%.
        """
        wanted = config["match_parameters"]
        if wanted is None:
            return int(config["mlp"])
        own, modules = cls.own_size(config, spec), len(module_blocks(config["every"], spec.blocks))
        missing = wanted / modules - own - spec.width
        hidden = max(int(config["mlp"]), round(missing / (3 * spec.width + 1)))
        total = modules * (own + (TokenMap.size(spec.width, hidden) if hidden else 0))
        if abs(total - wanted) > 0.02 * wanted:
            raise ConfigError(
                f"editor.match_parameters: {wanted} is not reached within 2%: {config['variant']} with these settings "
                f"has {modules * own} weights; ask for more, or lower editor.width"
            )
        return hidden

    @classmethod
    def expected_parameters(cls, config: Mapping[str, Any], spec: BackboneSpec) -> int:
        hidden = cls.adapter_width(config, spec)
        adapter = TokenMap.size(spec.width, hidden) if hidden else 0
        return len(module_blocks(config["every"], spec.blocks)) * (cls.own_size(config, spec) + adapter)

    def prepare(
        self, backbone: Backbone, source_latents: Tensor, text: EditText, *, project: bool = False
    ) -> SourceContext:
        per_frame = self.config["source_attention"] == "per_frame"
        features = backbone.source_features(source_latents, text.source, self.blocks, per_frame=per_frame)
        if not project:
            return SourceContext(source_latents, features=tuple(features))
        rotary = self.spatial_rotary(backbone, source_latents)
        with torch.no_grad(), self.precision(backbone):
            projected = [self.modules_of[0].project(features[0], rotary)]
            size = len(self.blocks) * SourceContext(source_latents, projected=tuple(projected)).bytes()
            if size > (free := free_memory(backbone.device)) // 2:
                note = (
                    f"the source's keys and values, {size / 1e9:.1f} GB, do not fit beside what a step needs of "
                    f"{free / 1e9:.1f} GB free: each step projects them anew, slower and with an equal result"
                )
                self._tell(logging.WARNING, note)
                return SourceContext(source_latents, features=tuple(features), note=note)
            features.pop(0)
            for module in self.modules_of[1:]:
                projected.append(module.project(features.pop(0), rotary))
        note = f"the source's keys and values are kept for all steps: {size / 1e9:.2f} GB"
        worth = size >= WORTH_TELLING
        self._tell(logging.INFO if worth else logging.DEBUG, note)
        return SourceContext(source_latents, projected=tuple(projected), note=note if worth else "")

    def _tell(self, level: int, note: str) -> None:
        """Log, once for clips of one size: an evaluation has hundreds of them."""
        if note != self._told:
            self._told = note
            _log.log(level, "%s", note)

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
        if context.projected and torch.is_grad_enabled():
            raise IveditError("this source context was prepared with project=True, which is for sampling only")
        # Gate maps are kept by block index: compiled code would be another for each.
        maps_kept = contextlib.nullcontext() if record is None else backbone.compiling(False)
        with self.precision(backbone), maps_kept:
            grid = backbone.grid(latents)
            target_text = backbone.embed_text(text.target)
            gate_text = target_text if text.gate is text.target else backbone.embed_text(text.gate)
            words = module_text(gate_text, text.gate.mask, grid.frames, grid.per_frame)
            conditioning = backbone.condition(sigma, target_text)
            rotary, spatial = backbone.rotary(grid), self.spatial_rotary(backbone, latents)
            hidden = backbone.embed(latents)
            slots = {block: slot for slot, block in enumerate(self.blocks)}
            for index in range(backbone.spec.blocks):
                slot = slots.get(index)
                openings = (
                    {}
                    if slot is None
                    else self.openings(slot, backbone, context, words, rotary, spatial, scale, record)
                )
                hidden = backbone.block(index, hidden, conditioning, rotary, **openings)
            return backbone.head(hidden, conditioning, grid)

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
        """What module `slot` puts into its block: here an edit beside the frozen attention."""

        # Everything that differs from block to block is looked up out here: compiled code is then the same for all.
        module, block = self.modules_of[slot], self.blocks[slot]
        given = context.projected[slot] if context.projected else context.features[slot]
        copies = context.copies

        def residual(x: Tensor) -> Tensor:
            source = given if isinstance(given, dict) else module.project(given, spatial)
            if copies > 1:
                source = {name: t.repeat_interleave(copies, dim=0) for name, t in source.items()}
            edit, gate = module(x.unflatten(1, (words.frames, -1)), source, words, spatial)
            if record is not None and gate is not None:
                record.add(block, gate)
            edit = edit.flatten(1, 2)
            return edit if scale == 1.0 else scale * edit

        return {"residual": residual}
