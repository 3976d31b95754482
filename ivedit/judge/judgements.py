"""How a judge is asked, and what comes of one question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ivedit.judge.showing import Shown

__all__ = ["STATUSES", "Asking", "Judgement"]

STATUSES = ("ok", "unparsed", "refused", "filtered", "error")
"""``ok`` has a value; the others have none, whatever the judge wrote."""


@dataclass(frozen=True)
class Asking:
    """How often and how fast a judge is asked.

    Attributes:
        repeats: Times each question is asked, with the seeds ``seed``, ``seed + 1``, ...
        seed: Also of the order of the cases.
        shown: How clips are shown.
        concurrency: Questions under way at once; a backend may take fewer.
        per_minute: Calls started in a minute at most; None: no limit.
        attempts: Calls for one reply at most.
        wait: Seconds before the second call; doubled for each further one, with jitter. A longer ``Retry-After``
            holds all calls back.
        returned_model: The name that the server answers with where it is not the model's own.
    """

    repeats: int = 5
    seed: int = 0
    shown: Shown = field(default_factory=Shown)
    concurrency: int = 8
    per_minute: float | None = None
    attempts: int = 6
    wait: float = 1.0
    returned_model: str | None = None


@dataclass(frozen=True)
class Judgement:
    """One question's outcome.

    Attributes:
        case_id, clip, method, metric, repeat: What was asked.
        status: One of `STATUSES`.
        value: The metric's number; None unless ``ok``.
        values: The whole valid answer; None unless ``ok``.
        reason: Why there is no value; None for ``ok``.
        model: The name that the judge answered under; None where none came.
        key: Of the record.
        repaired: It took the repair request.
        date: When the last reply came, as the record has it.
    """

    case_id: str
    clip: str
    method: str
    metric: str
    repeat: int
    status: str
    value: float | None
    values: dict[str, Any] | None
    reason: str | None
    model: str | None
    key: str
    repaired: bool = False
    date: str | None = None
