"""Which of two edits is better? Asked in both orders, because judges favour a place.

Every pair of methods is asked about on every clip that both edited, once with one as A and once with the other. Only
an answer that holds in both orders is a win; any disagreement is a tie and counts in the flip rate, which is shown.
The share of answers that name A shows how much a place is favoured: 0.5 is not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivedit.errors import ConfigError
from ivedit.judge.answers import Answer
from ivedit.judge.cases import Case, Cases, case_id
from ivedit.judge.judgements import Judgement
from ivedit.judge.protocol import METRICS, Metric, Part
from ivedit.judge.showing import LabelledImage, Shown, evenly, windows

__all__ = ["PAIRWISE", "Outcome", "PairCase", "PairCases", "outcomes"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PairCase(Case):
    """Two edits of one clip: ``edited`` is shown as A, ``other`` as B.

    Attributes:
        first: Method of A.
        second: Method of B.
        other: uint8 (T, 3, H, W).
    """

    first: str
    second: str
    other: NDArray[np.uint8]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.other.shape != self.source.shape or self.other.dtype != np.uint8:
            raise ConfigError(
                f"clip {self.clip!r}: {self.second!r} is {self.other.dtype} of shape {self.other.shape} and "
                f"{self.first!r} uint8 of shape {self.edited.shape}; methods are compared on the same frames"
            )


class PairCases:
    """Every two methods on every clip that both edited, in both orders. Each case is read once here, for its names.

    Args:
        cases: The edits.
        wanted: Which two methods; None: any.

    Attributes:
        places: (clip, method of A, method of B) of each case.

    Raises:
        ConfigError: no clip was edited by two methods, a method edited a clip twice, or instructions differ.
    """

    def __init__(self, cases: Cases, wanted: Callable[[str, str], bool] | None = None) -> None:
        self._cases = cases
        found: dict[str, dict[str, int]] = {}
        words: dict[str, str] = {}
        for index in range(len(cases)):
            case = cases[index]
            if case.method in found.setdefault(case.clip, {}):
                raise ConfigError(f"clip {case.clip!r} comes twice from {case.method!r}; keep one of the two")
            if words.setdefault(case.clip, case.instruction) != case.instruction:
                raise ConfigError(f"clip {case.clip!r} has two instructions; methods are compared on the same one")
            found[case.clip][case.method] = index
        self.places = [
            (clip, *order)
            for clip, methods in found.items()
            for pair in combinations(sorted(methods), 2)
            if wanted is None or wanted(*pair)
            for order in (pair, pair[::-1])
        ]
        if not self.places:
            raise ConfigError("there is nothing to compare: no clip was edited by two methods")
        self._found = found

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int, /) -> PairCase:
        clip, first, second = self.places[index]
        a, b = (self._cases[self._found[clip][method]] for method in (first, second))
        if not np.array_equal(a.source, b.source):
            raise ConfigError(f"clip {clip!r} has one source for {first!r} and another for {second!r}")
        return PairCase(
            _pair_id(clip, first, second), clip, f"{first} and {second}", a.source, a.edited, a.instruction,
            first=first, second=second, other=b.edited,
        )  # fmt: skip


def _pair_id(clip: str, first: str, second: str) -> str:
    return case_id(clip, f"{len(first)}:{first} and {second}")


# -- what is shown and asked ------------------------------------------------------------------------------------


def _other(case: Case) -> NDArray[np.uint8]:
    if not isinstance(case, PairCase):
        raise ConfigError(f"clip {case.clip!r}: a question about two edits needs two (PairCases)")
    return case.other


def _frames(clips: Mapping[str, NDArray[np.uint8]], moments: Sequence[int], size: tuple[int, int]) -> list[Part]:
    """The clips side by side in time: all labels of a moment, then those of the next."""
    return [
        LabelledImage(f"{label} {number}", clip[moment], size)
        for number, moment in enumerate(moments, 1)
        for label, clip in clips.items()
    ]


def _show_with_source(case: Case, shown: Shown) -> tuple[list[Part], int]:
    """``Source 1``, ``A 1``, ``B 1``, ``Source 2``, ..."""
    moments = evenly(len(case.source), shown.frames)
    clips = {"Source": case.source, "A": case.edited, "B": _other(case)}
    return _frames(clips, moments, shown.size(*case.source.shape[-2:])), len(moments)


def _show_alone(case: Case, shown: Shown) -> tuple[list[Part], int]:
    """``A 1``, ``A 2``, ..., then ``B 1``, ``B 2``, ..."""
    moments, size = evenly(len(case.source), shown.frames), shown.size(*case.source.shape[-2:])
    clips = {"A": case.edited, "B": _other(case)}
    return [part for label, clip in clips.items() for part in _frames({label: clip}, moments, size)], len(moments)


def _show_windows(case: Case, shown: Shown) -> tuple[list[Part], int]:
    """For each window of consecutive frames the source's (``Reference 1``, ...), then A's, then B's."""
    if len(case.source) < 2:
        raise ConfigError(f"clip {case.clip!r} has one frame and so no motion to judge; leave TC out of judge.metrics")
    size, found = shown.size(*case.source.shape[-2:]), windows(len(case.source), shown.frames)
    parts: list[Part] = []
    first = 1
    for number, moments in enumerate(found, 1):
        for label, clip in (("Reference", case.source), ("A", case.edited), ("B", _other(case))):
            parts.append(f"Window {number} of {len(found)}, {label}, consecutive frames:")
            parts += [LabelledImage(f"{label} {i}", clip[t], size) for i, t in enumerate(moments, first)]
        first += len(moments)
    return parts, first - 1


