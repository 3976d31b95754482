"""The values an editor's two calls hand around: texts, source context, module text and gate record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ivedit.data.text import TextStates
from ivedit.editor.padded import KeyMask, key_mask

__all__ = ["EditText", "GateRecord", "ModuleText", "SourceContext", "SourceTokens", "module_text"]

# What one module derives from its source features, by name; every tensor is (B, F, ...).
SourceTokens = dict[str, Tensor]


@dataclass(frozen=True)
class EditText:
    """Which text goes where, each a batch of B.

    Attributes:
        target: read by the target stream's frozen cross-attention.
        gate: read by the edit modules (gate and text keys).
        source: read by the source stream's frozen cross-attention; one text may stand for all, see `prepare`.
    """

    target: TextStates
    gate: TextStates
    source: TextStates

    def __len__(self) -> int:
        """Number of samples B."""
        return len(self.target)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> EditText:
        """Select samples of all three."""
        source = self.source if self._one_source else self.source[index]
        return EditText(self.target[index], self.gate[index], source)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> EditText:
        """Move all three."""
        return EditText(self.target.to(device, dtype), self.gate.to(device, dtype), self.source.to(device, dtype))

    def repeat_interleave(self, repeats: int) -> EditText:
        """Each sample `repeats` times in a row."""
        return EditText(
            self.target.repeat_interleave(repeats),
            self.gate.repeat_interleave(repeats),
            self.source if self._one_source else self.source.repeat_interleave(repeats),
        )

    @property
    def _one_source(self) -> bool:
        return len(self.source) == 1 < len(self.target)


@dataclass(frozen=True)
class SourceContext:
    """What `Editor.prepare` computed once for a batch of sources; it serves every step, branch and draw.

    Attributes:
        latents: (B, Z, F, h, w) clean source latents.
        features: per module (B, F, N, C), the source stream's modulated features; empty where `projected` is given.
        projected: per module, the projections of those features (constant while the weights are): sampling only.
        copies: each source stands for this many consecutive samples.
        note: what whoever waits for the result should know of the memory that this takes; empty: nothing.
    """

    latents: Tensor
    features: tuple[Tensor, ...] = ()
    projected: tuple[SourceTokens, ...] = ()
    copies: int = 1
    note: str = ""

    def __len__(self) -> int:
        """Number of samples the context serves."""
        return self.latents.shape[0] * self.copies

    def repeat(self, n: int) -> SourceContext:
        """Serve n (sigma, noise) draws, or guidance branches, of each sample.

        Samples of one source are consecutive, as with `Tensor.repeat_interleave(n)`. Nothing is copied here:
        projections are still made once per source.
        """
        return replace(self, copies=self.copies * n)

    def select(self, index: int | slice | Sequence[int] | Tensor) -> SourceContext:
        """The samples at `index`, in its order (repeats allowed)."""
        if isinstance(index, int):
            index = [index]
        order = torch.arange(self.latents.shape[0], device=self.latents.device).repeat_interleave(self.copies)
        chosen = order[index if isinstance(index, (slice, Tensor)) else list(index)]
        return SourceContext(
            latents=self.latents[chosen],
            features=tuple(tokens[chosen] for tokens in self.features),
            projected=tuple({name: t[chosen] for name, t in tokens.items()} for tokens in self.projected),
        )

    def bytes(self) -> int:
        """Memory that features and projections hold."""
        tensors = [*self.features, *(t for tokens in self.projected for t in tokens.values())]
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class ModuleText:
    """The instruction as the edit modules of one call read it; the same for all blocks.

    Attributes:
        tokens: (B, L, C) embedded text.
        alone: which of its L tokens are real, for F*N queries.
        joint: the same behind N source tokens of each of B*F frames, for N queries.
        frames: F.
    """

    tokens: Tensor
    alone: KeyMask
    joint: KeyMask
    frames: int


def module_text(tokens: Tensor, mask: Tensor, frames: int, per_frame: int) -> ModuleText:
    """Build the masks of (B, L) `mask` for F = `frames` frames of N = `per_frame` tokens."""
    real = mask.clone()
    # A tokenizer without an end token gives "" no real token at all; one padding token then stands for it, since a
    # softmax over nothing is not a number.
    real[:, :1].fill_(True)
    alone = key_mask(real, tokens.dtype, queries=frames * per_frame)
    joint = key_mask(real, tokens.dtype, before=per_frame, queries=per_frame, copies=frames)
    return ModuleText(tokens, alone, joint, frames)


@dataclass
class GateRecord:
    """Gate maps of one `velocity` call, filled as it runs.

    Attributes:
        maps: block index -> (B, F, N) gate averaged over channels, float32; empty where the variant has no gate.
    """

    maps: dict[int, Tensor] = field(default_factory=dict)

    def add(self, block: int, gate: Tensor) -> None:
        """Keep a gate (B, F, N, channels or heads or 1) of block `block`."""
        self.maps[block] = gate.detach().float().mean(dim=-1)

    def stacked(self) -> Tensor:
        """(blocks, B, F, N) in block order."""
        return torch.stack([self.maps[block] for block in sorted(self.maps)])
