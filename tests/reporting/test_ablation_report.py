"""The report of an ablation sweep: its numbers are those of the truth it was made with, whatever it is made from."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ivedit.errors import IveditError
from ivedit.evaluation.hierarchical import holm, paired_seeds, seeds_interval
from ivedit.report import main
from ivedit.reporting.ablation import ablation_report
from ivedit.reporting.analysis import analyse
from ivedit.reporting.layout import to_html, to_latex, to_markdown
from ivedit.reporting.records import load_records, record_of
from ivedit.reporting.sweep_record import METRICS, clip_values, record_of_folder, record_of_runs, run_folders
from ivedit.runfolder import RunFolder
from ivedit.tracking import fetch_sweep
from tests.reporting.simulated import ARMS, TRUTH, sweep_folder

SEEDS = (0, 1, 2, 3, 4)
PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "results"


def counted(config):
    """FLOPs as numbers of the configuration, so that each arm's own is asked for."""
    return {"training_step": 7 * 10**11 + len(config["editor"]["gate"]), "sampling_step": 10**10, "sampling_source": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sweep_folder(tmp_path_factory.mktemp("sweeps"), seeds=SEEDS, strips=2)


@pytest.fixture(scope="module")
def record(folder):
    return record_of_folder(folder, counted)


@pytest.fixture(scope="module")
def found(record):
    return analyse(record)


def cells_of(text, first):
    """Cells of the one Markdown line whose first cell is ``first``."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    (found,) = [row for row in rows if row[0] == first]
    return found


def test_a_true_difference_is_found_and_one_too_small_is_printed_as_failed(found):
    gate, plain = found.differences
    difference = TRUTH["imvideoedit"] - TRUTH["ablation_no_gate"]
    assert gate.values["edited_psnr"].low <= difference <= gate.values["edited_psnr"].high
    assert gate.holds and gate.adjusted < 0.05 and gate.improvement.mean > 0.6
    assert plain.verdict == "FAILED: the interval holds 0" and not plain.holds
    assert plain.values["edited_psnr"].detectable > TRUTH["imvideoedit"] - TRUTH["ablation_plain"]


def test_the_numbers_are_those_of_the_statistics_over_the_results_files(folder, found):
    places = run_folders(folder)
    values = {
        arm: np.array([
            RunFolder(places[arm][seed]).results()["rows"][arm]["per_clip"]["edited_psnr"] for seed in SEEDS
        ], float)
        for arm in ARMS
    }  # fmt: skip
    for arm in found.arms:
        wanted = seeds_interval(values[arm.name])
        shown = arm.values["edited_psnr"]
        assert (shown.mean, shown.low, shown.high) == pytest.approx((wanted.mean, wanted.low, wanted.high), abs=0.005)
        assert arm.seeds == SEEDS and (arm.steps, arm.seconds, arm.trained_weights) == (400, 100, 10_500_000)
    wanted = [paired_seeds(values["imvideoedit"], values[than]) for than in ARMS[1:]]
    assert [d.values["edited_psnr"].mean for d in found.differences] == pytest.approx(
        [w.mean for w in wanted], abs=0.005
    )
    assert [d.adjusted for d in found.differences] == pytest.approx(holm([w.p for w in wanted]), rel=0.1)


def test_the_table_has_everything_that_the_design_asks_for(record, found):
    text = to_markdown(ablation_report(record))
    arm = cells_of(text, "imvideoedit")
    assert "%" in arm[1] and "[" in arm[2] and "(54/60)" in arm[3]
    assert arm[5:] == ["5", "60/60", "10.50M", "700.0G", "10.0G", "400", "100 s"]
    assert cells_of(text, "source_copy")[1].startswith("0.0%") and cells_of(text, "frozen")[2] == "9.0 [9.0, 9.0]"
    gate = cells_of(text, "imvideoedit - ablation_no_gate")
    assert gate[5] == f"{found.differences[0].adjusted:.3f}" and gate[6].endswith(" dB") and gate[7] == "5"
    assert gate[8] == "edited region: holds"
    assert cells_of(text, "imvideoedit - ablation_plain")[8] == "edited region: FAILED: the interval holds 0"
    for words in (
        "60 held-out videos", "training seeds 0, 1, 2, 3, 4", "p (Holm, 2)", "1 hold, 1 failed", "Detectable:",
        "94.2 to 96.4%", "counted by PyTorch", "backbone wan-sprites (abababababab)", "git cccccccccc", "2026-11-22",
    ):  # fmt: skip
        assert words in text, words
    assert "Still running" not in text


def test_markdown_csv_latex_and_page_say_the_same(record, found):
    report = ablation_report(record)
    rows = list(csv.DictReader(io.StringIO(report.csv)))
    assert {row["kind"] for row in rows} == {"arm", "control", "difference"}
    (row,) = [r for r in rows if (r["kind"], r["name"], r["metric"]) == ("arm", "ablation_plain", "success")]
    assert float(row["mean"]) == found.arms[2].values["success"].mean and row["seeds"] == "0;1;2;3;4"
    assert len(row["seed_means"].split(";")) == 5 and row["p"] == "" and float(row["flops_training_step"]) > 7e11
    (row,) = [r for r in rows if r["than"] == "ablation_no_gate" and r["metric"] == "edited_psnr"]
    assert float(row["p_holm"]) == found.differences[0].adjusted and row["claim"] == "holds"
    latex, page = to_latex(report), to_html(report)
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 2 and r"ablation\_no\_gate" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {11, 8}  # every row has all its columns
    for table in report.tables:
        for line in table.rows:
            assert f"<td>{line[0]}</td>" in page
            assert all(cell in page for cell in line[1:4])
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)  # nothing is fetched
    assert page.count("<svg") == 3 and "not at hand" in page


def test_the_page_shows_the_same_clips_of_all_arms_under_one_source(folder, record):
    page = to_html(ablation_report(record, run_folders(folder)))
    assert page.count("<div class=strip>") == 2 and page.count('alt="source"') == 2
    for arm in ARMS:
        assert page.count(f'<img alt="{arm} ') == 2
    assert "recolour: “edit 0”" in page and "seed 0" in page


def test_a_record_is_small_and_gives_the_same_report_as_the_folder(folder, record, tmp_path, capsys):
    again = json.loads(json.dumps(record))
    assert ablation_report(again).csv == ablation_report(record).csv
    assert to_markdown(ablation_report(again)) == to_markdown(ablation_report(record))
    per_clip = sum(len(text) for run in record["runs"] for text in run["values"].values())
    assert per_clip < 15 * 60 * 14  # 15 runs of 60 clips: under 14 bytes for three metrics
    for run in record["runs"]:
        assert all(len(clip_values(run, metric)) == 60 for metric in METRICS)


def test_a_sweep_that_is_still_running_says_so_and_leaves_its_claims_open(tmp_path):
    running = sweep_folder(tmp_path, ended=5)
    record = record_of_folder(running, counted)
    found = analyse(record)
    assert found.running and [len(arm.seeds) for arm in found.arms] == [2, 2, 1]
    text = to_markdown(ablation_report(record))
    assert "**Still running: 5 of 9 runs have ended.**" in text
    assert "open: 2 common seeds so far" in text and "open: 1 common seed so far" in text
    assert ": FAILED" not in text and ": holds" not in text and "waiting" not in text
    assert cells_of(text, "imvideoedit")[5] == "2 of 3" and "0 hold, 0 failed" in text


def test_a_slot_that_failed_for_good_is_named_and_its_seed_left_out_of_pairs(tmp_path):
    record = record_of_folder(sweep_folder(tmp_path, failed=[1]), counted)  # ablation_no_gate, seed 0
    found = analyse(record)
    assert not found.running and found.differences[0].seeds == (1, 2) and found.differences[1].seeds == (0, 1, 2)
    text = to_markdown(ablation_report(record))
    assert "ablation_no_gate, seed 0: fail: the loss was not finite." in text
    assert cells_of(text, "ablation_no_gate")[5] == "2 of 3"


def test_one_seed_carries_no_claim(tmp_path):
    record = record_of_folder(sweep_folder(tmp_path, seeds=[0]), counted)
    assert [d.verdict for d in analyse(record).differences] == ["FAILED: one seed says nothing about other seeds"] * 2


def test_a_claim_the_wrong_way_round_is_told_so_and_an_arm_without_results_keeps_the_family(tmp_path):
    claims = [
        {"better": "ablation_no_gate", "than": "imvideoedit", "metric": "edited_psnr"},
        {"better": "imvideoedit", "than": "ablation_plain", "metric": "success"},
    ]
    record = record_of_folder(sweep_folder(tmp_path, seeds=SEEDS, claims=claims, failed=range(2, 15, 3)), counted)
    backwards, missing = analyse(record).differences
    assert backwards.verdict == "FAILED: the difference is the other way round"
    assert missing.verdict == "FAILED: no common seed with results" and missing.adjusted is None
    assert backwards.adjusted == pytest.approx(2 * backwards.values["edited_psnr"].p)
    assert "No result yet: ablation_plain." in to_markdown(ablation_report(record))


def test_runs_that_were_measured_differently_are_refused_by_name(tmp_path):
    folder = sweep_folder(tmp_path, seeds=[0])
    runs = [RunFolder(path) for path in sorted((folder / "runs").iterdir())]
    results = runs[1].results()
    results["thresholds"]["edited_db"] = 12.0
    runs[1].write_results(results)
    with pytest.raises(IveditError, match=r"final-0000.* and final-0001.* cannot stand in one table.*thresholds"):
        record_of_folder(folder, counted)
    with pytest.raises(IveditError, match="both imvideoedit with seed 0"):
        record_of_runs([record_of(runs[0]), record_of(runs[0])], {}, counted)
    with pytest.raises(IveditError, match="no run of trio has been evaluated yet"):
        shutil.rmtree(folder / "runs")
        record_of_folder(folder, counted)


def test_the_published_records_of_one_seed_stand_in_one_table_and_carry_no_claim():
    record = record_of_runs([r for r in load_records(PUBLISHED) if r["clips"] == 243], {}, counted)
    found = analyse(record)
    assert found.arms[0].name == "imvideoedit" and len(found.arms) > 5
    for arm in found.arms:
        (own,) = [r for r in load_records(PUBLISHED) if r["experiment"] == arm.name]
        for metric in METRICS:
            stored = own["rows"][arm.name]["metrics"][metric]
            shown = arm.values[metric]
            assert (shown.mean, shown.n, shown.total) == (
                pytest.approx(stored["mean"], abs=0.005), stored["n"], stored["total"]
            )  # fmt: skip
            assert (shown.low, shown.high) == pytest.approx((stored["low"], stored["high"]), abs=0.01)
    assert {d.verdict for d in found.differences} == {"FAILED: one seed says nothing about other seeds"}
    assert "other clips only, as there is one training seed, 0" in to_markdown(ablation_report(record))


def test_runs_of_any_origin_are_arms_in_the_order_of_experiments(folder, found):
    runs = [RunFolder(path) for path in sorted((folder / "runs").iterdir(), reverse=True)]
    configs = {"imvideoedit": runs[-1].config()}
    record = record_of_runs([record_of(run) for run in runs], configs, counted, pending=1)
    other = analyse(record)
    assert not other.declared and {d.better for d in other.differences} == {"imvideoedit"}
    assert {arm.name: arm.values for arm in other.arms} == {arm.name: arm.values for arm in found.arms}
    assert other.running and all(d.verdict == "open: 5 common seeds so far" for d in other.differences)
    text = to_markdown(ablation_report(record))
    assert "FLOPs not counted (a record holds no configuration): ablation_no_gate, ablation_plain." in text
    assert cells_of(text, "imvideoedit")[8] == "700.0G"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Small enough to be imported within seconds."""
    return sweep_folder(tmp_path_factory.mktemp("small"), arms=ARMS[:2], claims=[], seeds=(0, 1), strips=1)


@pytest.fixture(scope="module")
def store(small, tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    assert main(["--import", str(small), "--uri", uri]) == 0
    return uri


@pytest.mark.slow
def test_mlflow_gives_the_same_report_as_the_folder_frames_included(small, store, tmp_path):
    fetched, record = fetch_sweep(store, "trio", tmp_path), record_of_folder(small, counted)
    again = record_of_folder(fetched, counted)
    assert again == record
    page = to_html(ablation_report(again, run_folders(fetched)))
    assert page == to_html(ablation_report(record, run_folders(small))) and page.count("<div class=strip>") == 1


@pytest.mark.slow
def test_a_sweep_or_store_that_is_not_there_is_one_plain_error(store, tmp_path, capsys):
    for arguments, message in [
        (["--uri", store, "--sweep", "trioo"], "no sweep called trioo: did you mean trio?"),
        (["--uri", f"sqlite:///{tmp_path / 'none.db'}", "--sweep", "trio"], "there is no MLflow store"),
        (["--uri", "http://127.0.0.1:9", "--sweep", "trio"], "127.0.0.1:9 cannot be used"),
    ]:
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "none.db").exists()
