"""What is installed from a wheel is whole: every package, the experiment and sweep files, the shipped weights."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_listed_for_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in sorted((ROOT / "ivedit").rglob("__init__.py"))
    }
    assert set(listed) - {"ivedit.experiments_data", "ivedit.sweeps_data"} == found


def test_every_declared_dependency_is_pinned_exactly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    names = {pin.partition("==")[0] for pin in pins}
    assert {re.split(r"[^A-Za-z0-9-]", text, maxsplit=1)[0] for text in wanted} <= names
    assert "torchvision" not in names  # its registry build beside the CPU build of torch breaks lightning and diffusers


def test_the_version_is_written_in_the_package_the_build_and_the_changelog():
    import ivedit

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert ivedit.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_wheel_runs_from_any_folder_with_its_experiments(tmp_path: Path):
    source, target, elsewhere = tmp_path / "source", tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("ivedit", "experiments", "sweeps"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", target, source], check=True, capture_output=True, cwd=elsewhere)

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], check=True, capture_output=True, text=True, cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(target)},
        )  # fmt: skip
        return done.stdout

    place = ask("-c", "import ivedit, ivedit.experiments as e; print(ivedit.__file__); print(e.folder())").split()
    assert all(Path(path).is_relative_to(target) for path in place)
    assert "experiment=imvideoedit" in ask("-m", "ivedit.run", "--help")
    assert "gate: none" in ask("-m", "ivedit.run", "experiment=ablation_no_gate", "--print-config")
    assert "sweep=ablations" in ask("-m", "ivedit.sweep", "--help")

    def files(folder: Path) -> set[str]:
        return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}

    installed = files(target / "ivedit")
    assert files(ROOT / "ivedit") <= installed
    for name in ("experiments", "sweeps"):
        assert {f"{name}_data/{p.name}" for p in (ROOT / name).glob("*.yaml")} <= installed
