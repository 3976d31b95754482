"""`python -m ivedit.report`: tables from run folders and from records, a README that cannot go stale unnoticed."""

import json
from pathlib import Path

import numpy as np
import pytest

from ivedit.config.schema import Config
from ivedit.evaluation.statistics import mean_interval, share_interval
from ivedit.report import END, START, main
from ivedit.runfolder import RunFolder

ROOT = Path(__file__).resolve().parents[1]


def row(kind, edited, n=24, seed=0):
    """One row of results.json over ``n`` clips."""
    draw = np.random.default_rng(seed).normal(0, 2, n)
    values = {"edited_psnr": edited + draw, "kept_psnr": 28 + draw, "success": (edited + draw > 16).astype(float)}
    return {
        "kind": kind,
        "metrics": {
            k: (share_interval(v) if k == "success" else mean_interval(v)).as_dict() for k, v in values.items()
        },
        "groups": {},
        "readback": "skipped",
        "seconds_per_clip": 0.5,
        "per_clip": {name: v.tolist() for name, v in values.items()} | {"warp_error": draw.tolist()},
    }


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    def make(name, edited, *, seed=0, clips=24, guidance=1.0, evaluated=True, state="FINISHED", editors=()):
        monkeypatch.setenv("IVEDIT_RUN_FOLDER", "")
        run = RunFolder.create(Config(name=name, seed=seed, output_dir=str(tmp_path / "runs")))
        steps = range(20, 401, 20)
        times = [1000 + step * 0.25 + (5000 if step > 200 else 0) for step in steps]
        rows = [{"step": s, "time": t, "train/loss": 1.0} for s, t in zip(steps, times, strict=True)]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if evaluated:
            run.write_results({
                "format": 1, "name": name, "split": "test", "frames": 17,
                "thresholds": {"edited_db": 16.0, "kept_db": 20.0},
                "sampling": {"steps": 25, "scheduler": "euler", "guidance": guidance, "shift": 3.0, "seed": 0},
                "clips": [{"id": f"test-{i}", "operation": "remove" if i % 2 else "style"} for i in range(clips)],
                "rows": {
                    name: row("editor", edited, clips, seed), **{e: row("editor", 19, clips) for e in editors},
                    "source_copy": row("control", 11, clips), "frozen": row("control", 9, clips),
                },
                "paired": {}, "triage": {"editors": {name: {"per_clip": [1, 2], "all": {"n": 2}}}},
                "environment": {
                    "backbone": "wan-sprites", "backbone_fingerprint": "ab" * 32, "packages": {}, "gpus": [],
                    "editors": {n: {"variant": "v", "trained_weights": 8_400_000} for n in (name, *editors)},
                    "device": "cpu", "git_commit": None, "date": "2026-11-22 10:00 UTC",
                },
            })  # fmt: skip
        run.update_status(state=state)
        return run

    return make


