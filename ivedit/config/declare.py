"""How a setting is declared: default, meaning, range."""

from __future__ import annotations

from dataclasses import field
from typing import Any

__all__ = ["declare"]


def declare(
    default: Any,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Declare one field. ``min``/``max`` are inclusive, ``above`` is an exclusive lower bound."""
    metadata = {"help": help, "min": min, "max": max, "above": above, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
