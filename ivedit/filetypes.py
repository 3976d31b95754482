"""Which file names are pictures: known here without anything heavy, so that a wrong name is told at once."""

from __future__ import annotations

__all__ = ["PICTURES"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
