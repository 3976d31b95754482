"""Ask a judge every question about every case, through failures and stops, and say exactly what came of each.

Every judgement ends in one of five states: ``ok`` with a value, or ``unparsed``, ``refused``, ``filtered``, ``error``
without one. Cases are taken in a seeded order that mixes the methods. A reply is in the record before it is read; a
stopped run that is started again asks only what has no reply yet. Cases are read when their turn comes.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ivedit.errors import ConfigError, IveditError
from ivedit.judge.answers import Answer, Unparsed, parse
from ivedit.judge.backends.base import Backend, NoReply, Repair, Reply
from ivedit.judge.cases import Case, Cases
from ivedit.judge.estimate import Estimate, estimate
from ivedit.judge.judgements import STATUSES, Asking, Judgement
from ivedit.judge.protocol import PROTOCOL_VERSION, Metric, Question, prompt_hash, question_key, questions
from ivedit.judge.record import Record

__all__ = ["STATUSES", "Asking", "Estimate", "Judgement", "estimate", "judge"]

_LONGEST_WAIT = 600.0  # seconds; a server that wants a longer pause is down
_ERRORS_IN_A_ROW = 30


def judge(
    cases: Cases, metrics: Sequence[Metric], backend: Backend, record: Record | None = None,
    asking: Asking | None = None, advance: Callable[[int], None] | None = None,
    asks: Callable[[Case, Metric], bool] | None = None,
) -> list[Judgement]:  # fmt: skip
    """Ask and return every judgement, ordered by case, metric and repeat.

    Args:
        cases: What to judge. Cases of one clip must agree in frames and size, whatever their method.
        metrics: Which questions.
        backend: Who answers.
        record: Where replies are kept and found; None: nowhere (a replay needs none).
        asking: How.
        advance: Called with the number of judgements that are done since it was last called.
        asks: Whether a metric is asked about a case; None: every one.

    Raises:
        ConfigError: a metric has no meaning for a case, or methods' clips differ in frames or size.
        IveditError: the server refuses the key or the model, or everything fails; what was answered is kept.
    """
    return _run(_Session(cases, metrics, backend, record, asking or Asking(), advance, asks).run())


def _run(work: Coroutine[Any, Any, list[Judgement]]) -> list[Judgement]:
    """Run to the end, also inside a notebook, whose thread already has a running loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return list(outcome[0])


