"""The notebooks run from top to bottom and are stored without outputs."""

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

SMALLER = {
    "quickstart": {
        "data.pairs=200": "data.pairs=24", "sampling.steps=8": "sampling.steps=2",
        "evaluation.clips=4": "evaluation.clips=2",
    },
    "look_inside_the_gate": {"steps=10": "steps=2"},
}  # fmt: skip
"""What a notebook's reader waits for a minute and a test need not: settings, each there once, and those to run with."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_stored(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_pictures(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the kernel starts elsewhere
    monkeypatch.delenv("MPLBACKEND", raising=False)  # Agg, which tests set, shows no figure in a notebook

    notebook = nbformat.read(path, as_version=4)
    for shown, smaller in SMALLER.get(path.stem, {}).items():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and shown in cell.source]
        cell.source = cell.source.replace(shown, smaller)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not any(output.output_type == "error" for output in outputs)
    assert not [output.text for output in outputs if output.get("name") == "stderr"]  # libraries' bars and warnings