@dataclass(frozen=True)
class PairMetric(Metric):
    """A question whose answer is a word."""

    def after(self) -> str:
        """The text after the pictures."""
        return (
            'Answer with one JSON object and nothing else. First "observations": what you see that matters here, in at '
            'most four sentences, before you decide. Then "better": "A", "B" or "tie". Last "evidence_frames": the '
            "numbers of the frames that decided, as labelled."
        )


_ANSWERS: Any = {"A": "A is better", "B": "B is better", "tie": "neither is better"}
_NUMBER = {"A": 1.0, "tie": 0.0, "B": -1.0}

_TASKS = {
    "IA": (
        "You compare two edits, A and B, of one source video. Frames of one number are of one moment. Judge one thing "
        "only: in which was the instruction carried out better? Whether the picture is clean, smooth or beautiful, "
        "and what else changed, is judged by others.",
        _show_with_source,
    ),
    "TC": (
        "You compare how steady two edits, A and B, of one video are over time. You see windows of consecutive "
        "frames: first those of a reference, which shows how things moved before the edit, then those of A and of B "
        "at the same moments. What was edited is not your concern. Judge motion only: which has less flicker, drift, "
        "popping, frozen or jumping motion, or frames out of order?",
        _show_windows,
    ),
    "VF": (
        "You compare two edits, A and B, of one source video. Frames of one number are of one moment. Judge two "
        "things together, apart from whether the instruction was carried out: which keeps better what the instruction "
        "does not ask to change, and which has the cleaner picture?",
        _show_with_source,
    ),
    "AA": (
        "You see frames of two videos, A and B, each in order of time. Which is more appealing to look at: "
        "composition, colour, light, sharpness, and how well its parts go together? How they were made is not your "
        "concern.",
        _show_alone,
    ),
}


def _preferred(answer: Answer) -> float:
    return _NUMBER[answer.values["better"]]


PAIRWISE: dict[str, Metric] = {
    name: PairMetric(
        f"{name}.pair", f"{METRICS[name].title}, of two", task + " If you cannot say that one is better, it is a tie.",
        {"better": _ANSWERS}, show, METRICS[name].uses_instruction, _preferred, -1.0, 1.0,
    )
    for name, (task, show) in _TASKS.items()
}  # fmt: skip
"""The four questions about two edits, by the name of the metric; the value is 1 for A, -1 for B, 0 for a tie."""


# -- what comes of it ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One clip, one pair of methods, one metric, one repeat, both orders taken together.

    Attributes:
        metric: Name in `PAIRWISE`.
        clip: Name of the clip.
        one: The method whose name comes first.
        other: The other.
        score: 1: ``one`` is better in both orders, -1: ``other`` is; 0: a tie; None: an order has no answer.
        flipped: The two orders disagree.
        firsts: Answers that named A, of those that named A or B.
        named: Answers that named A or B.
    """

    metric: str
    clip: str
    one: str
    other: str
    score: float | None
    flipped: bool
    firsts: int
    named: int


def outcomes(cases: PairCases, judgements: Sequence[Judgement]) -> list[Outcome]:
    """Take the two orders of every pair together, repeat by repeat.

    Args:
        cases: What was judged.
        judgements: As `ivedit.judge.runner.judge` returned them for metrics of `PAIRWISE`.
    """
    orders = {_pair_id(*place): place for place in cases.places}
    both: dict[tuple[str, str, str, str, int], _Both] = {}
    for judgement in judgements:
        clip, first, second = orders[judgement.case_id]
        one, other = sorted((first, second))
        place = (judgement.metric.removesuffix(".pair"), clip, one, other, judgement.repeat)
        both.setdefault(place, _Both()).add(judgement.value, turned=first != one)
    return [
        Outcome(metric, clip, one, other, found.score, found.flipped, found.firsts, found.named)
        for (metric, clip, one, other, _), found in sorted(both.items())
    ]


@dataclass
class _Both:
    values: list[float | None] = field(default_factory=list)
    firsts: int = 0
    named: int = 0

    def add(self, value: float | None, turned: bool) -> None:
        """One answer: 1 for A. ``turned``: A is the method whose name comes second."""
        self.firsts += value == 1
        self.named += value in (1, -1)
        self.values.append(None if value is None else -value if turned else value)

    @property
    def score(self) -> float | None:
        if len(self.values) != 2 or None in self.values:
            return None
        return self.values[0] if self.values[0] == self.values[1] else 0.0

    @property
    def flipped(self) -> bool:
        return None not in self.values and len(set(self.values)) > 1
