"""Samplers and pruners by name: each runs a study through, draws inside the space, and repeats itself."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.sweeping.claims import Worker
from ivedit.sweeping.proposals import PRUNERS, SAMPLERS, check_options, grid_points, make_sampler
from ivedit.sweeping.spec import Choice, PrunerSpec, Range, SamplerSpec, Stage
from ivedit.sweeping.study import StudyStore
from tests.sweeping.conftest import with_package
from tests.sweeping.stages import SPACE, search, two_objectives

ME = Worker.here("me")
NUMBERS = {"train.lr": Range(1e-4, 1e-2, log=True), "depth": Range(1, 8, whole=True), "drop": Range(0, 0.5, step=0.2)}
FINITE = {"editor.width": Choice((64, 128)), "depth": Range(1, 8, whole=True)}
OPTIONS: dict[str, dict[str, Any]] = {"tpe": {"n_startup_trials": 3}, "gp": {"n_startup_trials": 3}}


def stage_for(name: str, n_trials: int, seed: int = 0) -> Stage:
    space = NUMBERS if name == "cmaes" else FINITE if name == "grid" else SPACE
    make = two_objectives if name == "nsgaii" else search
    return make(n_trials, space=space, sampler=SamplerSpec(name, seed, OPTIONS.get(name, {})))


def drawn(stage: Stage, folder: Path) -> list[dict[str, Any]]:
    """The parameters of every slot, each told a value that follows from them."""
    store = StudyStore(stage, None, folder)
    store.prepare()
    found = []
    while (claim := store.claim(ME)) is not None:
        found.append(dict(claim.params))
        cost = sum(float(value) for value in claim.params.values())
        assert store.finish(claim, "COMPLETE", [cost, -cost][: len(stage.objectives)])
    assert store.done()
    return found


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_a_study_through_silently(name: str, tmp_path: Path):
    number = 4 if name == "gp" else 6  # a Gaussian process takes a second per trial
    stage = stage_for(name, number)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = drawn(stage, tmp_path / "first")
    assert len(first) == number
    assert all(space.contains(params[key]) for params in first for key, space in stage.space.items())
    assert len({str(params) for params in first}) > 2
    assert drawn(stage_for(name, number), tmp_path / "again") == first
    assert drawn(stage_for(name, number, seed=1), tmp_path / "other") != first


def test_neighbouring_seeds_share_no_trial(tmp_path: Path):
    """With base seed + trial number, seed 1's trials would be seed 0's, moved by one."""
    found = [drawn(stage_for("random", 6, seed), tmp_path / str(seed)) for seed in range(3)]
    assert len({params["train.lr"] for trials in found for params in trials}) == 18


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_lets_the_best_trial_through(name: str, tmp_path: Path):
    options = {"percentile": {"percentile": 25.0}, "hyperband": {"max_resource": 9}}.get(name, {})
    stage = search(8, pruner=PrunerSpec(name, "val/loss", "minimize", options))
    store = StudyStore(stage, None, tmp_path)
    store.prepare()
    ended = []
    for rank in range(8):  # each worse than the one before
        claim = store.claim(ME)
        assert claim is not None
        hopeless = next((step for step in (1, 3, 9) if store.report(claim, step, 10.0 * rank + 1 / step)), None)
        ended.append("COMPLETE" if hopeless is None else "PRUNED")
        assert store.finish(claim, ended[-1], [-float(rank)] if hopeless is None else None)
    assert ended[0] == "COMPLETE"
    assert ("PRUNED" in ended) == (name != "none")
    assert [result.state for result in store.results()] == ended


@pytest.mark.parametrize(
    ("kind", "name", "options", "says"),
    [
        ("sampler", "tpee", {}, "did you mean tpe?"),
        ("pruner", "mean", {}, "median"),
        ("sampler", "tpe", {"n_startup_trial": 5}, "n_startup_trials"),
        ("sampler", "tpe", {"gamma": 5}, "no such option"),
        ("sampler", "random", {"n_startup_trials": 5}, "takes no options"),
        ("sampler", "grid", {"n": 5}, "takes no options"),
        ("sampler", "tpe", {"seed": 5}, "no such option"),
        ("sampler", "nsgaii", {"population_size": 1}, "population_size"),
        ("pruner", "percentile", {}, "percentile"),
        ("pruner", "percentile", {"percentile": 120.0}, "100"),
        ("pruner", "median", {"n_warmup_steps": -1}, "negative"),
        ("pruner", "hyperband", {"min_resource": 0}, "min_resource"),
    ],
)
def test_options_that_optuna_would_refuse_are_named(kind: str, name: str, options: dict[str, Any], says: str):
    problems = check_options(kind, name, options)
    assert len(problems) == 1
    assert says in problems[0]
    assert len(problems[0].splitlines()) == 1


@pytest.mark.parametrize(("kind", "names"), [("sampler", SAMPLERS), ("pruner", PRUNERS)])
def test_good_options_are_no_problem(kind: str, names: Any):
    good: dict[str, dict[str, Any]] = {
        "tpe": {"multivariate": True, "n_startup_trials": 4}, "percentile": {"percentile": 25},
        "cmaes": {"sigma0": 0.2}, "hyperband": {"min_resource": 10, "max_resource": 90, "reduction_factor": 3},
    }  # fmt: skip
    assert [check_options(kind, name, good.get(name, {})) for name in names] == [[]] * len(names)


@given(st.integers(0, 3), st.integers(0, 3), st.lists(st.integers(), min_size=1, max_size=3, unique=True))
@settings(max_examples=30, deadline=None)
def test_a_grid_has_every_point_once_and_keeps_its_order(low: int, more: int, choices: list[int]):
    space = {"depth": Range(low, low + more, whole=True), "editor.width": Choice(tuple(choices))}
    points = grid_points(search(1, space=space, sampler=SamplerSpec("grid", 5)))
    assert sorted((p["depth"], p["editor.width"]) for p in points) == sorted(
        (depth, width) for depth in range(low, low + more + 1) for width in choices
    )
    assert grid_points(search(9, space=space, sampler=SamplerSpec("grid", 5))) == points


def test_a_sampler_draws_the_same_for_a_slot_wherever_it_runs():
    """Python's own hash differs from process to process: it must not decide about seeds."""
    script = (
        "from ivedit.sweeping.proposals import make_sampler; from ivedit.sweeping.spec import SamplerSpec\n"
        "print([make_sampler(SamplerSpec('random', 3), slot)._rng.rng.random() for slot in range(3)])"
    )
    here = [make_sampler(SamplerSpec("random", 3), slot)._rng.rng.random() for slot in range(3)]  # type: ignore
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=with_package())
    assert done.stdout.strip() == str(here)
