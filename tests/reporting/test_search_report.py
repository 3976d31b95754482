"""The report of a search: trials, the best, the front of two objectives, a warning about luck."""

import csv

import numpy as np
import PIL.Image
import pytest
import yaml
from omegaconf import OmegaConf

from ivedit.errors import IveditError
from ivedit.report import main
from ivedit.reporting.search import search_report
from ivedit.sweeping.plan import build_stage, keep_definition
from ivedit.sweeping.resolve import resolve
from tests.reporting.simulated import make_run, write_results


def search_folder(place, quality, *, n_trials=4, **content):
    """A search whose trial i drew train.lr = (i + 1) / 1000 and edits with ``quality[i]`` dB; None: it was pruned."""
    content = {"kind": "search", "experiment": "imvideoedit", "n_trials": n_trials,
               "space": {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}},
               "settings": {"evaluation.split": "val"}, **content}  # fmt: skip
    (place / "find.yaml").write_text(yaml.safe_dump(content))
    sweep = resolve([f"sweep={place / 'find.yaml'}", f"output_dir={place}", "tracking.kind=none"])
    keep_definition(sweep)
    stage = build_stage(sweep, "search", lambda _: ())
    for slot, edited in enumerate(quality):
        run = make_run(sweep.runs / stage.folder_name(slot), "imvideoedit", 0)
        config = run.config()
        config["train"]["lr"] = (slot + 1) / 1000
        run.write_config(OmegaConf.create(config))
        if edited is None:
            run.update_status(state="PRUNED", reason="pruned at step 40: worse than the median")
            continue
        write_results(run, "imvideoedit", slot, np.full(20, float(edited)))
        results = run.results()
        results["rows"]["imvideoedit"]["seconds_per_clip"] = 1.0 / (1 + abs(edited - 19))
        run.write_results(results)
        run.update_status(state="FINISHED")
    return sweep.folder


def test_every_trial_stands_in_the_table_the_best_above_it_and_luck_is_warned_of(tmp_path, capsys):
    folder = search_folder(tmp_path, [12, 19, None, 17], objectives={"edited_psnr": "maximize"})
    (folder / "plots").mkdir()
    PIL.Image.new("RGB", (20, 20)).save(folder / "plots" / "search-history.png")
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert "Still running" not in text
    assert "Best edited_psnr (maximize): " in text and "trial 1 (train.lr=0.002)" in text
    assert "too good by luck" in text and "3 complete, 1 pruned, 0 failed, of 4" in text
    assert "pruned at step 40: worse than the median" in text
    rows = list(csv.DictReader((folder / "tables" / "report.csv").open()))
    assert [float(row["train.lr"]) for row in rows] == [0.001, 0.002, 0.003, 0.004]
    assert [row["state"] for row in rows] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert rows[2]["edited_psnr"] == ""
    page = (folder / "tables" / "report.html").read_text()
    assert "<h2>history</h2>" in page and 'alt="search-history"' in page
    with pytest.raises(IveditError, match="not the folder of a search"):
        (tmp_path / "grid.yaml").write_text("kind: grid\narms: [imvideoedit]\n")
        sweep = resolve([f"sweep={tmp_path / 'grid.yaml'}", f"output_dir={tmp_path}"])
        keep_definition(sweep)
        search_report(sweep.folder)


def test_two_objectives_have_a_front_and_a_running_search_says_so(tmp_path, capsys):
    goals = {"edited_psnr": "maximize", "seconds_per_clip": "minimize"}
    folder = search_folder(tmp_path, [12, 19], n_trials=4, objectives=goals, sampler={"name": "nsgaii"})
    report = search_report(folder)
    assert "**Still running: 2 of 4 trials have ended.**" in report.heading
    everything, front = report.tables
    assert len(everything.rows) == 2 and len(front.rows) == 2  # slow and good; fast and bad
    assert main([str(folder), "--record", str(tmp_path)]) == 1
    assert "its study is its record" in capsys.readouterr().err


def test_a_search_that_has_not_begun_has_nothing_to_report(tmp_path):
    with pytest.raises(IveditError, match="no trial of find has begun"):
        search_report(search_folder(tmp_path, []))
