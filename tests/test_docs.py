"""The pages hold: links lead somewhere, commands exist, the variant table and the plugin example are true."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ivedit import experiments
from ivedit.config.compose import compose
from ivedit.sweeping.resolve import resolve
from tests.pages import ROOT, anchors, commands, files, links, read

FOLDERS = ("docs", "experiments", "sweeps", "benchmarks")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
)
WRITTEN = (
    "README.md", "docs/buckets.md", "docs/data.md", "docs/evaluation.md", "docs/export.md", "docs/extending.md",
    "docs/judge.md", "docs/method.md", "docs/results.md", "docs/scale.md", "docs/sprites.md", "docs/sweeps.md",
)  # fmt: skip

# Makes a run of any experiment short.
TINY = (
    "train.max_steps=1", "train.batch_size=2", "train.accelerator=cpu", "train.warmup_steps=1", "editor.width=64",
    "sampling.steps=1", "evaluation.clips=9", "evaluation.frames=1", "evaluation.controls=[source_copy]",
    "evaluation.triage=false", "evaluation.gate_maps=false", "evaluation.strips=0", "evaluation.bootstrap=100",
    "tracking.kind=none",
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page: str):
    for target in links(page):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_plain_text_without_the_marks_of_a_hurry(page: str):
    text = read(page)
    assert not re.search(r"\bTODO\b|\bFIXME\b|/tmp/|/home/|localhost", text)
    assert text.endswith("\n") and "\t" not in text


@pytest.mark.parametrize("page", PAGES)
def test_every_heading_has_something_below_it(page: str):
    lines = [line for line in re.sub(r"^```.*?^```$", "code", read(page), flags=re.M | re.S).splitlines() if line]
    levels = [len(line) - len(line.lstrip("#")) if re.match(r"#+ ", line) else 0 for line in lines]
    for line, level, below in zip(lines, levels, [*levels[1:], 1], strict=True):
        assert not level or not below or below > level, line


def help_of(module: str) -> str:
    """What `python -m module --help` prints."""
    main = importlib.import_module(module if module != "ivedit.sprites" else "ivedit.sprites.__main__").main
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            code = main(["--help"])
        except SystemExit as leave:
            code = leave.code
    assert code in (0, None)
    return said.getvalue()


def module_commands(page: str) -> list[tuple[str, list[str]]]:
    """(module, arguments) of every `python -m module arguments` of a page."""
    found = [words[words.index("-m") + 1 :] for words in commands(page) if "-m" in words]
    return [(words[0], words[1:]) for words in found if words[0].startswith("ivedit")]


@pytest.mark.parametrize("page", WRITTEN)
def test_commands_take_the_arguments_that_are_shown(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files(page, tmp_path)
    for folder in ("my_pairs", "photos"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pairs.csv").write_text("source,target,instruction\n")
    monkeypatch.chdir(tmp_path)
    for module, arguments in module_commands(page):
        options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        said = help_of(module)
        assert all(re.search(rf"{option}\b", said) for option in options), (module, options)
        # Words in capitals stand for the reader's own names, three dots for what the page said before.
        if "..." in arguments or any(re.search(r"[A-Z]{4,}", word.partition("=")[2]) for word in arguments):
            continue
        settings = [word for word in arguments if "=" in word and not word.startswith("--")]
        if module == "ivedit.run":
            compose(settings, for_reading="--plan" in arguments)  # a plan needs no pairs
        elif module == "ivedit.sweep" and any(word.startswith("sweep=") for word in settings):
            resolve(settings)


def test_the_method_page_lists_every_experiment_with_its_number_of_weights():
    from ivedit.backbone import Backbone
    from ivedit.editor import VARIANTS, editor_config

    spec = Backbone.load("wan-sprites", components=()).spec
    table = read("docs/method.md").partition("<!-- variants:start -->")[2].partition("<!-- variants:end -->")[0]
    shown = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", table, re.M))
    true = {}
    for name in experiments.names():
        config = compose([f"experiment={name}"], for_reading=True).config
        if config.task == "edit" and config.backbone.path == "wan-sprites":
            settings = editor_config(config.editor)
            true[name] = f"{VARIANTS.get(settings['variant']).expected_parameters(settings, spec):,}"
    assert shown == true


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A folder with the files of docs/extending.md and two photographs."""
    from PIL import Image
    from skimage import data

    files("docs/extending.md", tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(data, name)()).resize((96, 80)).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path


def python(*arguments: str, cwd: Path, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_plugin_example_trains_and_evaluates(example: Path):
    said = python("-m", "ivedit.run", "experiment=./same_place.yaml", *TINY, cwd=example, path=example)
    assert "training same_place" in said and "colour error" in said
    assert list(example.glob("runs/same_place-*/checkpoints/editor.safetensors"))


@pytest.mark.slow
def test_the_plugin_example_passes_the_suite_of_all_variants(example: Path):
    said = python(
        "-m", "pytest", "-p", "my_edits", "-p", "no:cacheprovider", "tests/editor/test_conformance.py",
        "-k", "same_place", cwd=ROOT, path=example,
    )  # fmt: skip
    assert re.search(r"\.{10,}", said) and "F" not in said.split("[")[0]
