"""From a sweep's record to the numbers of its report: arms, controls, paired differences, claims.

Everything is computed anew from the values per clip, so a table cannot drift from its record. The declared claims are
one family: their p-values are adjusted together (Holm), over all metrics that they name, and a claim holds only when
the adjusted p is at most 0.05 and the interval of its difference lies above 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivedit.evaluation.hierarchical import (
    SeedEstimate,
    holm,
    interquartile_mean,
    paired_seeds,
    probability_of_improvement,
    seeds_interval,
)
from ivedit.evaluation.statistics import Estimate
from ivedit.reporting.sweep_record import METRICS, clip_values

__all__ = ["Analysis", "ArmRow", "Difference", "analyse"]

ALPHA = 0.05


@dataclass(frozen=True)
class ArmRow:
    """An arm over its seeds.

    Attributes:
        values: {metric: estimate over seeds and clips}.
        middle: interquartile mean of the edited region's PSNR.
        seeds: with results, in order; ``expected``: how many the sweep asked for.
        flops: as `ivedit.training.flops` counts them, or why they are not.
        seconds: median training time of its runs.
    """

    name: str
    values: Mapping[str, SeedEstimate]
    middle: SeedEstimate
    seeds: tuple[int, ...]
    expected: int
    trained_weights: int | None
    flops: Mapping[str, Any]
    steps: int | None
    seconds: float | None
    tuned: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """Arm ``better`` minus arm ``than`` on common seeds and clips.

    Attributes:
        metric: what the claim is about.
        values: {metric: paired difference}.
        improvement: probability that a run of ``better`` beats a run of ``than`` on a clip, by ``metric``.
        seeds: common ones.
        adjusted: Holm's p over the family; None when the difference could not be made or has one seed.
        verdict: ``holds``, ``FAILED: why``, or ``open: why`` while the sweep is still running.
    """

    better: str
    than: str
    metric: str
    values: Mapping[str, SeedEstimate]
    improvement: SeedEstimate | None
    seeds: tuple[int, ...]
    adjusted: float | None
    verdict: str

    @property
    def holds(self) -> bool:
        """Whether the claim is carried."""
        return self.verdict == "holds"


@dataclass(frozen=True)
class Analysis:
    """All numbers of a report; ``declared``: the claims are the sweep's own, and not the first arm against each."""

    arms: tuple[ArmRow, ...]
    controls: Mapping[str, Mapping[str, Estimate]]
    differences: tuple[Difference, ...]
    declared: bool
    running: bool


Table = NDArray[np.float64]


def analyse(record: Mapping[str, Any]) -> Analysis:
    """Compute a report's numbers from a sweep's record."""
    runs: dict[str, dict[int, Mapping[str, Any]]] = {arm: {} for arm in record["arms"]}
    for run in record["runs"]:
        if "values" in run:
            runs[run["arm"]][run["seed"]] = run
    running = record["ended"] < record["expected"]
    arms = tuple(_arm(record, arm, runs[arm]) for arm in record["arms"] if runs[arm])
    claims = record["claims"]
    pairs = [(c["better"], c["than"], c["metric"]) for c in claims] or _against_the_first(record["arms"], runs)
    found = [_pair(runs[better], runs[than]) for better, than, _ in pairs]
    adjusted = holm([
        values[metric].p if values and len(seeds) > 1 else None
        for (values, seeds), (_, _, metric) in zip(found, pairs, strict=True)
    ])
    differences = []
    for (better, than, metric), (values, seeds), p in zip(pairs, found, adjusted, strict=True):
        improvement = (
            probability_of_improvement(_table(runs[better], seeds, metric), _table(runs[than], seeds, metric))
            if seeds
            else None
        )
        verdict = _verdict(values.get(metric), seeds, p, running=running)
        differences.append(Difference(better, than, metric, values, improvement, seeds, p, verdict))
    controls = {
        name: {metric: Estimate(**value) for metric, value in found.items()}
        for name, found in record["controls"].items()
    }
    return Analysis(arms, controls, tuple(differences), bool(claims), running)


def _against_the_first(arms: Sequence[str], runs: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Without declared claims: the first arm that has results against each other one, by success."""
    present = [arm for arm in arms if runs[arm]]
    return [(present[0], other, "success") for other in present[1:]] if present else []


def _arm(record: Mapping[str, Any], name: str, runs: Mapping[int, Mapping[str, Any]]) -> ArmRow:
    seeds = tuple(sorted(runs))
    some = runs[seeds[0]]
    times = [run["steps"] * run["step_seconds"] for run in runs.values() if run["steps"] and run["step_seconds"]]
    return ArmRow(
        name=name,
        values={m: seeds_interval(_table(runs, seeds, m), share=m == "success") for m in METRICS},
        middle=interquartile_mean(_table(runs, seeds, "edited_psnr")),
        seeds=seeds,
        expected=sum(run["arm"] == name for run in record["runs"]),
        trained_weights=some["trained_weights"],
        flops=record["flops"].get(name) or {"skipped": "not counted"},
        steps=some["steps"],
        seconds=float(np.median(times)) if times else None,
        tuned=record["tuned"].get(name, {}),
    )


def _pair(
    better: Mapping[int, Mapping[str, Any]], than: Mapping[int, Mapping[str, Any]]
) -> tuple[dict[str, SeedEstimate], tuple[int, ...]]:
    """Paired differences of every metric, and the common seeds; nothing without one."""
    seeds = tuple(sorted(set(better) & set(than)))
    if not seeds:
        return {}, ()
    return {m: paired_seeds(_table(better, seeds, m), _table(than, seeds, m)) for m in METRICS}, seeds


def _table(runs: Mapping[int, Mapping[str, Any]], seeds: Sequence[int], metric: str) -> Table:
    """(seeds, clips)."""
    return np.stack([clip_values(runs[seed], metric) for seed in seeds])


def _verdict(
    found: SeedEstimate | None, seeds: Sequence[int], adjusted: float | None, *, running: bool
) -> str:
    if running:
        return f"open: {len(seeds)} common seed{'' if len(seeds) == 1 else 's'} so far"
    if found is None or found.mean is None or not seeds:
        return "FAILED: no common seed with results"
    if len(seeds) == 1:
        return "FAILED: one seed says nothing about other seeds"
    if found.low is None or found.high is None or found.low <= 0:
        below = found.high is not None and found.high < 0
        return "FAILED: the difference is the other way round" if below else "FAILED: the interval holds 0"
    if adjusted is None or adjusted > ALPHA:
        return "FAILED: not within its family (Holm)"
    return "holds"
