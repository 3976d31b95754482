"""A sweep's page as a person sees it: arms' names and values, plots with words, the same clips of all arms."""

import pytest

from ivedit.report import main
from ivedit.reporting.ablation import ablation_report
from ivedit.reporting.layout import to_html
from ivedit.reporting.sweep_record import record_of_folder, run_folders
from tests.reporting.simulated import ARMS, sweep_folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """(file, report) of a finished sweep."""
    place = tmp_path_factory.mktemp("page")
    folder = sweep_folder(place, seeds=range(5), strips=2)
    record = record_of_folder(folder, lambda config: {"training_step": 7 * 10**11, "sampling_step": 10**10})
    report = ablation_report(record, run_folders(folder))
    (place / "report.html").write_text(to_html(report))
    return place / "report.html", report


def test_the_page_shows_arms_and_their_values_and_asks_no_network(shown, page):
    file, report = shown
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    for table in report.tables:
        for row in table.rows:
            line = page.locator("tr", has=page.locator("td:first-child", has_text=row[0])).first
            line.wait_for()
            seen = line.inner_text()
            assert all(cell in seen for cell in row if cell != "-"), seen
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_plots_have_words_and_verdicts_have_colours(shown, page):
    page.goto(shown[0].as_uri())
    for arm in ARMS:
        assert page.locator("svg text", has_text=arm).count() >= 2  # at its dots and in the legend of the profiles
    assert page.locator("td.failed").inner_text() == "edited region: FAILED: the interval holds 0"
    assert page.locator("td.holds").evaluate("cell => getComputedStyle(cell).color") == "rgb(32, 115, 74)"


def test_the_same_clips_of_all_arms_stand_below_each_other_and_fit_a_narrow_window(shown, page):
    page.goto(shown[0].as_uri())
    strip = page.locator(".strip").first
    pictures = strip.locator("img")
    assert pictures.count() == len(ARMS) + 2
    boxes = [pictures.nth(i).bounding_box() for i in range(pictures.count())]
    assert len({box["x"] for box in boxes}) == 1 and all(box["height"] == 64 for box in boxes)
    assert pictures.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
    page.set_viewport_size({"width": 700, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # tables scroll by themselves


def test_a_report_made_from_a_remote_server_is_that_page_too(store, server, page, tmp_path, monkeypatch):
    monkeypatch.setattr("ivedit.report.count_arm", lambda config: {"training_step": 10**9, "sampling_step": 10**9})
    folder = sweep_folder(tmp_path, arms=ARMS[:2], claims=[], seeds=(0, 1), strips=1, name="far")
    assert main(["--import", str(folder), "--uri", store]) == 0
    assert main(["--uri", server, "--sweep", "far", "--out", str(tmp_path / "far.html")]) == 0
    page.goto((tmp_path / "far.html").as_uri())
    for arm in ARMS[:2]:
        page.locator("td", has_text=arm).first.wait_for()
    assert page.locator(".strip img").count() == 4
