"""``python -m ivedit.evaluate`` on real folders, a real loopback judge, a stored record and a trained editor."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ivedit.evaluate import main
from ivedit.evaluation.files import read_clip
from ivedit.evaluation.manifest import NAME
from ivedit.judge.finish import RECORD
from tests.evaluation.edits import finished, moving, write
from tests.judge.oracle import Oracle, OracleServer

QUIET = ["tracking.kind=none", "evaluation.bootstrap=100", "evaluation.strips=1"]
JUDGE = ["judge.backend=http", "judge.model=oracle-1", "judge.repeats=2", "judge.smallest=32", "judge.attempts=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A place with two methods' folders: one edits, the other copies the source."""
    place = tmp_path_factory.mktemp("place")
    finished(place / "ours"), finished(place / "copies")
    for i in range(3):
        write(place / "copies" / "edits" / f"{i}.mp4", moving(i))
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("ours", "copies"):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


def only_run(place: Path) -> Path:
    (folder,) = (place / "runs").glob("evaluation-*")
    return folder


def results_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


@pytest.fixture
def oracle(made: Path):
    """A judge that knows the true edits; its server."""
    known = Oracle()
    for i in range(3):
        source, truth = (read_clip(made / "ours" / part / f"{i}.mp4").numpy() for part in ("sources", "truths"))
        known.tell(source, truth, words=(f"clip-{i}", "copies"))  # "ours" is in "colours"
    with OracleServer(known) as server:
        yield server


def test_a_folder_becomes_one_table_with_pictures_and_every_value(place: Path, capsys):
    assert main(["ours", "copies", *QUIET]) == 0
    folder = only_run(place)
    said, err = capsys.readouterr()
    assert err == "" and (folder / "evaluation.md").read_text().strip() in said
    results = results_of(folder)
    assert results["methods"] == ["ours", "copies"] and results["paired"]["ours"]["copies"]["edited_psnr"]["mean"] > 0
    assert "Means of fewer than 8 clips have no interval" in said and not re.search(r"dB.*\[", said)
    assert len((folder / "clips.csv").read_text().splitlines()) == 1 + 3 * 3
    assert [path.name for path in (folder / "media").iterdir()] == ["strip-00-clip-0.png"]
    assert json.loads((folder / "status.json").read_text())["state"] == "FINISHED"


def test_out_names_the_folder_and_a_second_evaluation_does_not_overwrite_it(place: Path, capsys):
    assert main(["ours", "--out", "here/table", *QUIET]) == 0
    assert results_of(place / "here" / "table")["methods"] == ["ours"]
    assert main(["ours", "--out", "here/table", *QUIET]) == 2
    told = capsys.readouterr().err
    assert "--out here/table holds a run already; name another folder" in told
    assert f"with --record here/table/{RECORD}" in told


def test_a_judge_scores_the_same_clips_and_its_replies_are_kept(place: Path, oracle: OracleServer, capsys):
    arguments = ["ours", "copies", *QUIET, *JUDGE, f"judge.base_url={oracle.url}"]
    assert main([*arguments, "--record", "kept.jsonl"]) == 0, capsys.readouterr().err
    assert not oracle.oracle.violations and oracle.oracle.asked == 2 * 3 * 4 * 2
    folder = only_run(place)
    judged = results_of(folder)["judge"]
    assert judged["rows"]["copies"]["IA"]["mean"] == 1 and judged["rows"]["ours"]["IA"]["mean"] >= 3
    assert judged["rows"]["copies"]["overall_geometric"]["mean"] == 0
    assert judged["paired"]["ours"]["copies"]["IA"]["mean"] > 0
    assert judged["headings"]["TC"] == "TC (not proven)"
    text = (folder / "evaluation.md").read_text()
    assert "judge: IA (not proven) ↑" in text and "answering as oracle-1" in text and "24/24" in text
    assert "source_copy" in text.splitlines()[6] and judged["rows"].keys() == {"ours", "copies"}
    replies = (folder / "artifacts" / "judge.jsonl").read_text()
    assert replies == (place / "kept.jsonl").read_text() and replies.count('"reply"') == 48
    assert (folder / "artifacts" / "judgements.csv").read_text().count("\n") == 1 + 48

    shutil.rmtree(place / "runs")
    assert main([*arguments, "--record", "kept.jsonl"]) == 0
    assert oracle.oracle.asked == 48  # nothing was asked again
    again = results_of(only_run(place))["judge"]
    assert {key: again[key] for key in ("rows", "per_clip", "paired")} == {
        key: judged[key] for key in ("rows", "per_clip", "paired")
    }

    shutil.rmtree(place / "runs")
    replay = ["judge.backend=replay", "judge.path=kept.jsonl", "judge.model=oracle-1", *JUDGE[2:4]]
    assert main(["ours", "copies", *QUIET, *replay]) == 0, capsys.readouterr().err
    replayed = results_of(only_run(place))["judge"]
    assert (replayed["rows"], replayed["per_clip"]) == (judged["rows"], judged["per_clip"])
    assert oracle.oracle.asked == 48


