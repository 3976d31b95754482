"""The two kinds of error that a person using ivedit can cause and is told about in plain words, and `Stopped`.

Entry points print their text on stderr without a traceback: exit code 2 for a `ConfigError` (the run never
started), 1 for any other `IveditError` (the run failed).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["ConfigError", "IveditError", "Stopped", "nearest", "or_nearest"]


class IveditError(RuntimeError):
    """Something the user can understand and mend: the message is one plain line, with the fix in it."""


class ConfigError(IveditError):
    """A configuration that cannot run. ``problems`` holds every fault found, one plain line each."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        if not self.problems:
            raise ValueError("ConfigError needs at least one problem")
        super().__init__("\n".join(self.problems))


class Stopped(Exception):
    """Training ended on request before its last step, which is no failure: the checkpoint is kept.

    A reason that begins with ``pruned`` is a sweep's judgement: the run is not worth going on with.
    """

    @property
    def state(self) -> str:
        """How the run's record ends: PRUNED, or STOPPED, which is to be continued."""
        return "PRUNED" if str(self).startswith("pruned") else "STOPPED"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to ``count`` of the known names that resemble ``name``, best first; empty when none does."""
    by_key: dict[str, str] = {}
    for candidate in known:
        by_key.setdefault(candidate.lower(), candidate)
    return [by_key[key] for key in difflib.get_close_matches(name.lower(), by_key, n=count, cutoff=0.6)]


def or_nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown ``name``: the nearest names, or all of them when none is near."""
    names = sorted(known)
    near = nearest(name, names)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(names)}" if names else "none is known"
