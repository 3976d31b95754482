"""What judging will cost, counted before anybody is asked: ``--dry-run``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ivedit.judge.backends.base import Backend
from ivedit.judge.cases import Case, Cases
from ivedit.judge.judgements import Asking
from ivedit.judge.protocol import Metric, question_key, questions
from ivedit.judge.record import Kept

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """What judging will cost, counted without asking anybody.

    Attributes:
        questions: Judgements wanted.
        stored: Of these, how many the record answers already, and equal ones that are asked once.
        calls: Calls to make, when none fails: one for each of the others.
        images: Pictures sent with them.
        prompt_tokens: About: a token for 28 x 28 pixels (Qwen-VL's patches) and for four letters.
        answer_tokens: At most: ``max_tokens`` for each call.
    """

    questions: int
    stored: int
    calls: int
    images: int
    prompt_tokens: int
    answer_tokens: int | None

    def text(self) -> str:
        """Two lines for a person."""
        most = "" if self.answer_tokens is None else f" and at most {self.answer_tokens:,} tokens of answers"
        return (
            f"{self.questions:,} judgements, {self.stored:,} of them answered already or equal to another: "
            f"{self.calls:,} calls with {self.images:,} images\n"
            f"about {self.prompt_tokens:,} tokens of questions{most}; each failed call or repaired answer adds one call"
        )


def estimate(
    cases: Cases, metrics: Sequence[Metric], backend: Backend, kept: Kept | None = None,
    asking: Asking | None = None, asks: Callable[[Case, Metric], bool] | None = None,
) -> Estimate:  # fmt: skip
    """Count calls, pictures and tokens of `ivedit.judge.runner.judge`. Cases are read, nobody is asked.

    Args:
        cases, metrics, backend, asking, asks: As there.
        kept: What the record holds already (`ivedit.judge.record.read_record`).
    """
    asking = asking or Asking()
    turns = kept.turns if kept else {}
    total = calls = images = tokens = 0
    seen: set[str] = set()
    for case in (cases[i] for i in range(len(cases))):
        for metric in (metric for metric in metrics if asks is None or asks(case, metric)):
            for question in questions(case, metric, asking.repeats, shown=asking.shown, seed=asking.seed):
                total += 1
                key = question_key(question, backend.model, backend.sampling)
                if key in seen or (key, 0) in turns:
                    continue
                seen.add(key)
                calls += 1
                images += len(question.images)
                tokens += sum(math.ceil(i.size[0] / 28) * math.ceil(i.size[1] / 28) for i in question.images)
                tokens += math.ceil(sum(len(p if isinstance(p, str) else p.label) for p in question.parts) / 4)
    limit = backend.sampling.get("max_tokens") or backend.sampling.get("max_completion_tokens")
    most = calls * limit if isinstance(limit, int) else None
    return Estimate(total, total - calls, calls, images, tokens, most)
