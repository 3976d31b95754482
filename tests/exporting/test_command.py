"""`python -m ivedit.export` as a user calls it: mistakes are told at once, the whole way to a hub and back works."""

import subprocess
import sys

import pytest

from ivedit import export
from tests import hub_stub
from tests.exporting.made import make_run


@pytest.fixture
def command(capsys):
    def run(*arguments):
        try:
            code = export.main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = leave.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "out"], "missing does not exist; give a run folder"),
        (["shipped", "out", "--push", "name"], "--push 'name' is not a name on the hub: USER/NAME"),
        (["shipped", "out", "--base-model", "/x/y"], "--base-model '/x/y' is not a name"),
        (["shipped", "out", "--private"], "--private says how to --push"),
        (["shipped", "out", "--dry-run"], "--dry-run says how to --push"),
        (["shipped", "out", "--license", "My own"], "--license 'My own' is not an identifier"),
        (["shipped", "out", "--unmeasured"], "are for --dtype bfloat16"),
        (["shipped", "out", "--shard-size", "0"], "'0' is not a number of gigabytes"),
        (["shipped", "out", "--dtype", "float16"], "invalid choice: 'float16'"),
        (["shipped", "."], "holds something else (mine.txt)"),
    ],
)
def test_mistakes_are_told_in_one_plain_line(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("x")
    code, _, err = command(*arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_all_mistakes_are_told_at_once(command):
    assert command("missing", "out", "--private", "--license", "A B")[2].count("error:") == 3


def test_bfloat16_is_measured_on_the_backbone_or_not_at_all(command, wan, tmp_path):
    run = make_run(tmp_path, *wan)
    code, out, err = command(run, tmp_path / "a", "--dtype", "bfloat16")
    assert code == 0, err
    assert "bfloat16 moves a velocity by 0." in out and "give --base-model" in out
    code, _, err = command(run, tmp_path / "b", "--dtype", "bfloat16", "--backbone", "wan-sprites")
    assert code == 1 and "other shapes" in err and "--unmeasured" in err and not (tmp_path / "b").exists()
    code, _, err = command(run, tmp_path / "b", "--dtype", "bfloat16", "--unmeasured")
    assert code == 0 and "was not measured" in (tmp_path / "b" / "README.md").read_text()


def test_a_run_goes_to_the_hub_only_when_it_is_told_to(command, hub, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [run, "blue", "--push", "anna/blue", "--private"]
    code, out, err = command(*arguments, "--dry-run")
    assert code == 0, err
    assert "to anna/blue (private if it is new):" in out and "editor.safetensors" in out
    assert "nothing was sent (--dry-run)" in out and not hub.calls
    code, out, err = command(*arguments)
    assert code == 0, err
    assert f"uploaded: {hub.address}/anna/blue" in out and hub_stub.TOKEN not in out + err
    assert hub.repositories["anna/blue"].private
    assert hub.repositories["anna/blue"].files["README.md"] == (tmp_path / "blue" / "README.md").read_bytes()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, _, err = command(*arguments)
    assert code == 1 and "does not accept this login" in err and len(err.splitlines()) == 1


def test_help_teaches_and_imports_nothing_heavy():
    code = (
        "import sys, ivedit.export as e\n"
        "try: e.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'huggingface_hub', 'diffusers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "examples:" in done.stdout and "--push" in done.stdout and "nothing is sent" in done.stdout
