"""A file that holds no trained editor is told by every command before torch is imported or a run folder is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import ivedit
from ivedit.config import ConfigError
from ivedit.config.editor_file import FORMAT, HEADER, read_editor_header

WHOLE = {"format": FORMAT, "config": {"variant": "predict_update"}, "shapes": {}, "fingerprint": None, "extra": {}}


def test_every_command_refuses_a_file_that_is_no_editor_at_once(tmp_path: Path):
    (tmp_path / "clip.png").write_bytes(b"any")
    (tmp_path / "a.txt").write_text("no editor")
    (tmp_path / "empty").mkdir()
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "other.safetensors")
    asked = """
import sys
from ivedit import edit, export, run
for name in ("a.txt", "other.safetensors", "empty"):
    print(edit.main(["clip.png", "make it blue", "--editor", name]))
    print(export.main([name, "out"]))
    print(run.main([f"init_from={name}"]))
    print(run.main([f"evaluation.editors.mine={name}"]))
print(*(name for name in ("torch", "diffusers") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(Path(ivedit.__file__).parents[1])})  # fmt: skip
    assert done.stdout.split() == ["2"] * 12, done.stderr
    lines = done.stderr.splitlines()
    reasons = ("is not a safetensors file", "holds no ivedit editor (no `ivedit` header)", "no trained editor at empty")
    assert len(lines) == 12
    for line, reason in zip(lines, [reason for reason in reasons for _ in range(4)], strict=True):
        assert line.startswith("error: ") and reason in line and "the folder of a finished run" in line
    assert lines[2].startswith("error: init_from=a.txt (command line") and "row 'mine': a.txt is not" in lines[3]
    assert {path.name for path in tmp_path.iterdir()} == {"clip.png", "a.txt", "empty", "other.safetensors"}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("{", "header is damaged"),
        ("[]", "header is damaged"),
        (json.dumps({**WHOLE, "format": 2}), "has editor format 2; this version reads 1"),
        (json.dumps({**WHOLE, "config": {}}), r"header is damaged \(KeyError\('variant'\)\)"),
    ],
)
def test_a_header_that_cannot_be_used_is_told(header: str, reason: str, tmp_path: Path):
    file = tmp_path / "editor.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, file, {HEADER: json.dumps(WHOLE)})
    assert read_editor_header(file) == WHOLE
    save_file({"a": np.zeros(1, np.float32)}, file, {HEADER: header})
    with pytest.raises(ConfigError, match=reason):
        read_editor_header(file)