def test_a_table_with_too_many_failures_is_refused_and_the_measured_one_is_kept(place: Path, oracle, capsys):
    oracle.oracle.known.clear()  # now it answers 400 to every question about pictures in pairs
    oracle.oracle._places.clear()
    assert main(["ours", *QUIET, *JUDGE, f"judge.base_url={oracle.url}"]) == 1
    folder, err = only_run(place), capsys.readouterr().err
    assert "table is refused" in err and "ours: IA lacks 6 of 6 judgements" in err
    results = results_of(folder)
    assert results["judge"]["metrics"] == [] and results["rows"]["ours"]["metrics"]["edited_psnr"]["mean"] > 0
    assert "Judge: no scores are shown" in (folder / "evaluation.md").read_text()
    assert json.loads((folder / "status.json").read_text())["state"] == "FAILED"


def test_pairs_are_judged_in_both_orders(place: Path, oracle: OracleServer):
    settings = ["judge.metrics=[IA]", "judge.pairwise=[IA]", "judge.repeats=1", "judge.smallest=32"]
    assert main(["ours", "copies", *QUIET, *JUDGE[:2], f"judge.base_url={oracle.url}", *settings]) == 0
    assert oracle.oracle.asked == 6 + 6 and not oracle.oracle.violations
    pairs = results_of(only_run(place))["judge"]["pairwise"]["pairs"]
    assert pairs[0]["share"]["mean"] in (0, 1) and pairs[0]["flips"]["mean"] == 0
    assert "Which of two edits is better" in (only_run(place) / "evaluation.md").read_text()


