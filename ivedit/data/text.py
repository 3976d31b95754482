"""Encoded texts as one value: the encoder's states together with the mask of their real tokens.

It lives at the bottom of the import order because both sides need it: `ivedit.backbone` returns it from
`encode_text`, and the latent cache and the datamodule carry it without knowing the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextStates:
    """States of a batch of texts.

    Attributes:
        states: (B, L, D) floating point; rows behind a text's last real token are zero, as `WanPipeline` pads.
        mask: (B, L) bool, True at real (unpadded) tokens.
    """

    states: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together.

        Raises:
            ValueError: `states` is not (B, L, D) or `mask` is not bool of (B, L).
        """
        if self.states.ndim != 3:
            raise ValueError(f"TextStates.states must be (B, L, D), got {tuple(self.states.shape)}")
        if self.mask.shape != self.states.shape[:2]:
            raise ValueError(
                f"TextStates.mask must be {tuple(self.states.shape[:2])}, got {tuple(self.mask.shape)}"
            )
        if self.mask.dtype != torch.bool:
            raise ValueError(f"TextStates.mask must be bool, got {self.mask.dtype}")

    def __len__(self) -> int:
        """Number of texts B."""
        return self.states.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> TextStates:
        """Select texts; an integer keeps the batch dimension, so the result is always (B', L, D)."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"text {index} of {len(self)}")
            index = [index]
        if not isinstance(index, (slice, Tensor)):
            index = torch.as_tensor(list(index), dtype=torch.long, device=self.states.device)
        elif isinstance(index, Tensor):
            index = index.to(self.states.device)
        return TextStates(self.states[index], self.mask[index])

    @property
    def device(self) -> torch.device:
        """Device of the states."""
        return self.states.device

    @property
    def lengths(self) -> Tensor:
        """(B,) number of real tokens per text."""
        return self.mask.sum(dim=1)

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> TextStates:
        """Move both tensors to `device`; `dtype` changes the states only."""
        return TextStates(
            self.states.to(device=device, dtype=dtype, non_blocking=non_blocking),
            self.mask.to(device=device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> TextStates:
        """A copy in page-locked memory (called by `torch.utils.data.DataLoader`)."""
        return TextStates(self.states.pin_memory(), self.mask.pin_memory())

    def repeat_interleave(self, repeats: int) -> TextStates:
        """Each text `repeats` times in a row: (B, L, D) -> (B * repeats, L, D)."""
        return TextStates(
            self.states.repeat_interleave(repeats, dim=0), self.mask.repeat_interleave(repeats, dim=0)
        )

    @staticmethod
    def cat(parts: Sequence[TextStates]) -> TextStates:
        """Join along the batch; shorter texts are padded with zeros to the longest L.

        Raises:
            ValueError: `parts` is empty.
        """
        if not parts:
            raise ValueError("TextStates.cat needs at least one part")
        length = max(part.states.shape[1] for part in parts)
        padded = [part.pad_to(length) for part in parts]
        return TextStates(
            torch.cat([part.states for part in padded]), torch.cat([part.mask for part in padded])
        )

    def pad_to(self, length: int) -> TextStates:
        """Zero-pad to `length` tokens.

        Raises:
            ValueError: the states are already longer.
        """
        missing = length - self.states.shape[1]
        if missing < 0:
            raise ValueError(f"cannot pad {self.states.shape[1]} tokens to {length}")
        if missing == 0:
            return self
        return TextStates(
            torch.nn.functional.pad(self.states, (0, 0, 0, missing)),
            torch.nn.functional.pad(self.mask, (0, missing)),
        )
