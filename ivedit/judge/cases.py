"""What is judged: one edited clip beside its source, under an id that tells a judge nothing.

A list of cases may be any sequence that makes its cases when they are asked for, so that a large evaluation never
holds all its pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ivedit.errors import ConfigError

__all__ = ["Case", "Cases", "case_id"]

Pixels = NDArray[np.uint8]


def case_id(clip: str, method: str) -> str:
    """12 hex digits for one clip of one method, from which neither can be read."""
    return hashlib.sha256(f"{len(clip)}:{clip}{method}".encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Case:
    """One clip of one method. Make it with `Case.of`, which gives the id.

    Attributes:
        id: Opaque, of (clip, method). It stands in records, never in a request.
        clip: Name of the clip; the same for all methods that edited it.
        method: The arm it belongs to: an editor, a control, an anchor.
        source: uint8 (T, 3, H, W).
        edited: The same shape.
        instruction: What was asked for.
        truth: The true edit where known, the same shape. No judge sees it.
        mask: bool (T, 1, H, W), where the true edit changes pixels, where known. No judge sees it.

    Raises:
        ConfigError: pixels of another type or shape than said here, or no instruction.
    """

    id: str
    clip: str
    method: str
    source: Pixels
    edited: Pixels
    instruction: str
    truth: Pixels | None = None
    mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        named = f"clip {self.clip!r} of {self.method!r}"
        for name in ("source", "edited", "truth"):
            pixels = getattr(self, name)
            if pixels is None and name == "truth":
                continue
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.size:
                raise ConfigError(
                    f"{named}: {name} is {pixels.dtype} of shape {pixels.shape}; give uint8 (T, 3, H, W) with pixels"
                )
            if pixels.shape != self.source.shape:
                raise ConfigError(
                    f"{named}: {name} has shape {pixels.shape} and source {self.source.shape}; a judge compares the "
                    "same moments at the same size, so write the edit with its source's frames and size"
                )
        length, _, height, width = self.source.shape
        if self.mask is not None and (self.mask.dtype != np.bool_ or self.mask.shape != (length, 1, height, width)):
            raise ConfigError(
                f"{named}: mask is {self.mask.dtype} of shape {self.mask.shape}; "
                f"give bool {(length, 1, height, width)}"
            )
        if not self.instruction.strip():
            raise ConfigError(f"{named}: it has no instruction; without one nothing can be judged")

    @classmethod
    def of(
        cls, clip: str, method: str, source: Pixels, edited: Pixels, instruction: str, *,
        truth: Pixels | None = None, mask: NDArray[np.bool_] | None = None,
    ) -> Case:  # fmt: skip
        """A case with its id."""
        return cls(case_id(clip, method), clip, method, source, edited, instruction, truth, mask)


class Cases(Protocol):
    """A sequence of cases, which may read a case's files only when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Case: ...
