"""Nothing that a judge answered is lost or asked again, wherever a run is stopped."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from ivedit.errors import ConfigError, IveditError
from ivedit.judge.backends.http import HttpBackend
from ivedit.judge.backends.replay import ReplayBackend
from ivedit.judge.estimate import estimate
from ivedit.judge.protocol import METRICS
from ivedit.judge.record import Record, read_record
from ivedit.judge.runner import Asking, judge
from ivedit.judge.showing import Shown
from tests.judge.faults import MODEL, FaultServer, clips

ROOT = Path(__file__).resolve().parents[2]
ASKED = [METRICS["IA"]]
ASKING = Asking(repeats=2, shown=Shown(frames=4, smallest=16), wait=0.001, attempts=2, concurrency=2)


def ask(server: FaultServer, path: Path, cases=None, **settings):
    with Record(path) as record:
        return judge(cases or clips(2), ASKED, HttpBackend(server.url, MODEL, **settings), record, ASKING)


def test_what_was_answered_is_not_asked_again_and_gives_the_same_judgements(tmp_path):
    with FaultServer("prose") as server:
        first = ask(server, tmp_path / "r")
        count = len(server.calls)
        assert count == 8 and ask(server, tmp_path / "r") == first and len(server.calls) == count
        assert all(j.date for j in first)
        # Another model, other sampling, another clip: other judgements.
        ask(server, tmp_path / "r", temperature=0.1)
        assert len(server.calls) == 2 * count
        ask(server, tmp_path / "r", clips(3))
        assert len(server.calls) == 2 * count + 4


def test_a_failure_is_asked_again_when_the_run_is_started_again(tmp_path):
    with FaultServer("always_500") as server:
        failed = ask(server, tmp_path / "r")
        assert {j.status for j in failed} == {"error"}
        server.scenario = "good"
        assert {j.status for j in ask(server, tmp_path / "r")} == {"ok"}
    kept = read_record(tmp_path / "r")
    assert (len(kept.turns), kept.failures, kept.cut_off) == (4, {}, 0)
    assert kept.calls == len(server.calls) == 4 * 2 + 4


def test_wherever_the_file_is_cut_whole_replies_stay_and_the_rest_is_asked(tmp_path):
    path, one = tmp_path / "r", clips(1)
    with FaultServer("prose") as server:
        whole = ask(server, path, one)
        content = path.read_bytes()
        ends = [i for i, byte in enumerate(content) if byte == 10]
        # Whole lines, a line without its end, a few bytes of the next one.
        for cut in [end + step for end in ends[:-1] for step in (0, 1, 9)] + [ends[-1]]:
            path.write_bytes(content[:cut])
            kept = sum(b'"event": "reply"' in content[start:end] for start, end in pairwise([0, *ends]) if end <= cut)
            before = len(server.calls)
            with Record(path) as record:
                assert len(record.kept.turns) == kept
                found = judge(one, ASKED, HttpBackend(server.url, MODEL), record, ASKING)
            assert len(server.calls) - before == 4 - kept  # half a repaired answer: only the repair is asked
            assert [(j.status, j.value) for j in found] == [(j.status, j.value) for j in whole]
            again = read_record(path)
            assert len(again.turns) == 4 and again.damaged <= 1


def test_calls_that_a_stop_cut_off_are_counted(tmp_path):
    path = tmp_path / "r"
    with FaultServer() as server:
        ask(server, path)
        lines = path.read_text().splitlines(keepends=True)
        asked = [i for i, line in enumerate(lines) if '"asked"' in line]
        path.write_text("".join(lines[: asked[1] + 1]))  # two asked, none answered
        ask(server, path)
    kept = read_record(path)
    assert kept.cut_off == 2 and len(kept.sessions) == 2 and len(kept.turns) == 4


def test_equal_frames_of_two_methods_are_asked_about_once(tmp_path):
    one, other = clips(2), clips(2, ("b",))
    cases = [*one, *other]  # `b` made the same pixels
    with FaultServer() as server, Record(tmp_path / "r") as record:
        backend = HttpBackend(server.url, MODEL)
        planned = estimate(cases, ASKED, backend, record.kept, ASKING)
        found = judge(cases, ASKED, backend, record, ASKING)
        assert len(server.calls) == 4 == planned.calls and planned.stored == 4
        assert len(found) == 8 and {j.method for j in found} == {"a", "b"}
        assert estimate(cases, ASKED, backend, record.kept, ASKING).calls == 0


def test_an_estimate_is_what_is_then_sent_and_asks_nothing(tmp_path):
    metrics = list(METRICS.values())
    with FaultServer() as server:
        backend = HttpBackend(server.url, MODEL, max_tokens=100)
        planned = estimate(clips(3), metrics, backend, None, ASKING)
        assert server.calls == []
        judge(clips(3), metrics, backend, None, ASKING)
        pictures = sum(
            part["type"] == "image_url" for body in server.bodies for part in body["messages"][0]["content"]
        )
    assert (planned.questions, planned.calls, planned.images) == (24, len(server.calls), pictures)
    assert planned.answer_tokens == 2400 and planned.prompt_tokens > planned.images
    assert "24 calls" in planned.text() and f"{pictures} images" in planned.text()


def test_a_replay_scores_the_record_and_asks_nobody(tmp_path):
    with FaultServer(0.5, stall=0.05) as server:
        found = ask(server, tmp_path / "r", clips(12))
    again = judge(clips(12), ASKED, ReplayBackend(tmp_path / "r"), None, ASKING)
    assert again == found and len({j.status for j in found}) > 1
    other = judge(clips(13), ASKED, ReplayBackend(tmp_path / "r"), None, ASKING)
    assert [j.status for j in other[24:]] == ["error"] * 2 and "no reply to this question" in other[-1].reason


def test_a_record_of_several_judges_is_replayed_by_name(tmp_path):
    for name in ("one", "two"):
        with FaultServer(model=name) as server, Record(tmp_path / "r") as record:
            judge(clips(1), ASKED, HttpBackend(server.url, name), record, ASKING)
    with pytest.raises(ConfigError, match="several judges"):
        ReplayBackend(tmp_path / "r")
    with pytest.raises(ConfigError, match="no judge three"):
        ReplayBackend(tmp_path / "r", "three")
    assert ReplayBackend(tmp_path / "r", "two").model == "two"
    with pytest.raises(ConfigError, match="no such record"):
        ReplayBackend(tmp_path / "nowhere")


def test_two_runs_do_not_write_one_record(tmp_path):
    with Record(tmp_path / "r"):
        code = f"from ivedit.judge.record import Record; Record({str(tmp_path / 'r')!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode != 0 and "being written by another evaluation" in done.stderr
    with Record(tmp_path / "r"):
        pass


OTHERS = [b'{"step": 1}\n', b"\x00\x01 no text\n", b"[1]\n", b'{"event": "other"}\n', b"5\n"]


@pytest.mark.parametrize("content", OTHERS)
def test_another_file_is_not_taken_for_a_record_nor_written_to(content: bytes, tmp_path):
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(IveditError, match="no judge's record"):
        Record(tmp_path / "r")
    assert (tmp_path / "r").read_bytes() == content


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "r"):
        with pytest.raises(IveditError, match=r"cannot (read|write) the judge's record"):
            Record(place)


def test_any_text_of_a_judge_can_be_kept(tmp_path):
    from ivedit.judge.backends.base import Reply

    texts = ["\ud800 half a pair", "new\nline\r\x00\u2028", "日本 é", ""]
    with Record(tmp_path / "r") as record:
        record.start({})
        for i, text in enumerate(texts):
            record.reply(f"k{i}", 0, Reply(text), 1, {})
    kept = read_record(tmp_path / "r")
    assert [kept.turns[f"k{i}", 0].text for i in range(len(texts))] == texts
    assert all(json.loads(line) for line in (tmp_path / "r").read_bytes().splitlines())


def test_a_judge_killed_and_started_again_loses_nothing_asks_nothing_twice_and_scores_right(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "judge_faults.py"), "--cases", "3", "--kills", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    # On a busy machine the process can be done before the second kill reaches it.
    assert report["judgements"] == 60 and report["kills"] in (1, 2) and report["faulty_questions"] > 5
    assert report["judgements_by_repeat"] == {str(i): 12 for i in range(5)}


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("judge_faults", ROOT / "benchmarks" / "judge_faults.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stored_proof_is_of_500_judgements_and_ten_kills_and_stands_on_its_page(benchmark):
    report = json.loads((ROOT / "benchmarks" / "records" / "judge_faults.json").read_text())
    assert benchmark.failures(report) == []
    assert (report["judgements"], report["kills"]) == (500, 10) and report["faulty_questions"] >= 140
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for name, value in (("questions with a fault", report["faulty_questions"]), ("wrong scores", 0),
                        ("counted by the record", report["replies_lost_to_kills"])):  # fmt: skip
        assert f"{name} | {value} |" in page
    assert f"in {report['kinds_of_fault']}\n" in page


def test_the_proof_finds_what_it_looks_for(benchmark):
    good = json.loads((ROOT / "benchmarks" / "records" / "judge_faults.json").read_text())
    for change in (
        {"wrong_scores": 1}, {"persisted_replies_asked_again": 1}, {"persisted_replies_lost": 1},
        {"judgements_in_a_wrong_state": 1}, {"statuses": {"ok": 500}},
        {"replies_lost_to_kills": good["calls_cut_off_as_recorded"] + 1},
        {"calls_cut_off_as_recorded": good["most_calls_that_kills_may_cost"] + 1},
    ):  # fmt: skip
        assert len(benchmark.failures({**good, **change})) == 1, change
