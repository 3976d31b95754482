"""One small name -> object table, shared by editor variants, data readers and metrics.

A YAML names an entry; a module listed in ``plugins:`` adds entries by importing the table and registering. A
registry is why no code asks ``if variant == ...``.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from ivedit.errors import ConfigError, or_nearest

__all__ = ["Registry", "import_plugins"]

T = TypeVar("T")
D = TypeVar("D")


class Registry(Generic[T]):
    """Objects of one ``kind`` ("editor variant", "data reader", ...) under unique names."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._objects: dict[str, T] = {}
        self._info: dict[str, dict[str, Any]] = {}

    def register(self, name: str, **info: Any) -> Callable[[D], D]:
        """Decorator that files the decorated class or function under ``name``, with facts about it in ``info``.

        Raises ValueError when the name is taken by something else (the same definition again, as after a module
        reload, replaces it).
        """

        def add(item: D) -> D:
            old = self._objects.get(name)
            if old is not None and _identity(old) != _identity(item):
                raise ValueError(f"{self.kind} {name!r} is already registered by {_identity(old)}")
            self._objects[name] = item  # type: ignore[assignment]
            self._info[name] = dict(info)
            return item

        return add

    def get(self, name: str) -> T:
        """The object called ``name``; ConfigError with the nearest names when there is none."""
        if name not in self._objects:
            raise ConfigError(f"{self.kind} {name!r} is not known; {or_nearest(name, self._objects)}")
        return self._objects[name]

    def info(self, name: str) -> dict[str, Any]:
        """What was said about ``name`` when it was registered."""
        self.get(name)
        return dict(self._info[name])

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._objects)

    def __contains__(self, name: object) -> bool:
        return name in self._objects


def _identity(item: object) -> str:
    module, name = getattr(item, "__module__", None), getattr(item, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(item)


def import_plugins(modules: Iterable[str]) -> None:
    """Import the modules that register variants, readers, metrics and tasks; the working directory is searched too.

    Raises:
        ConfigError: modules that cannot be imported, one line each, with the line of the plugin that failed.
    """
    modules = list(modules)
    if modules and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    problems = []
    for name in modules:
        stem = name.removesuffix(".py").strip("./").replace("/", ".")
        if stem != name:
            problems.append(f"plugins: {name} is a file, not a module's name; write plugins=[{stem}]")
            continue
        try:
            importlib.import_module(name)
        except ConfigError as error:
            problems += error.problems
        except Exception as error:
            problems.append(f"plugins: importing {name} failed: {_why(name, error)}")
    if problems:
        raise ConfigError(problems)


def _why(module: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return f"there is no module {error.name} in {os.getcwd()} or on the Python path (PYTHONPATH adds a folder)"
    said = f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0]}"
    own = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).stem == module.rpartition(".")[2]]
    return f"{said} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else said
