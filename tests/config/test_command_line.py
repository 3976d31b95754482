"""``python -m ivedit.run`` answers questions and refuses bad input from the configuration layer alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ivedit import experiments
from ivedit.config.fields import fields
from ivedit.run import main

HEAVY = ("torch", "numpy", "lightning", "diffusers", "transformers", "mlflow", "matplotlib", "datasets", "av", "cv2")

# Calls main and reports, after everything else, which heavy modules it loaded and the CPU seconds it took.
PROBE = """
import json, resource, sys
from ivedit.run import main
code = main(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
print(json.dumps({"code": code, "loaded": loaded, "seconds": used.ru_utime + used.ru_stime}))
"""


def ask(*arguments: str, cwd: Path) -> tuple[dict, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(HEAVY), *arguments], capture_output=True, text=True, cwd=cwd, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(experiments.__file__).parents[1])},
    )  # fmt: skip
    head, _, last = done.stdout.rstrip("\n").rpartition("\n")
    return json.loads(last), head, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--print-config", "experiment=ablation_plain"], 0),
        (["--explain", "train.lr", "experiment=imvideoedit"], 0),
        (["--explain", "editor.width", "experiment=paper_5b"], 0),  # reads, so data.path may be missing
        (["experiment=imvideoedit", "train.lr=x", "no=1"], 2),
        (["experiment=imvideoedt"], 2),
        (["--nonsense"], 2),
        (["--plan", "h300"], 2),
    ],
)
def test_answers_without_heavy_imports_in_under_a_second_of_cpu_time(tmp_path: Path, arguments: list[str], code: int):
    report, out, err = ask(*arguments, cwd=tmp_path)
    assert report["code"] == code
    assert report["loaded"] == []
    assert report["seconds"] < 1.0
    assert bool(out) == (code == 0)
    assert bool(err) == (code == 2)
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_setting_and_experiment(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for key in fields():
        assert f"    {key}  (" in text
    for name in experiments.names():
        assert f"  {name}" in text
    assert max(map(len, text.splitlines())) <= 130


def test_explain_tells_who_set_a_value_and_what_it_replaced(capsys: pytest.CaptureFixture[str]):
    assert main(["--explain=editor.gate", "experiment=ablation_plain", "editor.gate=features"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "editor.gate = features"
    assert "set by    command line: editor.gate=features" in text
    assert "replaced  none  (experiments/ablation_no_gate.yaml:5)" in text
    assert "replaced  text  (default)" in text


def test_explain_a_group_explains_each_of_its_settings(capsys: pytest.CaptureFixture[str]):
    assert main(["--explain", "sampling"]) == 0
    assert capsys.readouterr().out.count("set by") == sum(key.startswith("sampling.") for key in fields())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--explain"], "--explain needs the name of a setting"),
        (["--explain", "train.learning"], "there is no such setting"),
        (["--print-confg"], "did you mean --print-config?"),
        (["plugins=[no.such.module]", "experiment=quickstart"], "no.such.module failed: there is no module no in"),
        (["plugins=[./my_edits.py]"], "./my_edits.py is a file, not a module's name; write plugins=[my_edits]"),
    ],
)
def test_bad_input_is_one_plain_error_and_exit_code_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert part in err
    assert err.count("\n") == 1
    assert err.startswith("error: ")


def test_a_plugin_from_the_working_directory_that_breaks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken_plugin_module.py").write_text("raise ZeroDivisionError('oh')\n")
    assert main(["plugins=[broken_plugin_module]"]) == 2
    told = "importing broken_plugin_module failed: ZeroDivisionError: oh (broken_plugin_module.py, line 1)"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("editor.variant=predict_updat", "editor.variant 'predict_updat' is not known; did you mean predict_update"),
        ("data.reader=sprits", "data reader 'sprits' is not known; did you mean sprites?"),
        ("task=cont", "task 'cont' is not known; did you mean count?"),
    ],
)
def test_a_name_that_the_plugins_do_not_register_is_refused_before_a_run_folder_is_made(
    setting: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "counting_plugin.py").write_text(
        "from ivedit.tasks import register\n\n@register('count')\ndef count(cfg, run, tracker):\n    pass\n"
    )
    assert main(["plugins=[counting_plugin]", "data.operations=[]", setting]) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
