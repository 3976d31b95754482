"""A sweep on MLflow's pages as a person sees it: its arms' names and values, compared; everything written over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.sweeping import light
from tests.sweeping.recorded import Played

ARMS = {"imvideoedit": ("0.64", "0.61"), "ablation_no_gate": ("0.44", "0.41"), "ablation_plain": ("0.37", "0.35")}
"""Arms with the success of their two seeds, as a page shows it."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[Played]:
    """A finished grid of three arms and two seeds, recorded on a server."""
    place = tmp_path_factory.mktemp("sweep")
    before = Path.cwd()
    os.chdir(place)
    try:
        arms = [
            {"imvideoedit": ["editor.gate=text"]}, {"ablation_no_gate": ["editor.gate=none"]},
            {"ablation_plain": ["editor.gate=none", "editor.variant=plain"]},
        ]  # fmt: skip
        summary = "Three arms, two seeds."
        arguments = ("tracking.kind=mlflow", f"tracking.uri={server}", "tracking.experiment=sweeps")
        sweep = Played(light.make(place, light.GRID, *arguments, name="ablations", arms=arms, summary=summary))
        for seed in (0, 1):
            for values in ARMS.values():
                sweep.complete(float(values[seed]))
        sweep.refresh()
        sweep.recorder.close("FINISHED")
        yield sweep
    finally:
        os.chdir(before)


def charts(played: Played) -> str:
    """The page that a finished sweep names."""
    return next(word for word in played.recorder.hint().split() if word.startswith("http"))


def test_the_page_that_the_sweep_names_shows_every_arm_and_its_success_the_best_first(played, page):
    page.goto(charts(played))
    page.get_by_text("objective/success").first.wait_for()
    links = page.get_by_role("link", name="-seed")
    links.nth(5).wait_for()
    assert [links.nth(i).inner_text() for i in range(6)] == [
        f"{arm}-seed{seed}" for arm in ARMS for seed in (0, 1)
    ]  # fmt: skip
    for value in (value for values in ARMS.values() for value in values):
        page.get_by_text(value, exact=True).first.wait_for()


def test_mlflow_s_comparison_shows_every_arm_by_name_with_its_settings_and_values(played, page):
    # One seed: the page draws only as many columns as have room.
    runs = {name: run.run_id for name, run in played.children().items() if name.endswith("seed0")}
    address, experiment = played.recorder.parent.uri, played.recorder.parent.experiment_id
    which = f"runs={quote(json.dumps(list(runs.values())))}&experiments={quote(json.dumps([experiment]))}"
    page.goto(f"{address}/#/compare-runs?{which}")
    page.get_by_text("Comparing 3 Runs").first.wait_for()
    for arm, values in ARMS.items():
        page.get_by_text(f"{arm}-seed0").first.wait_for()
        page.get_by_text(arm, exact=True).first.wait_for()  # the row of the parameter `arm`
        page.get_by_text(values[0], exact=True).first.wait_for()
    plot = page.locator(".js-plotly-plot").first
    plot.wait_for()
    said = plot.text_content()
    assert "arm" in said and all(arm[:10] in said for arm in ARMS)  # MLflow cuts the names of this plot's ticks


def test_parallel_coordinates_of_arm_seed_and_success_show_the_arms_names(played, page):
    page.goto(charts(played))
    page.get_by_role("button", name="Add chart").first.click()
    page.get_by_text("Parallel coordinates").first.click()
    dialog = page.get_by_role("dialog")
    choices = dialog.get_by_role("combobox")
    for number, names in ((1, ("arm", "seed")), (2, ("objective/success",))):
        choices.nth(number).click()
        for name in names:
            page.keyboard.type(name)
            page.keyboard.press("Enter")
        dialog.get_by_text("Chart type").click()
    dialog.locator("svg .axis .label, svg .label").first.wait_for()
    said = dialog.text_content()
    assert all(axis in said for axis in ("arm", "seed", "objective/success"))
    assert all(arm in said for arm in ARMS) and "0.60" in said


def test_the_sweep_s_own_page_says_what_it_is_and_leads_to_its_runs_plots_and_table(played, page):
    parent = played.recorder.parent
    own = f"{parent.uri}/#/experiments/{parent.experiment_id}/runs/{parent.run_id}"
    page.goto(own)
    for text in ("Three arms, two seeds.", "ablation_no_gate-seed1", "Finished", "final mean success/imvideoedit"):
        page.get_by_text(text).first.wait_for()
    page.get_by_role("link", name="Its runs beside each other").click()
    page.get_by_role("link", name="imvideoedit-seed0").first.wait_for()
    page.goto(f"{own}/artifacts")
    page.get_by_text("plots").first.click()
    page.get_by_text("final-arms.png").first.click()
    page.locator("img[src*='final-arms'], img[src^='blob:']").first.wait_for()
    page.get_by_text("tables", exact=True).first.click()
    page.get_by_text("slots.json").first.click()
    page.get_by_text("ablation_plain").first.wait_for()
