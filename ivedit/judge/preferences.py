"""From answers about pairs to a table: who wins how often, how sure that is, and how much the order of asking decided.

A win is worth 1 and a tie 1/2; repeats are averaged inside a clip, intervals are over clips. With three methods or more
each also gets a Bradley-Terry strength (Bradley and Terry, Biometrika 1952; Newman, JMLR 2023), fitted by evalica.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivedit.errors import ConfigError
from ivedit.evaluation.statistics import LEVEL, Estimate, mean_interval
from ivedit.judge.backends.base import Backend
from ivedit.judge.cases import Cases
from ivedit.judge.judgements import Asking, Judgement
from ivedit.judge.pairwise import PAIRWISE, Outcome, PairCases, outcomes
from ivedit.judge.record import Record
from ivedit.judge.scores import LIMIT, TableRefused
from ivedit.judge.verdict import VALID, Verdict

__all__ = ["PreferenceTable", "Preferred", "judge_preferences", "need_evalica", "preference_table", "strengths"]

_PRIOR = 1.0
"""Ties added between every two methods that were compared: without one, who never loses is infinitely strong."""


@dataclass(frozen=True)
class Preferred:
    """One metric and two methods.

    Attributes:
        metric: Name.
        one, other: The methods.
        share: Of clips won by ``one``, a tie being half of one.
        wins, ties, losses: Answers, both orders taken together.
        lost: Pairs in which an order has no answer.
        flips: Share of pairs whose two orders disagree.
        first: Share of the answers for A or B that name A; 0.5 favours no place.
    """

    metric: str
    one: str
    other: str
    share: Estimate
    wins: int
    ties: int
    losses: int
    lost: int
    flips: Estimate
    first: float | None


@dataclass(frozen=True)
class PreferenceTable:
    """What a judge prefers.

    Attributes:
        pairs: One line for each metric and two methods.
        strengths: By metric and method, the logarithm of the Bradley-Terry strength, of mean 0 over the methods; where
            two methods differ by 1 the stronger wins 73% of the time. Only with three methods or more.
        verdicts: By metric, what the anchors showed.
        footer: Lines that belong under every showing of the table.
    """

    pairs: tuple[Preferred, ...]
    strengths: Mapping[str, Mapping[str, Estimate]]
    verdicts: Mapping[str, Verdict]
    footer: tuple[str, ...]

    def heading(self, metric: str) -> str:
        """A metric's name with what is wrong with it."""
        state = self.verdicts[metric].state
        return metric if state == VALID else f"{metric} ({state})"

    def markdown(self) -> str:
        """Both tables and the footer."""
        lines = [["metric", "methods", "first one wins", "wins / ties / losses", "flip rate", "answers naming A"]]
        for pair in self.pairs:
            counts = f"{pair.wins} / {pair.ties} / {pair.losses}" + (f", {pair.lost} lost" if pair.lost else "")
            first = "-" if pair.first is None else f"{pair.first:.2f}"
            methods = f"{pair.one} over {pair.other}"
            lines.append([self.heading(pair.metric), methods, pair.share.text(), counts, pair.flips.text(), first])
        text = _table(lines)
        if self.strengths:
            names = list(next(iter(self.strengths.values())))
            rows = [[self.heading(m), *(row[name].text() for name in names)] for m, row in self.strengths.items()]
            text += "\n\n" + _table([["Bradley-Terry strength", *names], *rows])
        return "\n".join([text, "", *(f"{line}  " for line in self.footer)])

    def as_dict(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "pairs": [
                {**vars(pair), "share": pair.share.as_dict(), "flips": pair.flips.as_dict()} for pair in self.pairs
            ],
            "strengths": {m: {k: e.as_dict() for k, e in row.items()} for m, row in self.strengths.items()},
            "verdicts": {name: {"state": v.state, "text": v.text()} for name, v in self.verdicts.items()},
            "footer": list(self.footer),
        }