def table_of(text):
    """{first cell: other cells} of all Markdown tables in ``text``."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cells[0]: cells[1:] for cells in rows}


def test_runs_stand_in_one_table_with_controls_once_below(make_run, capsys):
    runs = [make_run("imvideoedit", 21), make_run("ablation_no_gate", 17, editors=["shipped"])]
    assert main([str(run.path) for run in runs]) == 0
    out = capsys.readouterr().out
    table = table_of(out)
    assert list(table) == [
        "run", "imvideoedit", "ablation_no_gate", "source_copy", "frozen", "shipped (measured with ablation_no_gate)"
    ]  # fmt: skip
    edited, _, success, counted, weights, steps, training = table["imvideoedit"]
    assert edited.startswith(("20.", "21.")) and "[" in edited and "%" in success
    assert (counted, weights, steps) == ("24/24", "8.40M", "400")
    assert training == "100 s"  # 400 steps of 0.25 s: the pause between two pieces does not count
    assert "24 held-out videos" in out and "edited region above 16 dB" in out and "one training seed, 0" in out


def test_runs_on_other_clips_get_a_table_of_their_own(make_run, capsys):
    assert main([str(make_run("imvideoedit", 21).path), str(make_run("quickstart", 18, clips=12).path)]) == 0
    out = capsys.readouterr().out
    assert out.count("| run ") == 2 and "12 held-out videos" in out and out.count("source_copy") == 2


def test_what_differs_between_runs_is_in_their_names(make_run, capsys):
    runs = [make_run("imvideoedit", 21), make_run("imvideoedit", 21, seed=1, guidance=2, state="STOPPED")]
    assert main([str(run.path) for run in runs]) == 0
    names = list(table_of(capsys.readouterr().out))
    assert "imvideoedit, seed 0 (25 euler steps, guidance 1)" in names
    assert "imvideoedit, seed 1 (25 euler steps, guidance 2; stopped)" in names


def test_records_give_the_same_table_as_their_runs_and_are_small(make_run, tmp_path, capsys):
    runs = [make_run("ablation_no_gate", 17), make_run("imvideoedit", 21), make_run("imvideoedit", 20, seed=2)]
    paths = [str(run.path) for run in runs]
    assert main([*paths, "--record", str(tmp_path / "records")]) == 0
    names = sorted(path.name for path in (tmp_path / "records").iterdir())
    assert names == ["ablation_no_gate.json", "imvideoedit-seed2.json", "imvideoedit.json"]
    record = json.loads((tmp_path / "records" / "imvideoedit.json").read_text())
    assert set(record["rows"]["imvideoedit"]["per_clip"]) == {"edited_psnr", "kept_psnr", "success"}
    assert "per_clip" not in record["rows"]["frozen"] and "per_clip" not in record["triage"]["editors"]["imvideoedit"]
    capsys.readouterr()
    assert main([str(tmp_path / "records")]) == 0
    from_records = table_of(capsys.readouterr().out)
    assert main(paths) == 0
    assert from_records == table_of(capsys.readouterr().out)
    assert list(from_records)[1].startswith("imvideoedit")  # the order in which the experiments are listed


def test_the_readme_table_is_made_checked_and_found_stale(make_run, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{START}\nold\n{END}\n\nThe end.\n")
    run = str(make_run("imvideoedit", 21).path)
    assert main([run, "--check", str(readme)]) == 1
    assert "stale" in capsys.readouterr().err
    assert main([run, "--update", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n<!--") and text.endswith(f"{END}\n\nThe end.\n") and "old" not in text
    assert main([run, "--check", str(readme)]) == 0
    assert main([run, "--update", str(readme)]) == 0 and readme.read_text() == text
    readme.write_text(text.replace("8.40M", "8.41M"))
    assert main([run, "--check", str(readme)]) == 1


def test_the_table_can_go_to_a_file(make_run, tmp_path, capsys):
    assert main([str(make_run("imvideoedit", 21).path), "--out", str(tmp_path / "new" / "t.md")]) == 0
    assert "imvideoedit" in (tmp_path / "new" / "t.md").read_text() and capsys.readouterr().out == ""


def test_mistakes_are_told_in_plain_lines(make_run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "old.json").write_text('{"record": 0}')
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "README.md").write_text("no markers")
    run = str(make_run("imvideoedit", 21).path)
    for arguments, message in [
        ([tmp_path / "empty"], "no run folder, no record"),
        ([tmp_path / "other.json"], "nothing to report"),
        ([tmp_path / "old.json"], "no record of this version"),
        ([tmp_path / "bad.json"], "cannot read the record"),
        ([make_run("trial", 20, evaluated=False).path], "has not been evaluated"),
        ([run, "--update", tmp_path / "README.md"], "needs one line"),
        ([run, "--update", tmp_path / "none.md"], "cannot read"),
        (["--import", tmp_path / "empty"], "is not a run folder"),
        (["--import", tmp_path / "empty"], "nothing to import"),
    ]:
        assert main([str(a) for a in arguments]) == 1
        assert message in capsys.readouterr().err
    # Not 1, with which --check tells that a page is stale; and nothing of the rest is imported or printed.
    for option in ([], ["--import"], ["--check", str(tmp_path / "README.md")]):
        assert main([*option, run, str(tmp_path / "nowhere"), str(tmp_path / "gone")]) == 2
        said, err = capsys.readouterr()
        assert not said and "nowhere does not exist" in err and "gone does not exist" in err


def test_what_lies_beside_the_runs_is_skipped_by_name(make_run, tmp_path, capsys):
    """`runs/*` also names the MLflow store, its artifacts and runs that are still training."""
    good, young = make_run("imvideoedit", 21), make_run("trial", 20, evaluated=False, state="RUNNING")
    assert main([str(good.path)]) == 0
    alone = capsys.readouterr().out
    beside = [tmp_path / "runs" / name for name in ("mlartifacts", "mlflow.db", "mlflow.db.lock", "space.json")]
    beside[0].mkdir()
    beside[1].write_bytes(b"SQLite format 3\x00")
    beside[2].touch()
    beside[3].write_text("{}")
    assert main([str(path) for path in sorted((tmp_path / "runs").iterdir())]) == 0
    captured = capsys.readouterr()
    assert captured.out == alone
    skipped = captured.err.splitlines()
    assert len(skipped) == 5 and all(line.startswith("skipped: ") for line in skipped)
    assert all(any(str(path) in line for line in skipped) for path in [*beside, young.path])


def test_import_shows_a_run_in_mlflow_once_and_skips_what_is_no_run(make_run, tmp_path, capsys):
    from mlflow import MlflowClient

    good, young = make_run("trial", 20), make_run("young", 20, evaluated=False)
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    for _ in range(2):
        assert main(["--import", str(tmp_path), str(good.path), str(young.path), "--uri", uri]) == 0
        captured = capsys.readouterr()
        assert f"{good.path}: MLflow run" in captured.out and f"{young.path}: MLflow run" in captured.out
        assert f"skipped: {tmp_path} is not a run folder" in captured.err
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("ivedit").experiment_id])
    assert {run.info.run_name for run in found} == {f"trial-{good.name[-4:]}", f"young-{young.name[-4:]}"}
    (trial,) = [run for run in found if run.info.run_name.startswith("trial")]
    assert trial.info.status == "FINISHED"
    assert len(client.get_metric_history(trial.info.run_id, "train/loss")) == 20


def test_a_store_that_fails_is_an_error_of_import(make_run, capsys):
    assert main(["--import", str(make_run("trial", 20).path), "--uri", "sqlite:////proc/nowhere/mlflow.db"]) == 1
    assert "cannot be used" in capsys.readouterr().err


def test_equal_gpus_of_a_machine_are_told_once(make_run, tmp_path, capsys):
    run = make_run("imvideoedit", 21)
    results = run.results()
    results["environment"]["gpus"] = ["NVIDIA H200, 143771 MiB, 580.159.04"] * 4
    run.write_results(results)
    assert main([str(run.path), "--record", str(tmp_path / "records")]) == 0
    record = json.loads((tmp_path / "records" / "imvideoedit.json").read_text())
    assert record["environment"]["gpus"] == ["4 x NVIDIA H200 (143771 MiB), driver 580.159.04"]
    record["environment"]["gpus"] = results["environment"]["gpus"]  # as older records have it
    (tmp_path / "records" / "imvideoedit.json").write_text(json.dumps(record))
    for source in (run.path, tmp_path / "records"):
        capsys.readouterr()
        assert main([str(source)]) == 0
        said = capsys.readouterr().out
        assert "on a machine with 4 x NVIDIA H200 (143771 MiB), driver 580.159.04." in said
