"""From judgements to a table that says how much to believe it.

Repeats are averaged inside a clip first; intervals are over clips. Methods are compared only on clips that are scored
in all of them. A judgement that failed is no number: it shows in n/N, and a table in which any method has more than 2%
of them on any metric is refused. The overall score of a clip is the geometric mean of ``(s - 1) / 4`` over IA, TC, VF
and AA, so that doing nothing, whose IA is 1, scores 0; the arithmetic mean stands beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ivedit.errors import IveditError
from ivedit.evaluation.statistics import Estimate, detectable_difference, mean_interval, paired_difference
from ivedit.judge.judgements import STATUSES, Judgement
from ivedit.judge.protocol import METRICS, Metric
from ivedit.judge.verdict import NOT_VALID, VALID, Verdict

_T = TypeVar("_T")

__all__ = ["LIMIT", "OVERALL", "JudgeTable", "TableRefused", "score_table"]

LIMIT = 0.02
"""Largest share of failed judgements of one method and metric that a table may have."""

OVERALL = ("overall_geometric", "overall_arithmetic")


class TableRefused(IveditError):
    """Too many judgements are missing. The record keeps the others; the same command asks for the missing ones."""


@dataclass(frozen=True)
class JudgeTable:
    """What a judge made of several methods.

    Attributes:
        metrics: Names of the columns, `OVERALL` among them when all four metrics were asked.
        rows: Estimate by method and metric, over the clips scored in every method.
        per_clip: By method, metric and clip, the mean over repeats; parts of a metric as ``VF.preserve``.
        compared: By metric, the clips scored in every method.
        statuses: By method and metric, how many judgements ended in each state.
        verdicts: By metric, what the anchors showed.
        differences: By method and metric, against ``control``, paired by clip.
        detectable: The smallest difference that these clips find in 80% of runs, likewise.
        control: The method that the others are compared with; None: none.
        footer: Lines that belong under every showing of the table.
    """

    metrics: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Estimate]]
    per_clip: Mapping[str, Mapping[str, Mapping[str, float]]]
    compared: Mapping[str, tuple[str, ...]]
    statuses: Mapping[str, Mapping[str, Mapping[str, int]]]
    verdicts: Mapping[str, Verdict]
    differences: Mapping[str, Mapping[str, Estimate]]
    detectable: Mapping[str, Mapping[str, float | None]]
    control: str | None
    footer: tuple[str, ...]

    def heading(self, metric: str) -> str:
        """A column's name with what is wrong with it, such as ``TC (not valid for this judge)``."""
        if metric not in OVERALL:
            state = self.verdicts[metric].state
            return metric if state == VALID else f"{metric} ({state})"
        name = metric.replace("_", ", ")
        doubtful = [other for other in METRICS if self.verdicts[other].state != VALID]
        broken = [other for other in doubtful if self.verdicts[other].state == NOT_VALID]
        if broken:
            return f"{name} (not valid: {', '.join(broken)})"
        return f"{name} (not proven: {', '.join(doubtful)})" if doubtful else name

    def markdown(self) -> str:
        """The table and its footer."""
        head = ["method", *(self.heading(metric) for metric in self.metrics), "judged"]
        lines = [head]
        for method, row in self.rows.items():
            counts = self.statuses[method].values()
            judged = f"{sum(c['ok'] for c in counts)}/{sum(sum(c.values()) for c in counts)}"
            lines.append([method, *(row[m].text() for m in self.metrics), judged])
        if self.control is not None:
            for method, row in self.differences.items():
                lines.append([f"{method} - {self.control}", *(row[m].text() for m in self.metrics), ""])
        body = [f"| {' | '.join(line)} |" for line in lines]
        body.insert(1, "|" + "---|" * len(head))
        return "\n".join([*body, "", *(f"{line}  " for line in self.footer)])

    def as_dict(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "metrics": list(self.metrics),
            "rows": _nested(self.rows, Estimate.as_dict),
            "differences": _nested(self.differences, Estimate.as_dict),
            "detectable": _nested(self.detectable),
            "control": self.control,
            "per_clip": _nested(self.per_clip, dict),
            "compared": {name: list(clips) for name, clips in self.compared.items()},
            "statuses": _nested(self.statuses, dict),
            "verdicts": {name: {"state": v.state, "text": v.text()} for name, v in self.verdicts.items()},
            "footer": list(self.footer),
        }


def _nested(
    table: Mapping[str, Mapping[str, Any]], change: Callable[[Any], Any] = lambda value: value
) -> dict[str, Any]:
    return {method: {name: change(value) for name, value in row.items()} for method, row in table.items()}


