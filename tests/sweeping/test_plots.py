"""Tables and plots of slots: the right best and front, every kind of setting drawn, nothing drawn of nothing."""

from __future__ import annotations

import csv
import itertools
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivedit.config.schema import Config
from ivedit.runfolder import RunFolder
from ivedit.sweeping.axes import axes_of, factors
from ivedit.sweeping.plots import draw_plots, importances
from ivedit.sweeping.spec import Choice, Objective, PrunerSpec, Range, SlotResult
from ivedit.sweeping.tables import arm_means, best_slots, pareto_front, write_tables
from tests.sweeping import light
from tests.sweeping.stages import grid, search

SPACE = {
    "train.lr": Range(1e-4, 1e-2, log=True),
    "editor.width": Range(64, 512, step=64, whole=True),
    "editor.gate": Choice(("text", "none")),
    "train.max_steps": Choice((None, 100)),
    "evaluation.triage": Choice((True, False)),
}
BOTH = (Objective("success"), Objective("trained_weights", "minimize"))
numbers = st.floats(-1e6, 1e6, allow_nan=False)


def slot(number: int, values: tuple[float, ...] | None, state: str = "COMPLETE", **params: Any) -> SlotResult:
    drawn = {key.replace("__", "."): value for key, value in params.items()}
    state = state if values is None else "COMPLETE"
    return SlotResult("search", number, "trial", state, values, Path("elsewhere"), 1, None, None, drawn, number)


def drawn(number: int) -> dict[str, Any]:
    """Parameters from anywhere in the space, always the same of a slot."""
    luck = random.Random(number)
    return {
        "train__lr": 10 ** luck.uniform(-4, -2), "editor__width": luck.randrange(64, 513, 64),
        "editor__gate": luck.choice(("text", "none")), "train__max_steps": luck.choice((None, 100)),
        "evaluation__triage": luck.random() < 0.5,
    }  # fmt: skip