def _table(lines: Sequence[Sequence[str]]) -> str:
    body = [f"| {' | '.join(line)} |" for line in lines]
    body.insert(1, "|" + "---|" * len(lines[0]))
    return "\n".join(body)


def preference_table(
    compared: Sequence[Outcome], verdicts: Mapping[str, Verdict] | None = None, *, footer: Sequence[str] = (),
    resamples: int = 1000, seed: int = 0, limit: float = LIMIT,
) -> PreferenceTable:  # fmt: skip
    """Score what `ivedit.judge.pairwise.outcomes` made of the answers.

    Args:
        compared: Of all pairs.
        verdicts: By metric (`ivedit.judge.anchors.judge_pair_anchors`); a metric without one is not proven.
        footer: Lines under the table.
        resamples, seed: Of the bootstrap over clips.
        limit: Largest share of pairs without a score.

    Raises:
        TableRefused: a metric and two methods lack more scores than that.
        ConfigError: three methods and evalica is not installed.
    """
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in compared:
        groups.setdefault((outcome.metric, outcome.one, outcome.other), []).append(outcome)
    problems = [
        f"{metric}: {one} and {other} lack {lost} of {len(group)} comparisons, at most {limit:.0%} may be missing"
        for (metric, one, other), group in groups.items()
        if (lost := sum(o.score is None for o in group)) > limit * len(group)
    ]
    if problems:
        raise TableRefused("\n".join(["the table is refused, too many comparisons are missing:", *problems]))
    metrics = list(dict.fromkeys(metric for metric, _, _ in groups))
    by_metric = {name: [o for o in compared if o.metric == name] for name in metrics}
    fitted = {}
    for name, found in by_metric.items():
        if len({method for o in found for method in (o.one, o.other)}) > 2:
            fitted[name] = strengths(found, resamples=min(resamples, 400), seed=seed)
    return PreferenceTable(
        pairs=tuple(_preferred(*names, group, resamples, seed) for names, group in groups.items()),
        strengths=fitted,
        verdicts={name: (verdicts or {}).get(name, Verdict(name)) for name in metrics},
        footer=tuple(footer),
    )


def judge_preferences(
    cases: Cases, names: Sequence[str], backend: Backend, record: Record | None = None, asking: Asking | None = None,
    verdicts: Mapping[str, Verdict] | None = None, *, resamples: int = 1000,
    advance: Callable[[int], None] | None = None,
) -> tuple[PreferenceTable, list[Judgement]]:  # fmt: skip
    """Ask which of two methods' edits is better, for every two of them, and make the table.

    Args:
        cases: Of all methods; each is read once for its names and again for every pair.
        names: Metrics in `ivedit.judge.pairwise.PAIRWISE`.
        backend, record, asking, advance: As for `ivedit.judge.runner.judge`.
        verdicts: By name of the pairwise metric (``IA.pair``).
        resamples: Of the bootstrap over clips.

    Raises:
        ConfigError: nothing to compare, or three methods and no evalica; nobody has been asked then.
        TableRefused: too many comparisons are missing; the record keeps the others.
    """
    from ivedit.judge.footer import footer
    from ivedit.judge.runner import judge

    pairs, asking = PairCases(cases), asking or Asking()
    if len({method for _, *both in pairs.places for method in both}) > 2:
        need_evalica()
    metrics = [PAIRWISE[name] for name in names]
    found = judge(pairs, metrics, backend, record, asking, advance)
    known = {name: (verdicts or {}).get(PAIRWISE[name].name, Verdict(name)) for name in names}
    lines = footer(found, metrics, backend, asking, verdicts, record.kept if record else None)
    lines.insert(0, "A win holds in both orders; disagreement is a tie, half a win, and counts in the flip rate.")
    return preference_table(outcomes(pairs, found), known, footer=lines, resamples=resamples), found


