"""Pictures of a study: how the search went, which settings mattered, which values went with which results.

Drawn from the slots' results alone, so that a grid has them too and nothing but the sweep's folder and study is needed.
Importances are PED-ANOVA's (Watanabe, Bansal and Hutter, IJCAI 2023) as Optuna computes them.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ivedit.errors import IveditError
from ivedit.runfolder import RunFolder
from ivedit.sweeping.axes import axes_of, factors
from ivedit.sweeping.spec import Choice, Range, SlotResult, Stage
from ivedit.sweeping.tables import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_plots", "importances"]

FEWEST_FOR_IMPORTANCES = 5
_BLUE, _ORANGE, _GREY = "#2166ac", "#d6604d", "#9a9a9a"


def draw_plots(stage: Stage, results: Sequence[SlotResult], folder: Path) -> list[Path]:
    """Draw what can be drawn of a stage so far into ``folder`` as ``<stage>-<plot>.png``; returns the files.

    history (a search) or arms (a grid); parameters, importances and parallel coordinates; the Pareto front of several
    objectives; the pruner's metric by step. A plot without anything to show is not drawn.
    """
    done = sorted((result for result in results if result.values is not None), key=lambda result: result.slot)
    if not done:
        return []
    plots: dict[str, Callable[[], Figure | None]] = {
        "history" if stage.cells is None else "arms":
            lambda: _history(stage, results, done) if stage.cells is None else _arms(stage, done),
        "parameters": lambda: _parameters(stage, done) if stage.cells is None else None,
        "importances": lambda: _importances(stage, results) if stage.cells is None else None,
        "parallel-coordinates": lambda: _parallel(stage, done),
        "pareto-front": lambda: _pareto(stage, done) if len(stage.objectives) > 1 else None,
        "curves": lambda: _curves(stage, results) if stage.pruner is not None else None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in plots.items():
        figure = draw()
        if figure is None:
            continue
        path = folder / f"{stage.name}-{name}.png"
        hidden = folder / f".{path.name}"
        figure.savefig(hidden, format="png", dpi=110)
        os.replace(hidden, path)
        written.append(path)
    return written


def importances(stage: Stage, results: Sequence[SlotResult], objective: int = 0) -> dict[str, float]:
    """The share of an objective's variation that goes with each drawn setting, largest first; they sum to 1.

    Empty under `FEWEST_FOR_IMPORTANCES` finished slots, without two varied settings, or where all values are equal.
    """
    done = [result for result in results if result.values is not None]
    values = {(result.values or ())[objective] for result in done}
    varied = [key for key in stage.space if len({repr(result.params.get(key)) for result in done}) > 1]
    if len(done) < FEWEST_FOR_IMPORTANCES or len(varied) < 2 or len(values) < 2:
        return {}
    import optuna

    distributions = {key: _distribution(space) for key, space in stage.space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # as everywhere in a sweep
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction=stage.objectives[objective].direction)
        study.add_trials([
            optuna.trial.create_trial(
                params=dict(result.params), distributions=distributions, value=(result.values or ())[objective]
            )
            for result in done
        ])  # fmt: skip
        found = optuna.importance.get_param_importances(study, params=varied)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _distribution(space: Range | Choice) -> Any:
    """As Optuna calls it; steps do not matter to importances."""
    import optuna.distributions as kinds

    if isinstance(space, Choice):
        return kinds.CategoricalDistribution(space.choices)
    if space.whole:
        return kinds.IntDistribution(int(space.low), int(space.high), log=space.log)
    return kinds.FloatDistribution(space.low, space.high, log=space.log)


# -- the plots -----------------------------------------------------------------------------------------------------


def _history(stage: Stage, results: Sequence[SlotResult], done: Sequence[SlotResult]) -> Figure:
    """Values by slot, the best so far as a line; slots without a value as marks at the foot."""
    count = len(stage.objectives)
    figure = _figure(7.5, 3.4 * count)
    for index, objective in enumerate(stage.objectives):
        ax = figure.add_subplot(count, 1, index + 1)
        slots = [result.slot for result in done]
        values = [(result.values or ())[index] for result in done]
        better = max if objective.direction == "maximize" else min
        best = [better(values[: i + 1]) for i in range(len(values))]
        ax.plot(slots, values, "o", color=_BLUE, alpha=0.75, markersize=5, label="finished")
        if count == 1:
            ax.step(slots, best, where="post", color=_ORANGE, linewidth=1.6, label="best so far")
        for state, marker, word in (("PRUNED", "x", "pruned"), ("FAIL", "v", "failed")):
            where = [result.slot for result in results if result.state == state]
            if where:
                foot = ax.get_xaxis_transform()
                ax.plot(where, [0.03] * len(where), marker, transform=foot, color=_GREY, markersize=5, label=word)
        ax.set_xlabel("slot")
        ax.set_ylabel(_worded(objective.metric, objective.direction))
        ax.locator_params(axis="x", integer=True)
        ax.margins(y=0.12)
        _plain(ax)
        if index == 0:
            ax.set_title(_title(stage, results), loc="left", fontsize=11)
            ax.legend(frameon=False, fontsize=9, loc="best")
    return figure


def _arms(stage: Stage, done: Sequence[SlotResult]) -> Figure:
    """A grid: one dot per slot, one line per arm, their mean as a bar."""
    arms = list(dict.fromkeys(cell.arm or cell.label for cell in stage.cells or ()))
    count = len(stage.objectives)
    figure = _figure(7.5 if count == 1 else 4.2 + 3.6 * count, 1.4 + 0.42 * len(arms))
    first: Axes | None = None
    for index, objective in enumerate(stage.objectives):
        ax = figure.add_subplot(1, count, index + 1, sharey=first)
        for row, arm in enumerate(arms):
            mine = [result for result in done if result.cell is not None and (result.cell.arm or result.label) == arm]
            values = [(result.values or ())[index] for result in mine]
            if values:
                ax.plot(values, [row] * len(values), "o", color=_BLUE, alpha=0.7, markersize=6)
                ax.plot([sum(values) / len(values)] * 2, [row - 0.28, row + 0.28], color=_ORANGE, linewidth=2)
        ax.set_yticks(range(len(arms)), arms)
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.set_xlabel(_worded(objective.metric, objective.direction))
        _plain(ax)
        if first is None:
            first = ax
            ax.set_title(f"{_title(stage, done)}; dot: a run, bar: mean", loc="left", fontsize=11)
        else:
            ax.tick_params(labelleft=False)
    return figure


def _parameters(stage: Stage, done: Sequence[SlotResult]) -> Figure:
    """The first objective over each varied setting; later slots are darker."""
    axes = factors(stage, done)
    columns = min(len(axes), 3)
    rows = math.ceil(len(axes) / columns)
    figure = _figure(1.2 + 3.4 * columns, 0.6 + 3.0 * rows)
    for index, axis in enumerate(axes):
        ax = figure.add_subplot(rows, columns, index + 1)
        places = [axis.plain(value) for value in axis.values]
        values = [(result.values or ())[0] for result in done]
        ax.scatter(places, values, c=range(len(done)), cmap="Blues", vmin=-len(done) / 2, edgecolors=_BLUE, s=28)
        if axis.names is not None:
            ax.set_xticks(range(len(axis.names)), axis.names)
            ax.set_xlim(-0.5, len(axis.names) - 0.5)
        elif axis.log:
            ax.set_xscale("log")
        ax.set_xlabel(axis.label)
        if index % columns == 0:
            ax.set_ylabel(_worded(stage.objectives[0].metric, stage.objectives[0].direction))
        else:
            ax.tick_params(labelleft=False)
        _plain(ax)
    figure.suptitle(f"{_title(stage, done)}; later slots darker", x=0.01, ha="left", fontsize=11)
    return figure


def _importances(stage: Stage, results: Sequence[SlotResult]) -> Figure | None:
    found = {objective.metric: importances(stage, results, i) for i, objective in enumerate(stage.objectives)}
    found = {metric: shares for metric, shares in found.items() if shares}
    if not found:
        return None
    names = list(next(iter(found.values())))
    figure = _figure(7.5, 1.5 + 0.36 * len(names) * len(found))
    ax = figure.add_subplot()
    height = 0.8 / len(found)
    for index, (metric, shares) in enumerate(found.items()):
        places = [row + (index - (len(found) - 1) / 2) * height for row in range(len(names))]
        lengths, colour = [shares.get(name, 0.0) for name in names], (_BLUE, _ORANGE, _GREY)[index % 3]
        bars = ax.barh(places, lengths, height * 0.92, color=colour)
        ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        bars.set_label(metric)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.08)
    ax.set_xlabel("share of the variation (PED-ANOVA)")
    ax.set_title(_title(stage, results), loc="left", fontsize=11)
    if len(found) > 1:
        figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=len(found))
    _plain(ax)
    return figure


def _parallel(stage: Stage, done: Sequence[SlotResult]) -> Figure | None:
    """One vertical axis per setting and objective, one line per slot, coloured by the first objective."""
    axes = axes_of(stage, done)
    if len(axes) < 2:
        return None
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    objective = stage.objectives[0]
    values = [(result.values or ())[0] for result in done]
    scale = Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1)
    colours = colormaps["viridis" if objective.direction == "maximize" else "viridis_r"]
    figure = _figure(2.2 + 1.75 * len(axes), 4.2)
    ax = figure.add_subplot()
    order = sorted(range(len(done)), key=lambda i: values[i], reverse=objective.direction == "minimize")
    for number in order:  # the best on top
        heights = [axis.height(number) for axis in axes]
        ax.plot(range(len(axes)), heights, color=colours(scale(values[number])), alpha=0.8, linewidth=1.3)
    for place, axis in enumerate(axes):
        ax.axvline(place, color="#444444", linewidth=0.8, zorder=3)
        for height, text in axis.ticks():
            ax.text(place + 0.04, height, text, fontsize=8, va="center", zorder=4, bbox={
                "boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0,
            })  # fmt: skip
    ax.set_xticks(range(len(axes)), [axis.label for axis in axes])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_yticks([])
    ax.set_ylim(-0.06, 1.06)
    ax.set_xlim(-0.3, len(axes) - 0.55)
    for side in ax.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=ax, pad=0.02, shrink=0.9)
    bar.set_label(_worded(objective.metric, objective.direction))
    ax.set_title(_title(stage, done), loc="left", fontsize=11)
    return figure


def _pareto(stage: Stage, done: Sequence[SlotResult]) -> Figure:
    """The first two objectives against each other, with the line that no slot beats in both."""
    front = pareto_front(stage, done)
    figure = _figure(6.5, 4.6)
    ax = figure.add_subplot()
    x, y = stage.objectives[:2]
    pairs = [(result.values or ())[:2] for result in done]
    ax.plot(*zip(*pairs, strict=True), "o", color=_GREY, alpha=0.7, markersize=5, label="finished")
    best = sorted((result.values or ())[:2] for result in front)
    # Between two points of the front only the one that is at least as good in x is to be had.
    where: Literal["pre", "post"] = "pre" if x.direction == "maximize" else "post"
    ax.step(*zip(*best, strict=True), where=where, color=_ORANGE, linewidth=1.4)
    ax.plot(*zip(*best, strict=True), "o", color=_ORANGE, markersize=7, label="Pareto front")
    for result in front:
        place = (result.values or ())[0], (result.values or ())[1]
        ax.annotate(str(result.slot), place, textcoords="offset points", xytext=(5, 5), fontsize=8)
    ax.set_xlabel(_worded(x.metric, x.direction))
    ax.set_ylabel(_worded(y.metric, y.direction))
    ax.set_title(f"{_title(stage, done)}; numbers: slots", loc="left", fontsize=11)
    ax.legend(frameon=False, fontsize=9)
    ax.margins(0.08)
    _plain(ax)
    return figure


def _curves(stage: Stage, results: Sequence[SlotResult]) -> Figure | None:
    """The pruner's metric by optimiser step, read from the run folders that are on this machine."""
    assert stage.pruner is not None
    figure = _figure(7.5, 4.0)
    ax = figure.add_subplot()
    looks: Mapping[str, dict[str, Any]] = {
        "PRUNED": {"color": _GREY, "label": "pruned"},
        "COMPLETE": {"color": _BLUE, "label": "finished"},
        "FAIL": {"color": _ORANGE, "label": "failed"},
    }
    drawn: set[str] = set()
    for state, look in looks.items():  # the finished ones over the pruned ones
        for result in results:
            points = _reported(result, stage.pruner.metric) if result.state == state else {}
            if points:
                label = look["label"] if state not in drawn else None
                shown = {**look, "label": label}
                end = "x" if state == "PRUNED" else ""
                ax.plot(list(points), list(points.values()), linewidth=1.2, alpha=0.75, **shown)
                ax.plot(list(points)[-1:], list(points.values())[-1:], end, color=look["color"], markersize=6)
                drawn.add(state)
    if not drawn:
        return None
    ax.set_xlabel("optimiser step")
    ax.set_ylabel(_worded(stage.pruner.metric, stage.pruner.direction))
    ax.set_title(_title(stage, results), loc="left", fontsize=11)
    ax.legend(frameon=False, fontsize=9)
    _plain(ax)
    return figure


def _reported(result: SlotResult, metric: str) -> dict[int, float]:
    try:
        history = RunFolder.open(result.run_folder).history().get(metric, {})
    except IveditError:  # another machine's folder
        return {}
    return {step: value for step, (_, value) in history.items() if math.isfinite(value)}


def _figure(width: float, height: float) -> Figure:
    """Without pyplot, whose state is shared by all threads."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)
    for axis in (ax.xaxis, ax.yaxis):
        _count_large(axis)


def _count_large(axis: Any) -> None:
    """Large numbers on an axis as 2.5M, not as 2.5 under a distant 1e6."""
    from matplotlib.ticker import EngFormatter

    low, high = axis.get_view_interval()
    if max(abs(low), abs(high)) >= 1e5:
        axis.set_major_formatter(EngFormatter(sep=""))


def _title(stage: Stage, results: Sequence[SlotResult]) -> str:
    done = sum(result.values is not None for result in results)
    return f"{stage.sweep}, {stage.name}: {done} of {stage.n_trials} finished"


def _worded(metric: str, direction: str) -> str:
    return f"{metric} ({'more' if direction == 'maximize' else 'less'} is better)"