class Pace:
    """When calls may start: ``per_minute`` at most, evenly spread, and none before a pause that a server asked for."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = -math.inf

    def reserve(self, now: float) -> float:
        """Take the next place; seconds from ``now`` until it comes."""
        start = max(now, self._next)
        self._next = start + self._gap
        return start - now

    def hold(self, until: float) -> None:
        """Nobody new starts before ``until``."""
        self._next = max(self._next, until)


@dataclass
class _Outcome:
    """What came of one key: the same for all questions that share it."""

    status: str
    answer: Answer | None = None
    reason: str | None = None
    model: str | None = None
    repaired: bool = False
    date: str | None = None


class _Session:
    """One run of `judge`."""

    def __init__(
        self, cases: Cases, metrics: Sequence[Metric], backend: Backend, record: Record | None, asking: Asking,
        advance: Callable[[int], None] | None, asks: Callable[[Case, Metric], bool] | None,
    ) -> None:  # fmt: skip
        if not len(cases) or not metrics:
            raise ConfigError("there is nothing to judge: no clips, or no metrics")
        self.cases, self.metrics, self.backend, self.record, self.asking = cases, metrics, backend, record, asking
        self.advance = advance or (lambda count: None)
        self.asks = asks or (lambda case, metric: True)
        self.pace = Pace(asking.per_minute)
        self.jitter = random.Random(asking.seed)
        self.errors_in_a_row = 0
        self.under_way: dict[str, asyncio.Future[_Outcome]] = {}
        self.shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        self.found: dict[tuple[int, int, int], Judgement] = {}

    async def run(self) -> list[Judgement]:
        """Every judgement, in order."""
        asking, backend = self.asking, self.backend
        if self.record:
            self.record.start(session_facts(backend, self.metrics, asking))
        places = self._places()
        lock = asyncio.Lock()

        async def worker() -> None:
            while True:
                async with lock:
                    place = await asyncio.to_thread(next, places, None)  # reading a clip must not stop the others
                if place is None:
                    return
                where, case, metric, question = place
                self.found[where] = await self._judgement(case, metric, question)
                self.advance(1)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(asking.concurrency, backend.concurrency or asking.concurrency)):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            await backend.close()
        return [self.found[where] for where in sorted(self.found)]

    def _places(self) -> Iterator[tuple[tuple[int, int, int], Case, Metric, Question]]:
        asking = self.asking
        for index in np.random.default_rng(asking.seed).permutation(len(self.cases)).tolist():
            case = self.cases[index]
            self._same_shape(case)
            for number, metric in enumerate(self.metrics):
                if not self.asks(case, metric):
                    continue
                for question in questions(case, metric, asking.repeats, shown=asking.shown, seed=asking.seed):
                    yield (index, number, question.repeat), case, metric, question

    def _same_shape(self, case: Case) -> None:
        """Every method shows as many frames, as large: the judge must not tell them apart by it."""
        shape, method = self.shapes.setdefault(case.clip, (case.source.shape, case.method))
        if shape != case.source.shape:
            raise ConfigError(
                f"clip {case.clip!r} has shape {shape} for {method!r} and {case.source.shape} for {case.method!r}: "
                "methods are compared on the same frames; bring them to one length and size"
            )

    async def _judgement(self, case: Case, metric: Metric, question: Question) -> Judgement:
        key = question_key(question, self.backend.model, self.backend.sampling)
        outcome = await self._once(key, question, case, metric)
        answer = outcome.answer
        return Judgement(
            case.id, case.clip, case.method, metric.name, question.repeat, outcome.status,
            metric.of(answer) if answer else None, dict(answer.values) if answer else None,
            outcome.reason, outcome.model, key, outcome.repaired, outcome.date,
        )  # fmt: skip

    async def _once(self, key: str, question: Question, case: Case, metric: Metric) -> _Outcome:
        """The outcome of a key; equal questions that are under way together are asked once."""
        if key in self.under_way:
            return await self.under_way[key]
        future = self.under_way[key] = asyncio.get_running_loop().create_future()
        try:
            outcome = await self._outcome(key, question, case, metric)
        except BaseException:
            future.cancel()
            raise
        future.set_result(outcome)
        return outcome

    async def _outcome(self, key: str, question: Question, case: Case, metric: Metric) -> _Outcome:
        about = {"metric": metric.name, "case": case.id, "repeat": question.repeat}
        repair: Repair | None = None
        while True:
            turn = 1 if repair else 0
            try:
                reply = await self._reply(key, turn, question, repair, about)
            except NoReply as error:
                self._count_error(error)
                return _Outcome("error", reason=error.reason, repaired=bool(repair))
            if wrong := self._wrong_model(reply):
                self._count_error(wrong)
                return _Outcome("error", None, wrong.reason, reply.model, bool(repair), reply.date)
            self.errors_in_a_row = 0
            outcome = _read(reply, question)
            outcome.repaired = bool(repair)
            if outcome.status != "unparsed" or repair:
                return outcome
            repair = Repair(reply.text or "", outcome.reason or "")

    async def _reply(
        self, key: str, turn: int, question: Question, repair: Repair | None, about: dict[str, Any]
    ) -> Reply:
        """The stored reply or a new one, kept before it is returned. Raises `NoReply` after the last attempt."""
        if self.record is None:
            return (await self._call(question, repair))[0]
        stored = self.record.kept.turns.get((key, turn))
        if stored is None or self._wrong_model(stored):
            self.record.asked(key, turn)
            try:
                reply, calls = await self._call(question, repair)
            except _Failed as error:
                self.record.failed(key, turn, error.reason, error.calls)
                raise
            return self.record.reply(key, turn, reply, calls, about)
        return stored

    async def _call(self, question: Question, repair: Repair | None) -> tuple[Reply, int]:
        """A reply and the calls it took."""
        loop = asyncio.get_running_loop()
        wait = self.asking.wait
        for attempt in range(1, self.asking.attempts + 1):
            await asyncio.sleep(self.pace.reserve(loop.time()))
            try:
                return await self.backend.ask(question, repair), attempt
            except NoReply as error:
                longest = error.after is not None and error.after > _LONGEST_WAIT
                if error.final or longest or not error.again or attempt == self.asking.attempts:
                    raise _Failed(error, attempt) from None
                if error.after:
                    self.pace.hold(loop.time() + error.after)
                await asyncio.sleep(max(error.after or 0.0, wait * self.jitter.uniform(0.5, 1.5)))
                wait = min(2 * wait, 60.0)
        raise AssertionError("unreachable: the last attempt raises")

    def _wrong_model(self, reply: Reply) -> NoReply | None:
        """Why a reply is none of this judge's; None when it is. Hosted models add a date to their name."""
        wanted, said = self.asking.returned_model or self.backend.model, reply.model
        if said is None or re.fullmatch(re.escape(wanted) + r"(-\d[\d-]*)?", said):
            return None
        return NoReply(f"{said!r} answered, not {wanted!r}; if that is its name, set judge.returned_model={said}")

    def _count_error(self, error: NoReply) -> None:
        self.errors_in_a_row += 1
        if error.final or (self.errors_in_a_row >= _ERRORS_IN_A_ROW and self.backend.name != "replay"):
            many = "" if error.final else f"the last {self.errors_in_a_row} questions all failed: "
            kept = f"; what was answered is kept in {self.record.path}, start again to go on" if self.record else ""
            raise IveditError(f"the judge cannot be asked: {many}{error.reason}{kept}") from None


class _Failed(NoReply):
    """The last attempt failed."""

    def __init__(self, error: NoReply, calls: int) -> None:
        super().__init__(error.reason, final=error.final or error.nobody)
        self.calls = calls


def _read(reply: Reply, question: Question) -> _Outcome:
    """What a reply says; never a number unless the answer is valid."""
    outcome = _Outcome("unparsed", model=reply.model, date=reply.date)
    if reply.finish_reason == "content_filter":
        outcome.status, outcome.reason = "filtered", reply.refusal or "a content filter stopped it"
    elif reply.refusal or reply.finish_reason == "refusal":
        outcome.status, outcome.reason = "refused", reply.refusal or reply.text or "the judge refused"
    elif reply.finish_reason == "length":  # what stands there may look whole and yet be cut off
        outcome.reason = "the answer was cut off at max_tokens; be brief"
    elif isinstance(found := parse(reply.text, question.schema), Unparsed):
        outcome.reason = found.reason
    else:
        outcome.status, outcome.answer = "ok", found
    return outcome


def session_facts(backend: Backend, metrics: Sequence[Metric], asking: Asking) -> dict[str, Any]:
    """What a session's line in the record says."""
    return {
        "backend": backend.name, "model": backend.model, "sampling": dict(backend.sampling),
        "protocol": PROTOCOL_VERSION, "prompt_hash": prompt_hash(metrics, asking.shown),
        "metrics": [metric.name for metric in metrics], **asdict(asking),
    }  # fmt: skip


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that stopped the others."""
    for error in errors.exceptions:
        if not isinstance(error, asyncio.CancelledError):
            return _first(error) if isinstance(error, BaseExceptionGroup) else error
    return errors.exceptions[0]
