"""`python -m ivedit.report` on sweeps: where its files go, pages kept current, mistakes told in one line."""

import json
import shutil
import subprocess
import sys

import pytest

from ivedit.report import count_arm, main
from ivedit.runfolder import RunFolder
from tests.reporting.simulated import ARMS, sweep_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return sweep_folder(tmp_path_factory.mktemp("sweeps"), arms=ARMS[:2], claims=[], seeds=(0, 1))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "trio")


@pytest.fixture(autouse=True)
def _counted_once(monkeypatch):
    """Counting itself is `tests/training/test_flops.py`'s; here one number for all."""
    monkeypatch.setattr("ivedit.report.count_arm", lambda config: {"training_step": 10**9, "sampling_step": 10**9})


def test_a_sweep_is_printed_and_lies_in_its_tables_in_four_forms(folder, capsys):
    assert main([str(folder)]) == 0
    captured = capsys.readouterr()
    assert "| imvideoedit " in captured.out and str(folder / "tables" / "report.html") in captured.err
    forms = {f"report.{form}" for form in ("md", "csv", "tex", "html")}
    assert {path.name for path in (folder / "tables").iterdir()} == forms
    assert (folder / "tables" / "report.md").read_text() == f"# trio\n\n{captured.out}"


def test_out_takes_one_form_by_its_suffix_or_a_folder_for_all(folder, tmp_path, capsys):
    assert main([str(folder), "--out", str(tmp_path / "new" / "t.tex")]) == 0
    assert r"\toprule" in (tmp_path / "new" / "t.tex").read_text() and capsys.readouterr().out == ""
    assert main([str(folder), "--out", str(tmp_path / "all")]) == 0
    assert len(list((tmp_path / "all").iterdir())) == 4 and not (folder / "tables").exists()


def test_plots_are_pictures_and_vectors_and_equal_again(folder, tmp_path, capsys):
    for place in ("a", "b"):
        assert main([str(folder), "--plots", str(tmp_path / place)]) == 0
    printed = capsys.readouterr().out.splitlines()
    files = sorted((tmp_path / "a").iterdir())
    assert [file.name for file in files] == sorted(
        f"trio-{plot}.{kind}" for plot in ("arms", "differences", "profile") for kind in ("pdf", "png")
    )
    assert {str(file) for file in files} <= set(printed)
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert file.read_bytes()[:4] == (b"%PDF" if file.suffix == ".pdf" else b"\x89PNG")


def test_a_record_makes_the_same_page_and_is_no_run_of_the_folder_it_lies_in(folder, tmp_path, capsys):
    records = tmp_path / "records"
    assert main([str(folder), "--record", str(records)]) == 0
    file = records / "sweep-trio.json"
    assert str(file) in capsys.readouterr().out and file.stat().st_size < 20_000
    assert main([str(file)]) == 0
    from_record = capsys.readouterr().out
    assert main([str(folder)]) == 0
    assert from_record == capsys.readouterr().out
    run = next((folder / "runs").iterdir())
    assert main([str(run), "--record", str(records)]) == 0
    capsys.readouterr()
    assert main([str(records)]) == 0
    assert "paired difference" not in capsys.readouterr().out  # the table of runs


def test_a_page_keeps_a_sweep_and_the_runs_apart_and_a_stale_one_is_found(folder, tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text("# T\n<!-- results:start -->\nruns\n<!-- results:end -->\n<!-- sweep trio:start -->\n"
                    "<!-- sweep trio:end -->\nEnd.\n")  # fmt: skip
    assert main([str(folder), "--check", str(page)]) == 1
    assert "the sweep trio table of" in capsys.readouterr().err
    assert main([str(folder), "--update", str(page)]) == 0
    text = page.read_text()
    assert "<!-- results:start -->\nruns\n" in text and "| imvideoedit " in text and text.endswith("end -->\nEnd.\n")
    assert main([str(folder), "--check", str(page)]) == 0
    assert main([str(folder), "--update", str(page)]) == 0 and page.read_text() == text


def test_run_folders_are_arms_when_asked_and_what_is_no_run_is_skipped(folder, tmp_path, capsys):
    runs = [str(path) for path in (folder / "runs").iterdir()]
    assert main(["--arms", *runs, str(folder / "sweep.yaml")]) == 0
    captured = capsys.readouterr()
    assert "The first arm against each other" in captured.out and captured.err.startswith("skipped: ")
    assert "| imvideoedit - ablation_no_gate " in captured.out
    assert main([*runs]) == 0
    assert "seed 1" in capsys.readouterr().out  # a row for each run, as ever


def test_mistakes_are_told_in_plain_lines(folder, tmp_path, capsys):
    (tmp_path / "old.json").write_text('{"sweep_record": 0}')
    (tmp_path / "page.md").write_text("no markers")
    (tmp_path / "file").touch()
    for arguments, code, message in [
        ([], 2, "name folders of runs or of a sweep"),
        (["--sweep", "trio"], 2, "--sweep needs the store"),
        (["--sweep", "trio", str(folder)], 2, "leave out folders"),
        ([str(folder), "--uri", "sqlite:///x.db"], 2, "--uri goes with --sweep or --import"),
        ([str(folder), "--out", "report.pdf"], 2, "--out report.pdf: a report is .md, .csv, .tex or .html"),
        (["--sweep", "trio", "--uri", str(tmp_path)], 2, "no longer writes to plain folders"),
        ([str(tmp_path / "old.json")], 1, "no record of this version"),
        ([str(folder), "--update", str(tmp_path / "page.md")], 1, "<!-- sweep trio:start -->"),
        ([str(folder), "--out", str(tmp_path / "file" / "x.md")], 1, "name another place with --out"),
        ([str(folder), "--plots", str(tmp_path / "file")], 1, "cannot write plots into"),
        ([str(next((folder / "runs").iterdir())), "--plots", str(tmp_path / "p")], 2, "make runs of several seeds one"),
        (["--arms", str(tmp_path / "nowhere")], 2, "nowhere does not exist"),
        (["--arms", str(tmp_path / "page.md")], 1, "no run of runs has been evaluated yet"),
    ]:
        assert main(arguments) == code, arguments
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    (folder / "sweep.yaml").write_text("kind: grid\narmz: [imvideoedit]\n")
    assert main([str(folder)]) == 2
    assert "armz: there is no such key" in capsys.readouterr().err


def test_flops_are_counted_on_the_shipped_backbone_only_and_another_one_is_said_so(folder):
    config = RunFolder(next((folder / "runs").iterdir())).config()
    other = {**config, "backbone": {**config["backbone"], "path": "/models/Wan"}}
    assert count_arm(other) == {"skipped": "not counted (only wan-sprites is at hand everywhere, not /models/Wan)"}
    assert "init_from" in count_arm({**config, "init_from": "editor.safetensors"})["skipped"]
    unknown = {**config, "editor": {**config["editor"], "variant": "from_a_plugin"}}
    assert "from_a_plugin" in count_arm(unknown)["skipped"]


def test_help_and_mistakes_answer_without_heavy_imports():
    code = (
        "import sys\nfrom ivedit.report import main\nassert main(['--sweep', 'x']) == 2\n"
        "print([name for name in ('torch', 'mlflow', 'optuna', 'matplotlib', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
