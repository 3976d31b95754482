"""The README keeps its promises: its commands, code, files, tree and results are what the repository holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ivedit.report import END, START, main
from tests.pages import ROOT, blocks, commands, files, read


def first_commands() -> list[list[str]]:
    """The two commands of the section Start, each as its parts between `&&`."""
    lines = [line for block in blocks("README.md") for line in block.text.splitlines() if line.startswith("python3 ")]
    return [[part.strip() for part in line.split("&&")] for line in lines]


def test_two_commands_install_and_run_and_install_and_test():
    run, test = first_commands()
    assert run == [
        "python3 -m venv .venv", ".venv/bin/pip install -c constraints.txt -e .", ".venv/bin/python -m ivedit.run",
    ]  # fmt: skip
    assert test == [
        "python3 -m venv .venv",
        ".venv/bin/pip install -c constraints.txt -e '.[dev]'",
        "OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 3",
    ]


def test_continuous_integration_runs_the_readmes_test_command():
    _, install, test = first_commands()[1]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    variable, _, *words = shlex.split(test)
    assert re.search(rf"^export {re.escape(variable)}\b", script, re.M)
    lines = [shlex.split(line, comments=True) for line in script.splitlines() if "/bin/python" in line]
    pytest_line = next(line for line in lines if "pytest" in line)
    assert pytest_line[1:] == [*words, "$@"]
    pip_line = next(line for line in lines if "pip" in line)
    wanted = shlex.split(install)[2:]
    assert pip_line[-len(wanted) :] == wanted


def test_the_yaml_swaps_one_module_in_six_lines(tmp_path: Path):
    from ivedit.config.compose import load

    (path,) = files("README.md", tmp_path)
    assert len(path.read_text().splitlines()) <= 6
    mine, method = load(str(path)), load("imvideoedit")
    assert (mine.editor.gate, mine.editor.width) == ("none", 128)
    assert mine.train == method.train and mine.data == method.data


def test_the_python_example_edits_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (code,) = [block.text for block in blocks("README.md") if block.language == "python"]
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["edited"].shape == scope["pixels"].shape == (17, 3, 64, 64)
    from ivedit.media import read_video

    assert read_video(tmp_path / "edited.mp4").pixels.shape == scope["pixels"].shape


def tree() -> list[str]:
    """Paths of the tree under "What is where"."""
    (block,) = [block.text for block in blocks("README.md") if block.text.startswith("ivedit/\n")]
    found, folder = [], ""
    for line in block.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        found.append(folder + name if line.startswith(" ") else name)
    return found


def test_the_tree_has_one_line_for_every_part_of_the_package_and_no_other():
    parts = {
        f"ivedit/{path.name}{'/' if path.is_dir() else ''}"
        for path in (ROOT / "ivedit").iterdir()
        if (path.is_dir() and path.name != "__pycache__") or (path.suffix == ".py" and path.stem != "__init__")
    }
    shown = tree()
    assert len(shown) == len(set(shown))
    assert {path for path in shown if path.startswith("ivedit/") and path != "ivedit/"} == parts
    for folder in ("experiments", "notebooks", "docs", "tests", "benchmarks", "sweeps"):
        assert (f"{folder}/" in shown) == any((ROOT / folder).glob("*.*")), folder


def test_the_results_table_is_what_the_records_say(capsys: pytest.CaptureFixture[str]):
    page, records = read("README.md"), ROOT / "docs" / "results"
    assert page.count(START) == page.count(END) == 1
    code = main([str(records), "--check", str(ROOT / "README.md")])
    assert code == 0, capsys.readouterr().err


def test_the_readme_shows_the_main_commands():
    modules = {words[words.index("-m") + 1] for words in commands("README.md") if "-m" in words}
    assert {"ivedit.run", "ivedit.edit", "ivedit.report", "ivedit.data.export"} <= modules
