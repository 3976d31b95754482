"""The table of editor variants: a YAML's `editor.variant` names an entry; plugins add their own with `register`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ivedit.registry import Registry

if TYPE_CHECKING:
    from ivedit.editor.base import Editor

__all__ = ["VARIANTS", "register", "variant_names"]

VARIANTS: Registry[type[Editor]] = Registry("editor.variant")


def register(name: str) -> Callable[[type[Editor]], type[Editor]]:
    """Class decorator that files an `Editor` under `name`.

    Raises:
        ValueError: the name is taken.
        TypeError: what is decorated is no subclass of `Editor`.
    """
    from ivedit.editor.base import Editor

    file = VARIANTS.register(name)

    def add(variant: type[Editor]) -> type[Editor]:
        if not (isinstance(variant, type) and issubclass(variant, Editor)):
            raise TypeError(f"editor.variant {name!r}: {variant!r} is no subclass of ivedit.editor.Editor")
        return file(variant)

    return add


def variant_names() -> list[str]:
    """Names of all registered variants, sorted."""
    return VARIANTS.names()