def score_table(
    judgements: Sequence[Judgement], metrics: Sequence[Metric], verdicts: Mapping[str, Verdict] | None = None, *,
    control: str | None = None, footer: Sequence[str] = (), resamples: int = 2000, seed: int = 0, limit: float = LIMIT,
) -> JudgeTable:  # fmt: skip
    """Score what `ivedit.judge.runner.judge` returned.

    Args:
        judgements: Of all methods.
        metrics: Those that were asked.
        verdicts: By metric (`ivedit.judge.verdict.read_verdicts`); a metric without one is not proven.
        control: A method that the others are compared with, clip by clip.
        footer: As `ivedit.judge.footer.footer` writes it.
        resamples, seed: Of the bootstrap.
        limit: As `LIMIT`.

    Raises:
        TableRefused: a method has too many failed judgements, or no clip is scored in all methods.
        ValueError: ``control`` is not among the methods.
    """
    methods = list(dict.fromkeys(j.method for j in judgements))
    names = [metric.name for metric in metrics]
    if control is not None and control not in methods:
        raise ValueError(f"there is no method {control!r} to compare with, only {', '.join(methods)}")
    cells: dict[str, dict[str, list[Judgement]]] = {method: {name: [] for name in names} for method in methods}
    for judgement in judgements:
        cells[judgement.method][judgement.metric].append(judgement)
    problems = [_missing(method, name, cells[method][name], limit) for method in methods for name in names]
    if found := [problem for problem in problems if problem]:
        reason = f"the table is refused: more than {limit:.0%} of judgements are missing"
        raise TableRefused("\n".join([reason, *found]))

    per_clip = {method: _per_clip(cells[method], metrics) for method in methods}
    columns = (*names, *OVERALL) if set(METRICS) <= set(names) else tuple(names)
    asked = list(dict.fromkeys(j.clip for j in judgements))
    compared = {
        name: tuple(clip for clip in asked if all(clip in per_clip[method][name] for method in methods))
        for name in columns
    }
    for name, clips in compared.items():
        if not clips:
            raise TableRefused(f"no clip has {name} in every one of {', '.join(methods)}: there is nothing to compare")

    def values(method: str, name: str) -> NDArray[np.float64]:
        """One per clip that was asked of anybody; NaN where not every method is scored."""
        there = set(compared[name])
        return np.array([per_clip[method][name][clip] if clip in there else np.nan for clip in asked])

    def table(rows: Sequence[str], cell: Callable[[str, str], _T]) -> dict[str, dict[str, _T]]:
        return {method: {name: cell(method, name) for name in columns} for method in rows}

    def difference(method: str, name: str) -> Estimate:
        return paired_difference(values(method, name), values(str(control), name), resamples=resamples, seed=seed)

    others = [method for method in methods if control not in (None, method)]
    return JudgeTable(
        metrics=columns,
        rows=table(methods, lambda m, name: mean_interval(values(m, name), resamples=resamples, seed=seed)),
        per_clip=per_clip,
        compared=compared,
        statuses={method: {name: _counts(cell) for name, cell in row.items()} for method, row in cells.items()},
        verdicts={name: (verdicts or {}).get(name, Verdict(name)) for name in names},
        differences=table(others, difference),
        detectable=table(others, lambda m, name: detectable_difference(values(m, name) - values(str(control), name))),
        control=control,
        footer=tuple(footer),
    )


def _counts(judgements: Sequence[Judgement]) -> dict[str, int]:
    counts = Counter(j.status for j in judgements)
    return {status: counts[status] for status in STATUSES}


def _missing(method: str, name: str, judgements: Sequence[Judgement], limit: float) -> str | None:
    """What is wrong with a cell that has too many failures, with the commonest reason; None: enough is there."""
    failed = [j for j in judgements if j.status != "ok"]
    if not judgements:
        return f"{method}: {name} was never asked"
    if len(failed) <= limit * len(judgements):
        return None
    kinds = ", ".join(f"{count} {status}" for status, count in Counter(j.status for j in failed).most_common())
    reason = Counter(j.reason for j in failed).most_common(1)[0][0]
    return f"{method}: {name} lacks {len(failed)} of {len(judgements)} judgements ({kinds}), most often: {reason}"


def _per_clip(row: Mapping[str, Sequence[Judgement]], metrics: Sequence[Metric]) -> dict[str, dict[str, float]]:
    """By metric, by part of a metric that has several, and overall: {clip: mean over its repeats}."""
    found: dict[str, dict[str, float]] = {}
    for metric in metrics:
        answered = [j for j in row[metric.name] if j.status == "ok"]
        found[metric.name] = _means([(j.clip, j.value) for j in answered])
        for part in metric.levels if len(metric.levels) > 1 else ():
            found[f"{metric.name}.{part}"] = _means([(j.clip, j.values[part]) for j in answered if j.values])
    return {**found, **_overall(found)} if set(METRICS) <= set(found) else found


def _means(pairs: Sequence[tuple[str, float | None]]) -> dict[str, float]:
    by_clip: dict[str, list[float]] = {}
    for clip, value in pairs:
        assert value is not None, "a judgement that is ok has a value"
        by_clip.setdefault(clip, []).append(value)
    return {clip: sum(every) / len(every) for clip, every in by_clip.items()}


def _overall(row: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Both overall scores, 0 to 1, of the clips that have all four metrics."""
    clips = [clip for clip in row["IA"] if all(clip in row[name] for name in METRICS)]
    geometric, arithmetic = {}, {}
    for clip in clips:
        shares = [(row[name][clip] - m.lowest) / (m.highest - m.lowest) for name, m in METRICS.items()]
        geometric[clip] = math.prod(shares) ** (1 / len(shares))
        arithmetic[clip] = sum(shares) / len(shares)
    return dict(zip(OVERALL, (geometric, arithmetic), strict=True))
