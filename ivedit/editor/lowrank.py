"""Low-rank weights on frozen linear layers (LoRA, Hu et al., arXiv 2106.09685): W x + B A x, B starting at 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ivedit.backbone.blocks import attention, feed_forward

__all__ = ["LowRank", "LowRankAttention", "LowRankFeedForward"]

Rotary = tuple[Tensor, Tensor]


class LowRank(nn.Module):
    """B A x for a frozen linear layer of `inputs` -> `outputs`; A random, B zero, no bias."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.up(self.down(x))


class LowRankAttention(nn.Module):
    """A frozen self-attention with low-rank weights on its query, key, value and output projections."""

    def __init__(self, channels: int, rank: int, *, sign: float = 1.0) -> None:
        super().__init__()
        self.query = LowRank(channels, channels, rank)
        self.key = LowRank(channels, channels, rank)
        self.value = LowRank(channels, channels, rank)
        self.out = LowRank(channels, channels, rank)
        self.sign = sign

    def forward(self, attn: Any, x: Tensor, rotary: Rotary, scale: float = 1.0) -> Tensor:
        """x (B, S, C) -> (B, S, C); `sign` stands before the frozen output projection, `scale` before B A."""

        def scaled(delta: LowRank) -> Any:
            return delta if scale == 1.0 else lambda tokens: scale * delta(tokens)

        return attention(
            attn,
            x,
            rotary,
            query=scaled(self.query),
            key=scaled(self.key),
            value=scaled(self.value),
            out=scaled(self.out),
            sign=self.sign,
        )

    @staticmethod
    def size(channels: int, rank: int) -> int:
        """Number of weights."""
        return 8 * channels * rank


class LowRankFeedForward(nn.Module):
    """A frozen feed-forward network with low-rank weights on both of its projections."""

    def __init__(self, channels: int, hidden: int, rank: int) -> None:
        super().__init__()
        self.up = LowRank(channels, hidden, rank)
        self.down = LowRank(hidden, channels, rank)

    def forward(self, ffn: Any, x: Tensor, scale: float = 1.0) -> Tensor:
        """x (B, S, C) -> (B, S, C)."""
        if scale == 1.0:
            return feed_forward(ffn, x, up=self.up, down=self.down)
        return feed_forward(ffn, x, up=lambda t: scale * self.up(t), down=lambda t: scale * self.down(t))

    @staticmethod
    def size(channels: int, hidden: int, rank: int) -> int:
        """Number of weights."""
        return 2 * (channels + hidden) * rank