def _preferred(
    metric: str, one: str, other: str, group: Sequence[Outcome], resamples: int, seed: int
) -> Preferred:
    scores = [o.score for o in group]
    named = sum(o.named for o in group)

    def over_clips(value: Callable[[Outcome], float]) -> Estimate:
        return mean_interval(_by_clip(group, value), resamples=resamples, seed=seed)

    return Preferred(
        metric, one, other,
        share=over_clips(lambda o: math.nan if o.score is None else (o.score + 1) / 2),
        wins=scores.count(1.0), ties=scores.count(0.0), losses=scores.count(-1.0), lost=scores.count(None),
        flips=over_clips(lambda o: math.nan if o.score is None else float(o.flipped)),
        first=sum(o.firsts for o in group) / named if named else None,
    )  # fmt: skip


def _by_clip(group: Sequence[Outcome], value: Callable[[Outcome], float]) -> NDArray[np.float64]:
    """One number for each clip: the mean over the repeats that have one; NaN where none has."""
    clips: dict[str, list[float]] = {}
    for outcome in group:
        clips.setdefault(outcome.clip, []).append(value(outcome))
    kept = [[x for x in found if not math.isnan(x)] for found in clips.values()]
    return np.array([sum(found) / len(found) if found else math.nan for found in kept])


# -- Bradley-Terry ------------------------------------------------------------------------------------------------


def need_evalica() -> Any:
    """The library that fits strengths; ConfigError with the way to get it. Ask before any judge is paid."""
    try:
        import evalica
    except ImportError:
        raise ConfigError(
            "Bradley-Terry strengths need evalica, which is not installed: pip install 'ivedit[pairwise]'"
        ) from None
    return evalica


def strengths(compared: Sequence[Outcome], *, resamples: int = 400, seed: int = 0) -> dict[str, Estimate]:
    """Each method's log strength (mean 0) with its percentile interval over clips, strongest first.

    Args:
        compared: Of one metric; those without a score are left out.
        resamples: Bootstrap samples of the clips.
        seed: Of the resampling.

    Raises:
        ConfigError: evalica is not installed.
    """
    evalica = need_evalica()
    scored = [o for o in compared if o.score is not None]
    methods = sorted({method for o in scored for method in (o.one, o.other)})
    clips = sorted({o.clip for o in scored})
    kinds = sorted({(o.one, o.other, score) for o in scored for score in (1.0, 0.0, -1.0)})
    place = {kind: i for i, kind in enumerate(kinds)}
    row = {clip: i for i, clip in enumerate(clips)}
    repeats = Counter((o.clip, o.one, o.other) for o in scored)
    counts = np.zeros((len(clips), len(kinds)))
    for o in scored:
        assert o.score is not None
        # a clip's repeats are one comparison between them
        counts[row[o.clip], place[o.one, o.other, o.score]] += 1 / repeats[o.clip, o.one, o.other]
    winner = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Draw, -1.0: evalica.Winner.Y}
    prior = np.array([_PRIOR if score == 0 else 0.0 for _, _, score in kinds])

    def fit(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        used = np.flatnonzero(weights > 0)
        result = evalica.bradley_terry(
            [kinds[i][0] for i in used], [kinds[i][1] for i in used], [winner[kinds[i][2]] for i in used],
            weights=weights[used].tolist(), tolerance=1e-9, limit=10_000,
        )  # fmt: skip
        found = np.log([float(result.scores[method]) for method in methods])
        return found - found.mean()

    best = fit(counts.sum(axis=0) + prior)
    chosen = np.random.default_rng(seed).integers(0, len(clips), (resamples, len(clips)))
    spread = np.array([fit(counts[rows].sum(axis=0) + prior) for rows in chosen])
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        methods[i]: Estimate(float(best[i]), float(low[i]), float(high[i]), len(clips), len({o.clip for o in compared}))
        for i in np.argsort(-best, kind="stable")
    }
