"""What every editor is: trained weights beside a frozen backbone, with two calls.

`prepare` reads the source once; `velocity` runs the target stream through the frozen blocks with this editor's
modules in them. The backbone is an argument of both and never a submodule, so an editor's parameters are exactly
what is trained, saved and averaged.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ivedit.backbone import Backbone, BackboneSpec
from ivedit.editor.context import EditText, GateRecord, SourceContext
from ivedit.errors import ConfigError, IveditError

__all__ = ["Editor", "module_blocks", "parameter_count"]


def module_blocks(every: int, blocks: int) -> list[int]:
    """Indices of the blocks that get a module: every `every`-th, in the middle of its group.

    Raises:
        ConfigError: fewer blocks than that.
    """
    chosen = list(range(every // 2, blocks, every))
    if every < 1 or not chosen:
        raise ConfigError(f"editor.every: {every} leaves none of the backbone's {blocks} blocks; use 1 to {blocks}")
    return chosen


def parameter_count(editor: nn.Module) -> int:
    """Number of trained weights."""
    return sum(p.numel() for p in editor.parameters() if p.requires_grad)


class Editor(nn.Module, ABC):
    """Base of all variants.

    Attributes:
        name: what tables call it: the variant, with `+matched` behind it when `match_parameters` is set.
        config: the resolved `EditorConfig` as a plain dict.
        blocks: indices of the backbone's blocks that have a module, ascending.
        shapes: of the backbone it was built for.
        uses_source_stream: whether `prepare` runs the source through the frozen blocks.
    """

    uses_source_stream: ClassVar[bool] = True

    def __init__(self, config: Mapping[str, Any], backbone: Backbone) -> None:
        """Initialise from the frozen weights; subclasses build their modules.

        Args:
            config: every field of `EditorConfig`.
            backbone: with its transformer loaded.
        """
        super().__init__()
        self.config = dict(config)
        self.name = str(config["variant"]) + ("+matched" if config["match_parameters"] is not None else "")
        self.blocks = module_blocks(int(config["every"]), backbone.spec.blocks)
        self.shapes = backbone.spec.shapes()
        self._spatial: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    @classmethod
    @abstractmethod
    def expected_parameters(cls, config: Mapping[str, Any], spec: BackboneSpec) -> int:
        """Number of trained weights in closed form."""

    @abstractmethod
    def prepare(
        self, backbone: Backbone, source_latents: Tensor, text: EditText, *, project: bool = False
    ) -> SourceContext:
        """Read the source once, without gradient.

        Args:
            backbone: the frozen transformer.
            source_latents: (B, Z, F, h, w) clean.
            text: of the same batch; its `source` part is read, which may be one text for all samples.
            project: also apply the modules' own source projections and keep those in place of the features. For
                sampling, where weights are constant: each step is cheaper. Not for training. Where they would take
                more than half of the GPU's free memory the features are kept instead.
        """

    @abstractmethod
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
        """Predicted velocity, noise - x0, of the edited clip.

        Args:
            backbone: the one `context` was prepared with.
            latents: (B, Z, F, h, w) noisy target latents.
            sigma: (B,) in [0, 1].
            context: of B samples.
            text: of B samples.
            scale: multiplies what the modules add; 0 is the frozen backbone.
            record: filled with gate maps.

        Returns:
            (B, Z, F, h, w) float32.

        Raises:
            IveditError: context and latents do not belong together.
        """

    def spatial_rotary(self, backbone: Backbone, latents: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the frame-0 positions of a clip's grid, (N, head size) each."""
        grid = backbone.grid(latents)
        key = (grid.rows, grid.columns, backbone.device)
        if key not in self._spatial:
            cos, sin = backbone.rotary(grid._replace(frames=1))
            self._spatial[key] = cos[0, :, 0], sin[0, :, 0]
        return self._spatial[key]

    def precision(self, backbone: Backbone) -> contextlib.AbstractContextManager[Any]:
        """Autocast for float32 trained weights beside bfloat16 frozen ones, where the caller has not set it."""
        device = backbone.device.type
        dtype = backbone.compute_dtype()
        weight = next(self.parameters(), None)
        if torch.is_autocast_enabled(device) or weight is None or weight.dtype == dtype:
            return contextlib.nullcontext()
        return torch.autocast(device, dtype=dtype, cache_enabled=False)

    def check_context(self, context: SourceContext, latents: Tensor) -> None:
        """Refuse a context of another batch size or clip shape."""
        if len(context) != latents.shape[0] or context.latents.shape[1:] != latents.shape[1:]:
            raise IveditError(
                f"the source context serves {len(context)} clips of {tuple(context.latents.shape[1:])} latents but the "
                f"target is {latents.shape[0]} of {tuple(latents.shape[1:])}; use context.repeat or context.select"
            )