def test_a_dry_run_counts_calls_pictures_and_tokens_and_asks_nobody(place: Path, capsys):
    (place / "judge.yaml").write_text(
        "backend: http\nbase_url: http://127.0.0.1:9/v1\nmodel: none\nkey_env: NO_SUCH_KEY\nrepeats: 5\n"
    )
    assert main(["ours", "copies", "--judge", "judge.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 clips of 2 methods: all files are there and fit" in said
    assert "120 judgements" in said and "calls with" in said and "tokens" in said
    assert main(["ours", "--judge", "judge.yaml", "--dry-run", "judge.anchors=none.json"]) == 2
    assert "there is no file none.json; make it with --anchors" in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_a_dry_run_of_the_anchors_counts_the_questions_about_two_edits_too(place: Path, capsys):
    settings = ["judge.backend=http", "judge.base_url=http://127.0.0.1:9/v1", "judge.model=none", "judge.repeats=1"]
    counts = {}
    for name, more in {"alone": [], "both": ["judge.pairwise=[IA]"]}.items():
        assert main(["--anchors", "--dry-run", *settings, "judge.metrics=[IA]", *more]) == 0
        counts[name] = [int(n) for n in re.findall(r"(\d+) judgements", capsys.readouterr().out.replace(",", ""))]
    assert len(counts["alone"]) == 1 and counts["both"][0] == counts["alone"][0]
    assert len(counts["both"]) == 2 and counts["both"][1] >= 2 * 3 * 40  # both orders, three relations, 40 clips each


def test_known_faults_of_clips_prove_the_judge_and_the_verdict_stands_in_the_table(place: Path, tmp_path: Path):
    from ivedit.judge.anchor_scenes import sprite_scenes

    known = Oracle()
    for scene in sprite_scenes():
        known.tell(scene.source, scene.truth)
    source, truth = (read_clip(place / "ours" / part / "0.mp4").numpy() for part in ("sources", "truths"))
    known.tell(source, truth)
    shutil.copytree(place / "ours", tmp_path / "one", ignore=shutil.ignore_patterns("1*", "2*"))
    (tmp_path / "one" / NAME).write_text((place / "ours" / NAME).read_text().splitlines()[0] + "\n")
    settings = ["judge.metrics=[IA]", "judge.repeats=1", "judge.smallest=32", "judge.temperature=0"]
    with OracleServer(known) as server:
        arguments = [*JUDGE[:2], f"judge.base_url={server.url}", *settings]
        assert main(["one", "--anchors", *QUIET, *arguments]) == 0
    assert not known.violations
    folder = only_run(place)
    assert json.loads((folder / "anchors.json").read_text())["verdicts"][0]["metric"] == "IA"
    judged = results_of(folder)["judge"]
    assert judged["headings"]["IA"] == "IA" and judged["verdicts"]["IA"]["state"] == "valid"
    assert "IA: valid (A1 over" in (folder / "evaluation.md").read_text()


def test_results_replies_and_pictures_go_to_mlflow(place: Path, oracle: OracleServer):
    from mlflow import MlflowClient

    settings = ["evaluation.bootstrap=100", "evaluation.strips=1", "judge.metrics=[AA]", *JUDGE[:2], *JUDGE[3:]]
    assert main(["ours", f"judge.base_url={oracle.url}", "judge.repeats=1", *settings]) == 0
    status = json.loads((only_run(place) / "status.json").read_text())
    client = MlflowClient(f"sqlite:///{place / 'runs' / 'mlflow.db'}")
    run = client.get_run(status["mlflow_run_id"])
    assert run.info.status == "FINISHED" and run.data.metrics["eval/edited_psnr"] > 15
    assert 1 <= run.data.metrics["eval/judge.AA"] <= 5

    def files(path: str = "") -> set[str]:
        found = set()
        for item in client.list_artifacts(status["mlflow_run_id"], path):
            found |= files(item.path) if item.is_dir else {item.path}
        return found

    there = files()
    assert {"evaluation.json", "evaluation.md", "clips.csv", "artifacts/judge.jsonl", "artifacts/judgements.csv",
            "tables/clips.json", "tables/finished_edits.json", "media/strip-00-clip-0.png"} <= there  # fmt: skip
    assert "KEY" not in json.dumps(run.data.params)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to evaluate"),
        (["nowhere"], "nowhere does not exist"),
        (["."], "has no manifest.jsonl"),
        (["ours", "train.lr=1"], "an evaluation has no use for it"),
        (["ours", "judge.bakend=http"], "did you mean judge.backend"),
        (["ours", "judge.backend=http"], "judge.base_url"),
        (["ours", "--judge", "no.yaml"], "no.yaml cannot be read"),
        (["--anchors"], "--anchors asks a judge"),
        (["ours", "--set", "opnve=."], "did you mean openve"),
        (["--set", "davis=."], "name the folders that hold the edits"),
        (["ours", "shipped"], "evaluate them apart"),
        (["ours", "evaluation.weights={clip: nowhere}"], "nowhere is not a folder"),
        (["ours", "plugins=[no_such_module]"], "importing no_such_module failed"),
        (["shipped", "--dry-run"], "these editors have made none yet"),
    ],
)
def test_what_cannot_be_used_is_one_plain_line_and_leaves_nothing(place: Path, arguments, said: str, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert said in err and all(line.startswith("error: ") for line in err.splitlines())
    assert not (place / "runs").exists()


def test_files_are_checked_before_a_run_folder_is_made(place: Path, tmp_path: Path, capsys):
    shutil.copytree(place / "ours", tmp_path / "broken")
    (tmp_path / "broken" / "edits" / "1.mp4").unlink()
    write(tmp_path / "broken" / "edits" / "extra.mp4", moving())
    assert main(["broken", *QUIET]) == 2
    assert "1.mp4" in capsys.readouterr().err and not (place / "runs").exists()


def test_help_and_a_bad_setting_answer_without_heavy_imports(tmp_path: Path):
    code = (
        "import sys\nfrom ivedit.evaluate import main\n"
        "try: code = main(sys.argv[1:])\nexcept SystemExit as leave: code = leave.code\n"
        "print([name for name in ('torch', 'numpy', 'mlflow') if name in sys.modules], code)"
    )
    for arguments, status in ((["--help"], 0), (["x", "judge.repeats=0"], 2), (["nowhere"], 2)):
        command = [sys.executable, "-c", code, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True, env=environment)
        assert done.stdout.splitlines()[-1] == f"[] {status}", done.stderr


@pytest.mark.slow
def test_an_interrupted_judge_says_how_to_go_on(place: Path, oracle: OracleServer):
    """A real process, interrupted while a slow judge thinks, then gone on with as it says."""
    import signal

    interrupted, answer = threading.Event(), oracle.oracle.answer

    def think(body):
        if oracle.oracle.asked > 4:
            interrupted.wait(120)
        return answer(body)

    oracle.oracle.answer = think  # type: ignore[method-assign]
    arguments = ["ours", *QUIET, *JUDGE, f"judge.base_url={oracle.url}", "judge.concurrency=1", "--out", "cut"]
    command = [sys.executable, "-m", "ivedit.evaluate", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while oracle.oracle.asked <= 4 and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    interrupted.set()
    assert child.returncode == 130 and "python -m ivedit.evaluate ours" in err and "Traceback" not in err
    kept = (place / "cut" / RECORD).read_text().count('"event": "reply"')
    assert 1 <= kept < 24
    asked = oracle.oracle.asked
    again = shlex.split(err.strip().splitlines()[-1].partition("python -m ivedit.evaluate ")[2])
    assert "--out" not in again and again[-2:] == ["--record", str(place / "cut" / RECORD)]
    assert main(again) == 0
    assert oracle.oracle.asked - asked == 24 - kept


@pytest.mark.slow
def test_a_run_with_a_judge_ends_with_this_table_and_its_folder_and_editor_can_be_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    from ivedit.run import main as run
    from tests.backbone.tiny import save_pipeline
    from tests.test_run import SMALL

    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "tiny")
    (tmp_path / "small.yaml").write_text(f"backbone: {{path: ./tiny}}\n{SMALL}")
    known = Oracle()
    known.tell(moving(size=(64, 64)).numpy(), moving(size=(64, 64)).numpy())  # AA needs no more than the size
    with OracleServer(known) as server:
        judge = [*JUDGE[:2], f"judge.base_url={server.url}", "judge.metrics=[AA]", "judge.repeats=1"]
        assert run(["experiment=./small.yaml", "train.max_steps=1", *judge]) == 0, capsys.readouterr().err
    assert known.asked == 1 and not known.violations
    (folder,) = (tmp_path / "runs").glob("small-*")
    own, table = json.loads((folder / "results.json").read_text()), results_of(folder)
    assert table["methods"] == ["small"] and 1 <= table["judge"]["rows"]["small"]["AA"]["mean"] <= 5

    def values(results: dict) -> dict:
        return {name: found["mean"] for name, found in results["rows"]["small"]["metrics"].items()}

    assert values(table) == pytest.approx(values(own), abs=2e-5)

    assert main([str(folder), *QUIET]) == 0  # the edits that it kept
    assert values(results_of(only_run(tmp_path))) == values(table)
    shutil.rmtree(only_run(tmp_path))
    shutil.rmtree(folder / "edits")
    assert main([str(folder), *QUIET]) == 0, capsys.readouterr().err  # made again by its editor
    again = results_of(only_run(tmp_path))["rows"]
    ((name, row),) = [(name, row) for name, row in again.items() if row["kind"] == "method"]
    assert name == folder.name
    assert {key: found["mean"] for key, found in row["metrics"].items()} == pytest.approx(values(own), abs=2e-5)
