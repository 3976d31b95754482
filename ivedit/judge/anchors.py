"""Anchors: a judge is believed in a metric only after it ranked clips whose order is known.

Each relation says that one kind of clip must score above another, on at least 40 pairs of one scene: 90% of the pairs
in the right order, the lower end of the Wilson interval at 0.75 or more. A tie is not the right order, so a judge that
answers the same to everything is never valid; a pair without a score on one side counts as not right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ivedit.judge.anchor_clips import KINDS, AnchorScene, anchor_clip
from ivedit.judge.cases import Case
from ivedit.judge.judgements import Asking, Judgement
from ivedit.judge.protocol import Metric, prompt_hash
from ivedit.judge.showing import Shown
from ivedit.judge.verdict import ACCURACY, BOUND, PAIRS, VALID, Relation, Verdict

if TYPE_CHECKING:
    from ivedit.judge.backends.base import Backend
    from ivedit.judge.pairwise import PairCases
    from ivedit.judge.record import Record

__all__ = [
    "RELATIONS", "AnchorCases", "Anchored", "judge_anchors", "judge_pair_anchors", "needs", "pair_anchors", "verdict",
    "verdicts_text",
]  # fmt: skip

RELATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "IA": (("A1", "A0"), ("A1", "A2"), ("A1", "A8")),
    "TC": (("A1", "A4"), ("A1", "A5"), ("A1", "A6")),
    "VF": (("A0", "A3"), ("A0", "A8"), ("A1", "A3"), ("A1", "A8")),
    "AA": (("A1", "A7"),),
    "OVE": (("A1", "A0"), ("A1", "A2"), ("A1", "A3"), ("A1", "A4"), ("A1", "A7"), ("A1", "A8")),
}
"""For each metric the (better, worse) kinds of clip that it has to tell apart."""


class AnchorCases:
    """The cases that some metrics need, one for each scene and kind whose fault shows, made when asked for.

    Args:
        scenes: The true edits.
        metrics: Names of metrics; one without relations needs no case.
    """

    def __init__(self, scenes: Sequence[AnchorScene], metrics: Sequence[str]) -> None:
        self.scenes = scenes
        needed = {kind for name in metrics for pair in RELATIONS.get(name, ()) for kind in pair}
        self.places: list[tuple[int, str]] = []
        for number in range(len(scenes)):
            scene = scenes[number]  # read once: it may come from files
            self.places += [
                (number, kind) for kind in KINDS if kind in needed and anchor_clip(scene, kind, scenes) is not None
            ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int, /) -> Case:
        number, kind = self.places[index]
        scene = self.scenes[number]
        clip = anchor_clip(scene, kind, self.scenes)
        assert clip is not None  # a pure function, which gave one before
        return Case.of(scene.name, kind, scene.source, clip, scene.instruction, truth=scene.truth, mask=scene.mask)

    def questions(self, names: Sequence[str]) -> int:
        """How many questions `judge_anchors` asks in one repeat about these metrics; no clip is made to know it."""
        return sum(any(kind in pair for pair in RELATIONS.get(name, ())) for name in names for _, kind in self.places)

    def pair_questions(self, names: Sequence[str]) -> int:
        """The same for `judge_pair_anchors`: both orders of each relation whose two clips a scene has."""
        kinds: dict[int, set[str]] = {}
        for number, kind in self.places:
            kinds.setdefault(number, set()).add(kind)
        return sum(2 * found.issuperset(pair) for name in names for pair in RELATIONS[name] for found in kinds.values())


@dataclass(frozen=True)
class Anchored:
    """What the anchors showed: a verdict for each metric, and every judgement behind it."""

    verdicts: tuple[Verdict, ...]
    judgements: tuple[Judgement, ...]


def needs(case: Case, metric: Metric) -> bool:
    """Whether a relation of ``metric`` has the kind of clip that ``case`` is."""
    return any(case.method in pair for pair in RELATIONS.get(metric.name, ()))


def judge_anchors(
    cases: AnchorCases, metrics: Sequence[Metric], backend: Backend, record: Record | None = None,
    asking: Asking | None = None, advance: Callable[[int], None] | None = None,
) -> Anchored:  # fmt: skip
    """Ask the judge about the anchors and say for each metric whether it may be believed.

    Args:
        cases: Made for these metrics.
        metrics: Each is asked about the kinds in its relations only.
        backend, record, asking, advance: As for `ivedit.judge.runner.judge`, which closes the backend.

    Raises:
        IveditError: as `ivedit.judge.runner.judge`.
    """
    from ivedit.judge.runner import judge

    asking = asking or Asking()
    judgements = judge(cases, metrics, backend, record, asking, advance, needs)
    values: dict[str, dict[tuple[str, str], list[float]]] = {metric.name: {} for metric in metrics}
    for judgement in judgements:
        found = values[judgement.metric].setdefault((judgement.clip, judgement.method), [])
        if judgement.value is not None:
            found.append(judgement.value)
    means = {
        name: {place: sum(found) / len(found) if found else math.nan for place, found in places.items()}
        for name, places in values.items()
    }
    verdicts = tuple(verdict(metric, means[metric.name], asking.shown) for metric in metrics)
    return Anchored(verdicts, tuple(judgements))


def pair_anchors(
    cases: AnchorCases, names: Sequence[str]
) -> tuple[PairCases, list[Metric], Callable[[Case, Metric], bool]]:
    """The pairs of clips that the relations of these metrics compare, the questions, and which is asked about which."""
    from ivedit.judge.pairwise import PAIRWISE, PairCase, PairCases

    wanted = {PAIRWISE[name].name: [set(pair) for pair in RELATIONS[name]] for name in names}
    either = [pair for pairs in wanted.values() for pair in pairs]

    def asks(case: Case, metric: Metric) -> bool:
        return isinstance(case, PairCase) and {case.first, case.second} in wanted[metric.name]

    return PairCases(cases, lambda one, other: {one, other} in either), [PAIRWISE[name] for name in names], asks


def judge_pair_anchors(
    cases: AnchorCases, names: Sequence[str], backend: Backend, record: Record | None = None,
    asking: Asking | None = None, advance: Callable[[int], None] | None = None,
) -> Anchored:  # fmt: skip
    """The same for questions about two edits: the better clip has to win in both orders, in most of the repeats.

    Args:
        cases: Made for these metrics.
        names: Metrics in `ivedit.judge.pairwise.PAIRWISE`; the verdicts are of the pairwise ones (``IA.pair``).
        backend, record, asking, advance: As for `ivedit.judge.runner.judge`.
    """
    from ivedit.judge.pairwise import outcomes
    from ivedit.judge.runner import judge

    asking = asking or Asking()
    pairs, metrics, asks = pair_anchors(cases, names)
    judgements = judge(pairs, metrics, backend, record, asking, advance, asks)
    scores: dict[tuple[str, frozenset[str]], dict[str, list[float]]] = {}
    for outcome in outcomes(pairs, judgements):
        kinds = frozenset((outcome.one, outcome.other))
        found = scores.setdefault((outcome.metric, kinds), {}).setdefault(outcome.clip, [])
        if outcome.score is not None:
            found.append(outcome.score if outcome.one < outcome.other else -outcome.score)
    verdicts = []
    for name, metric in zip(names, metrics, strict=True):
        relations = []
        for better, worse in RELATIONS[name]:
            clips = scores.get((name, frozenset((better, worse))), {}).values()
            sign = 1 if better < worse else -1
            gaps = [sign * sum(found) / len(found) if found else math.nan for found in clips]
            relations.append(_counted(better, worse, gaps))
        verdicts.append(Verdict(metric.name, prompt_hash([metric], asking.shown), tuple(relations)))
    return Anchored(tuple(verdicts), tuple(judgements))


def verdict(metric: Metric, means: Mapping[tuple[str, str], float], shown: Shown) -> Verdict:
    """Whether the metric of this judge may be believed.

    Args:
        metric: Which.
        means: Its mean over repeats by (scene, kind); NaN where no repeat gave a value.
        shown: How clips were shown.
    """
    relations = tuple(_relation(means, better, worse) for better, worse in RELATIONS.get(metric.name, ()))
    return Verdict(metric.name, prompt_hash([metric], shown), relations)


def _relation(means: Mapping[tuple[str, str], float], better: str, worse: str) -> Relation:
    scenes = [scene for scene, kind in means if kind == better and (scene, worse) in means]
    return _counted(better, worse, [means[scene, better] - means[scene, worse] for scene in scenes])


def _counted(better: str, worse: str, gaps: Sequence[float]) -> Relation:
    """The relation's numbers from how far ``better`` was above ``worse`` in each scene; NaN where that is unknown."""
    from ivedit.evaluation.statistics import share_interval

    right = sum(gap > 0 for gap in gaps)  # NaN is not above 0
    low = share_interval([gap > 0 for gap in gaps]).low
    return Relation(better, worse, right, len(gaps), low or 0.0, sum(math.isnan(gap) for gap in gaps))


def verdicts_text(verdicts: Sequence[Verdict]) -> str:
    """Every relation on a line of its own, under its metric's verdict.

    ::

        TC: not valid for this judge
            A1 true edit over A4 flicker: 44 of 44, at least 0.92
          ! A1 true edit over A6 frozen: 21 of 44, at least 0.34
    """
    lines: list[str] = []
    for one in verdicts:
        lines.append(f"{one.metric}: {one.state}" if one.relations else one.text())
        for relation in one.relations:
            good = relation.pairs >= PAIRS and relation.accuracy >= ACCURACY and relation.low >= BOUND
            lost = f", {relation.lost} without a score" if relation.lost else ""
            lines.append(
                f"  {' ' if good else '!'} {relation.better} {KINDS[relation.better]} over {relation.worse} "
                f"{KINDS[relation.worse]}: {relation.right} of {relation.pairs}{lost}, at least {relation.low:.2f}"
            )
    if any(one.state != VALID for one in verdicts):
        lines.append(f"(a relation needs {PAIRS} pairs, {ACCURACY:.0%} in the right order, at least {BOUND})")
    return "\n".join(lines)
