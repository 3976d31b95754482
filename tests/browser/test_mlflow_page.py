"""MLflow's page as a person sees it: run names, a metric's value, parameters and pictures beside each other."""

import PIL.Image
import pytest
from omegaconf import OmegaConf

from ivedit.config.schema import Config
from ivedit.runfolder import RunFolder
from ivedit.tracking import make_tracker


@pytest.fixture(scope="module")
def runs(tmp_path_factory, store):
    """Two finished runs of one experiment: (experiment id, names on the page)."""
    folder = tmp_path_factory.mktemp("runs")
    names = []
    for name, colour, success in (("imvideoedit", "blue", 0.8125), ("ablation_no_gate", "red", 0.4375)):
        cfg = OmegaConf.structured(Config(name=name, output_dir=str(folder), summary="For the browser."))
        cfg.tracking.uri, cfg.tracking.experiment = store, "runs"
        cfg.editor.gate = "none" if "no_gate" in name else "text"
        run = RunFolder.create(cfg)
        tracker = make_tracker(cfg, run)
        for step in range(0, 100, 10):
            tracker.log_metrics({"train/loss": 1 / (1 + step)}, step)
        tracker.log_metrics({"eval/success": success}, 0)  # as the evaluation does: single values are drawn as bars
        tracker.log_image(PIL.Image.new("RGB", (256, 128), colour), "evaluation/strip-00", 0)
        tracker.finish()
        names.append(f"{name}-{run.name[-4:]}")
    return tracker.experiment_id, names


def test_the_charts_page_shows_both_runs_and_their_success(server, runs, page):
    experiment, names = runs
    page.goto(f"{server}/#/experiments/{experiment}/runs?compareRunsMode=CHART&workflowType=machine_learning")
    page.get_by_text("eval/success").first.wait_for()
    for name in names:
        page.get_by_text(name).first.wait_for()
    for value in ("0.81", "0.44"):  # on the bars of eval/success
        page.get_by_text(value).first.wait_for()


def test_a_run_s_page_says_what_it_is(server, runs, page):
    experiment, names = runs
    page.goto(f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning")
    page.get_by_role("link", name=names[1]).first.click()
    for text in ("For the browser.", "ablation_no_gate", "editor.gate", "predict_update, gate none", "Finished"):
        page.get_by_text(text).first.wait_for()


def test_pictures_of_the_runs_stand_beside_each_other(server, runs, page):
    experiment, names = runs
    page.goto(f"{server}/#/experiments/{experiment}/runs?compareRunsMode=ARTIFACT&workflowType=machine_learning")
    page.get_by_text("evaluation/strip-00").first.wait_for()
    for name in names:
        page.get_by_text(name).first.wait_for()
    pictures = page.locator("img[src*='strip-00'], img[src^='blob:']")
    pictures.nth(1).wait_for()
    assert pictures.count() == 2
