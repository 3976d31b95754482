"""MLflow's page as a person sees it: run names, a metric's value, parameters and pictures beside each other."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import PIL.Image
import pytest
from omegaconf import OmegaConf

from ivedit.config.schema import Config
from ivedit.runfolder import RunFolder
from ivedit.tracking import make_tracker

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs in one new store: (store address, experiment id, names on the page)."""
    folder = tmp_path_factory.mktemp("runs")
    names = []
    for name, colour, success in (("imvideoedit", "blue", 0.8125), ("ablation_no_gate", "red", 0.4375)):
        cfg = OmegaConf.structured(Config(name=name, output_dir=str(folder), summary="For the browser."))
        cfg.editor.gate = "none" if "no_gate" in name else "text"
        run = RunFolder.create(cfg)
        tracker = make_tracker(cfg, run)
        for step in range(0, 100, 10):
            tracker.log_metrics({"train/loss": 1 / (1 + step)}, step)
        tracker.log_metrics({"eval/success": success}, 0)  # as the evaluation does: single values are drawn as bars
        tracker.log_image(PIL.Image.new("RGB", (256, 128), colour), "evaluation/strip-00", 0)
        tracker.finish()
        names.append(f"{name}-{run.name[-4:]}")
    return tracker.uri, tracker.experiment_id, names


@pytest.fixture(scope="module")
def server(runs):
    """A real `mlflow server` on the store, ended by its own process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "mlflow", "server", "--backend-store-uri", runs[0], "--host", "127.0.0.1", "--port", str(port)]
    child = subprocess.Popen(
        [sys.executable, *command, "--workers", "1"], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(240):
            assert child.poll() is None, "mlflow server ended"
            try:
                local.open(f"{address}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(30)


@pytest.fixture
def page(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path / "profile"), executable_path=CHROMIUM, args=list(FLAGS),
            viewport={"width": 1600, "height": 1200},
        )  # fmt: skip
        context.set_default_timeout(60_000)
        yield context.new_page()
        context.close()


def test_the_charts_page_shows_both_runs_and_their_success(server, runs, page):
    _, experiment, names = runs
    page.goto(f"{server}/#/experiments/{experiment}/runs?compareRunsMode=CHART&workflowType=machine_learning")
    page.get_by_text("eval/success").first.wait_for()
    for name in names:
        page.get_by_text(name).first.wait_for()
    for value in ("0.81", "0.44"):  # on the bars of eval/success
        page.get_by_text(value).first.wait_for()


def test_a_run_s_page_says_what_it_is(server, runs, page):
    _, experiment, names = runs
    page.goto(f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning")
    page.get_by_role("link", name=names[1]).first.click()
    for text in ("For the browser.", "ablation_no_gate", "editor.gate", "predict_update, gate none", "Finished"):
        page.get_by_text(text).first.wait_for()


def test_pictures_of_the_runs_stand_beside_each_other(server, runs, page):
    _, experiment, names = runs
    page.goto(f"{server}/#/experiments/{experiment}/runs?compareRunsMode=ARTIFACT&workflowType=machine_learning")
    page.get_by_text("evaluation/strip-00").first.wait_for()
    for name in names:
        page.get_by_text(name).first.wait_for()
    pictures = page.locator("img[src*='strip-00'], img[src^='blob:']")
    pictures.nth(1).wait_for()
    assert pictures.count() == 2
