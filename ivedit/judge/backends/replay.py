"""A stored record in place of a judge: the same questions find the same replies, and nothing is asked of anybody.

The replies are read and scored anew, so a table made from a record is the table that the judge gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivedit.errors import ConfigError
from ivedit.judge.backends.base import NoReply, Repair, Reply
from ivedit.judge.protocol import Question, question_key
from ivedit.judge.record import read_record

__all__ = ["ReplayBackend"]


class ReplayBackend:
    """The judge that a record was made with, as far as it was asked.

    Args:
        path: The record.
        model: Which judge of the record, where it holds several.

    Raises:
        ConfigError: no such file, no session in it, or several judges and ``model`` does not say which.
    """

    name = "replay"
    concurrency: int | None = 1

    def __init__(self, path: str | Path, model: str | None = None) -> None:
        if not Path(path).is_file():
            raise ConfigError(f"judge.path={path}: there is no such record to replay")
        self.kept = read_record(Path(path))
        judges = [(session["model"], session["sampling"]) for session in self.kept.sessions]
        found = [judge for i, judge in enumerate(judges) if judge not in judges[:i] and model in (None, judge[0])]
        if len(found) != 1:
            named = ", ".join(f"{name} {sampling}" for name, sampling in found or judges) or "none"
            what = "several judges; say which with judge.model" if found else f"no judge {model or ''}".rstrip()
            raise ConfigError(f"judge.path={path}: the record has {what} (it has {named})")
        self.model: str = found[0][0]
        self.sampling: Mapping[str, Any] = found[0][1]

    async def ask(self, question: Question, repair: Repair | None = None) -> Reply:
        """The stored reply; `NoReply` with the stored reason, or that this was never asked."""
        place = (question_key(question, self.model, self.sampling), 1 if repair else 0)
        if place in self.kept.turns:
            return self.kept.turns[place]
        raise NoReply(self.kept.failures.get(place, "the record has no reply to this question"))

    async def close(self) -> None:
        """Nothing to let go of."""
