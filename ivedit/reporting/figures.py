"""The plots of an ablation sweep: a dot per seed, paired differences, performance profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ivedit.evaluation.hierarchical import performance_profile
from ivedit.evaluation.statistics import Estimate
from ivedit.reporting.analysis import Analysis
from ivedit.reporting.sweep_record import METRICS, clip_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["difference_plot", "profile_plot", "seed_plot"]

COLOURS = ("#2a6fbb", "#d9822b", "#3d9a50", "#a04bb0", "#c0392b", "#17a2a2", "#8a6d3b", "#5b6470")
_VERDICTS = {"holds": "#2e8b57", "FAILED": "#c0392b", "open": "#2a6fbb"}
_GREY = "#9a9a9a"
_SCALES = {"success": 100, "edited_psnr": 1, "kept_psnr": 1}
_AXES = {
    "success": ("success, %", "success, points"),
    "edited_psnr": ("edited region, dB", "edited region, dB"),
    "kept_psnr": ("kept region, dB", "kept region, dB"),
}


def seed_plot(found: Analysis) -> Figure:
    """Each arm's mean with its interval, and a dot per seed; the controls below, in grey.

    The axes are those of the arms: a control far from them is told at the edge, or nobody could tell arms apart.
    """
    names = [*(arm.name for arm in found.arms), *found.controls]
    figure, panels = _panels(len(names), len(METRICS))
    for axes, metric in zip(panels, METRICS, strict=True):
        for row, arm in enumerate(found.arms):
            _estimate(axes, row, arm.values[metric], metric, COLOURS[row % len(COLOURS)])
        low, high = axes.get_xlim()
        for row, values in enumerate(found.controls.values(), len(found.arms)):
            mean = values[metric].mean
            if mean is not None and not low <= _SCALES[metric] * mean <= high:
                _beyond(axes, row, _SCALES[metric] * mean, high)
            else:
                _estimate(axes, row, values[metric], metric, _GREY)
        axes.set_xlim(low, high)
        axes.set_xlabel(_AXES[metric][0])
    _names(panels, names)
    figure.suptitle("mean over seeds and clips, 95% interval, a dot per seed", fontsize=10)
    return figure


def difference_plot(found: Analysis) -> Figure:
    """Paired differences with their intervals and a dot per seed; the claimed metric in colour, others in grey."""
    shown = [d for d in found.differences if d.values]
    figure, panels = _panels(len(shown), len(METRICS))
    for axes, metric in zip(panels, METRICS, strict=True):
        axes.axvline(0, color="#444444", linewidth=0.9)
        for row, difference in enumerate(shown):
            claimed = metric == difference.metric
            colour = _VERDICTS[difference.verdict.split(":")[0]] if claimed else _GREY
            _estimate(axes, row, difference.values[metric], metric, colour)
        axes.set_xlabel(_AXES[metric][1])
    _names(panels, [f"{d.better}\n- {d.than}" for d in shown])
    title = "paired differences, 95% interval, a dot per seed; green: claim holds, red: failed, blue: open"
    figure.suptitle(title, fontsize=10)
    return figure


def profile_plot(record: Mapping[str, Any], found: Analysis) -> Figure:
    """Share of all (seed, clip) values above each PSNR of the edited region: whole distributions, not only means."""
    from matplotlib.figure import Figure

    tables = {
        arm.name: np.stack([
            clip_values(run, "edited_psnr") for run in record["runs"] if run["arm"] == arm.name and "values" in run
        ])
        for arm in found.arms
    }  # fmt: skip
    every = np.concatenate([table.reshape(-1) for table in tables.values()])
    low, high = (float(x) for x in np.nanquantile(every, (0.005, 0.995)))
    thresholds = np.linspace(low, high, 200)
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, table) in enumerate(tables.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(thresholds, 100 * performance_profile(table, thresholds), label=name, color=colour, linewidth=1.8)
        for row in table:  # each seed, thin
            axes.plot(thresholds, 100 * performance_profile(row, thresholds), color=colour, linewidth=0.5, alpha=0.5)
    axes.axvline(record["thresholds"]["edited_db"], color="#444444", linewidth=0.9, linestyle=":")
    axes.set_xlabel("edited region, dB (dotted: what counts as success)")
    axes.set_ylabel("seeds and clips above it, %")
    axes.set_ylim(0, 102)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _panels(rows: int, columns: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.42 * max(rows, 2)), layout="constrained")
    panels = figure.subplots(1, columns, sharey=True)
    for axes in panels:
        axes.set_ylim(rows - 0.5, -0.5)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure, panels


def _names(panels: Sequence[Axes], names: Sequence[str]) -> None:
    panels[0].set_yticks(range(len(names)), names, fontsize=9)


def _estimate(axes: Axes, row: int, found: Estimate, metric: str, colour: str) -> None:
    """One line: interval, mean, and the seeds' means a little below it."""
    if found.mean is None:
        return
    scale = _SCALES[metric]
    if found.low is not None and found.high is not None:
        axes.plot([scale * found.low, scale * found.high], [row, row], color=colour, linewidth=2.2, alpha=0.75)
    axes.plot([scale * found.mean], [row], "D", color=colour, markersize=5.5)
    seeds = getattr(found, "seed_means", ())
    axes.plot([scale * x for x in seeds], [row + 0.24] * len(seeds), "o", color=colour, markersize=3.5, alpha=0.7)


def _beyond(axes: Axes, row: int, value: float, high: float) -> None:
    """A value outside the axes, in words at the edge that it lies beyond."""
    right = value > high
    axes.text(
        0.99 if right else 0.01, row, f"{value:.1f} \u2192" if right else f"\u2190 {value:.1f}", color="#777777",
        fontsize=8, ha="right" if right else "left", va="center", transform=axes.get_yaxis_transform(),
    )  # fmt: skip