def playing(count: int, objectives: tuple[Objective, ...] = BOTH[:1]) -> list[SlotResult]:
    """Slots whose value depends on the learning rate; every fourth was pruned, one failed."""
    found = []
    for number in range(count):
        params = drawn(number)
        value = -abs(math.log10(params["train__lr"]) + 2.7)
        values = (value, float(params["editor__width"]))[: len(objectives)]
        state = {3: "PRUNED", 2: "FAIL"}.get(number % 4 if number > 2 else number, "COMPLETE")
        found.append(slot(number, values if state == "COMPLETE" else None, state, **params))
    return found


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30), st.booleans(), st.booleans())
def test_the_front_is_what_no_slot_beats(points: list[tuple[float, float]], more: bool, also_more: bool):
    objectives = tuple(Objective(n, "maximize" if m else "minimize") for n, m in (("a", more), ("b", also_more)))
    stage = search(len(points), space=SPACE, objectives=objectives)
    results = [slot(i, values) for i, values in enumerate(points)]
    signs = tuple(1 if o.direction == "maximize" else -1 for o in objectives)

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        mine, theirs = ([s * v for s, v in zip(signs, values, strict=True)] for values in (one, other))
        return all(a >= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs

    front = pareto_front(stage, results)
    assert {r.slot for r in front} == {
        i for i, mine in enumerate(points) if not any(beats(other, mine) for other in points)
    }
    best = dict(best_slots(stage, results))
    for index, objective in enumerate(objectives):
        values = [point[index] for point in points]
        assert best[objective].values[index] == (max(values) if objective.direction == "maximize" else min(values))


@given(st.lists(st.floats(1e-4, 1e-2), min_size=2, max_size=20))
def test_places_on_an_axis_follow_the_values_and_stay_on_it(rates: list[float]):
    stage = search(len(rates), space={"train.lr": SPACE["train.lr"]})
    results = [slot(i, (rate,), train__lr=rate) for i, rate in enumerate(rates)]
    for axis in axes_of(stage, results):
        heights = [axis.height(i) for i in range(len(rates))]
        assert all(-1e-9 <= height <= 1 + 1e-9 for height in heights)
        order = sorted(range(len(rates)), key=lambda i: rates[i])
        assert all(heights[a] <= heights[b] + 1e-9 for a, b in itertools.pairwise(order))
        assert all(0 <= height <= 1 for height, _ in axis.ticks())


def test_names_on_an_axis_are_apart_whatever_their_number_and_kind():
    results = playing(12)
    done = [r for r in results if r.values]
    by_label = {axis.label: axis for axis in factors(search(12, space=SPACE), done)}
    assert by_label["train.max_steps"].names == ("null", "100")
    assert by_label["evaluation.triage"].names == ("true", "false")
    for label in ("editor.gate", "train.max_steps", "evaluation.triage"):
        axis = by_label[label]
        spans = [[axis.height(i) for i, v in enumerate(axis.values) if v == value] for value in set(axis.values)]
        low, high = sorted(spans, key=min)
        assert max(low) < min(high)


@pytest.mark.parametrize(
    ("objectives", "count", "expected"),
    [
        (BOTH[:1], 12, {"history", "parameters", "importances", "parallel-coordinates"}),
        (BOTH, 12, {"history", "parameters", "importances", "parallel-coordinates", "pareto-front"}),
        (BOTH[:1], 1, {"history", "parameters", "parallel-coordinates"}),
        (BOTH[:1], 0, set()),
    ],
)
def test_a_search_is_drawn_as_far_as_it_goes(tmp_path: Path, objectives, count: int, expected: set[str]):
    stage = search(count, space=SPACE, objectives=objectives)
    files = draw_plots(stage, playing(count, objectives), tmp_path / "plots")
    assert {path.stem.removeprefix("search-") for path in files} == expected
    for path in files:
        with PIL.Image.open(path) as image:
            assert image.width > 300 and len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_equal_values_and_equal_settings_are_drawn_too(tmp_path: Path):
    results = [slot(i, (0.5,), **drawn(0)) for i in range(6)]
    first = draw_plots(search(6, space=SPACE), results, tmp_path)
    assert draw_plots(search(6, space=SPACE), results, tmp_path) == first  # drawn over, nothing left beside
    assert sorted(tmp_path.iterdir()) == sorted(first)
    assert importances(search(6, space=SPACE), results) == {}


def test_the_setting_that_decides_is_the_most_important_one():
    found = importances(search(40, space=SPACE), playing(40))
    assert next(iter(found)) == "train.lr" and math.isclose(sum(found.values()), 1)


def test_curves_are_read_from_the_run_folders_and_end_where_a_run_was_pruned(tmp_path: Path):
    pruner = PrunerSpec("median", metric="val/loss")
    stage = search(2, space=SPACE, pruner=pruner)
    results = []
    for number, state in enumerate(("COMPLETE", "PRUNED")):
        run = RunFolder.create(Config(name="trial", output_dir=str(tmp_path)))
        for step in range(1, 6 - number * 3):
            run.append_metrics({"val/loss": 1 / step}, step)
        made = slot(number, (0.5,) if state == "COMPLETE" else None, state, **drawn(number))
        results.append(replace(made, run_folder=run.path))
    files = draw_plots(stage, results, tmp_path / "plots")
    assert "search-curves.png" in [path.name for path in files]
    elsewhere = [replace(result, run_folder=tmp_path / "no") for result in results]
    assert "search-curves.png" not in [path.name for path in draw_plots(stage, elsewhere, tmp_path / "other")]


def test_a_grid_shows_its_arms_and_their_means(tmp_path: Path):
    stage = grid(6)
    cells = stage.cells
    results = [
        SlotResult(stage.name, i, cell.label, "COMPLETE", (float(i),), tmp_path, 1, None, cell, {}, i)
        for i, cell in enumerate(cells)
    ]
    files = draw_plots(stage, results, tmp_path)
    assert f"{stage.name}-arms.png" in [path.name for path in files]
    means = arm_means(stage, results)
    for arm in {cell.arm for cell in cells}:
        values = [float(i) for i, cell in enumerate(cells) if cell.arm == arm]
        assert means[f"{stage.name} mean success/{arm}"] == sum(values) / len(values)


def test_a_table_keeps_every_cell_whole_in_csv_and_on_one_line_in_markdown(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = light.make(tmp_path, light.SEARCH)
    stage = search(2, space=SPACE)
    reason = 'a | b\nand "c", d'
    results = [slot(0, (0.1 + 0.2,), **drawn(0)), slot(1, None, "FAIL", **drawn(1))]
    results[1] = replace(results[1], reason=reason)
    write_tables(sweep, [(stage, results)])
    with open(tmp_path / "runs/trial/tables/slots.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["success"]) == 0.1 + 0.2 and rows[1]["reason"] == reason and rows[1]["success"] == ""
    lines = [line for line in (tmp_path / "runs/trial/tables/slots.md").read_text().splitlines() if line[:1] == "|"]
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
