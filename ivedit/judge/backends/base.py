"""What every backend does: it takes one question and returns one reply, or says why there is none.

A backend neither retries nor reads scores: `ivedit.judge.runner` does both, for all of them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ivedit.judge.protocol import Question

__all__ = ["Backend", "NoReply", "Repair", "Reply"]


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: The judge's words; None when it gave none.
        model: The name that the backend says answered; None when it says none.
        finish_reason: ``stop``, ``length``, ``content_filter``, ``refusal`` or a backend's own word.
        refusal: The judge's words when it declines to answer.
        usage: Tokens, ``{"prompt_tokens": int, "completion_tokens": int}`` where known.
        id: The backend's own id of this reply.
        date: When it came, in UTC; the record sets it.
    """

    text: str | None
    model: str | None = None
    finish_reason: str | None = "stop"
    refusal: str | None = None
    usage: Mapping[str, int] = field(default_factory=dict)
    id: str | None = None
    date: str | None = None


@dataclass(frozen=True)
class Repair:
    """The first answer was no answer: its text and why."""

    text: str
    reason: str

    @property
    def request(self) -> str:
        """What the judge is told."""
        return (
            f"That is not a valid answer: {self.reason}. Answer the same question again, with one JSON object as "
            "described and nothing else."
        )


class NoReply(Exception):
    """No reply this time.

    Attributes:
        reason: One line.
        again: Whether asking once more may help.
        after: Seconds to wait first, where the server said so.
        final: It will fail for every question alike (a wrong key, an unknown model): stop.
        nobody: Nothing was ever heard from there: stop once the attempts are used up.
    """

    def __init__(
        self, reason: str, *, again: bool = False, after: float | None = None, final: bool = False, nobody: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.again, self.after, self.final, self.nobody = reason, again, after, final, nobody


class Backend(Protocol):
    """One judge.

    Attributes:
        name: ``http``, ``local`` or ``replay``.
        model: Which model answers; part of every judgement's key.
        sampling: Everything that is sent and shapes the reply except the seed; part of the key. JSON values.
        concurrency: How many questions it can take at once; None: as many as the runner likes.
    """

    name: str
    model: str
    sampling: Mapping[str, Any]
    concurrency: int | None

    async def ask(self, question: Question, repair: Repair | None = None) -> Reply:
        """One call. Raises `NoReply`."""
        ...

    async def close(self) -> None:
        """Let go of what belongs to this event loop, such as connections; a later `ask` may open it again."""
        ...
