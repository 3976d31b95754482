"""docs/evaluation.md says what the code says, and its ranking is what the record and the metrics show."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ivedit.evaluation import manifest, sets
from ivedit.evaluation.manifest import read_manifest
from tests.evaluation.edits import moving, write
from tests.pages import ROOT, files, read

PAGE = "docs/evaluation.md"
RECORD = json.loads((ROOT / "benchmarks" / "records" / "ranking.json").read_text())


@pytest.fixture(scope="module")
def ranking():
    spec = importlib.util.spec_from_file_location("ranking", ROOT / "benchmarks" / "ranking.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("module", [manifest, sets])
def test_tables_of_fields_and_sets_are_those_of_the_code(module):
    rows = [line for line in str(module.__doc__).splitlines() if line.startswith("|")]
    assert len(rows) > 4 and "\n".join(rows) in read(PAGE)


def test_every_field_of_a_manifest_is_on_the_page():
    described = re.findall(r"^\| ([\w, ]+) \|", read(PAGE), re.M)
    assert set(manifest.FIELDS) <= {name for cell in described for name in cell.split(", ")}


def test_the_script_that_the_page_shows_writes_a_manifest_that_is_accepted(tmp_path: Path):
    (script,) = files(PAGE, tmp_path)
    for part in ("sources", "edits"):
        write(tmp_path / "my_edits" / part / "cat.mp4", moving())
    (tmp_path / "my_edits" / "instructions.json").write_text('{"cat": "make it night"}')
    subprocess.run([sys.executable, script.name], cwd=tmp_path, check=True)
    assert [clip.instruction for clip in read_manifest([tmp_path / "my_edits"]).clips] == ["make it night"]


def test_the_tables_on_the_page_are_made_from_the_record(ranking):
    shown = read(PAGE).partition(ranking.START)[2].partition(ranking.END)[0].strip()
    assert shown == ranking.page(RECORD, "ranking"), (
        "stale: python benchmarks/ranking.py --from benchmarks/records/ranking.json --update docs/evaluation.md"
    )


def holds(record: dict, share: float) -> None:
    for name, found in record["sets"].items():
        arms = list(found["order"])
        assert arms[0] == "true_edit" and arms[-1] == "source_copy", (name, found["order"])
        assert found["order"]["source_copy"] == 0 and found["order"]["true_edit"] > 0.9
        for must in found["must"]:
            assert must["better"] >= share * must["clips"] > 0, (name, must)


def test_in_the_record_every_fault_shows_where_it_must_and_doing_nothing_comes_last():
    assert all(found["clips"] >= 30 for found in RECORD["sets"].values())
    holds(RECORD, 0.9)


@pytest.mark.slow
def test_a_smaller_ranking_made_now_says_the_same(ranking):
    holds(ranking.measure(6, 8, None), 0.75)  # so few clips that one is an eighth
