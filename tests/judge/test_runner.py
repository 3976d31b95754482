"""How a judge is asked: as fast as allowed and no faster, also from a notebook, from the settings alone."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ivedit.config import Config, ConfigError
from ivedit.judge.backends.http import HttpBackend, _retry_after
from ivedit.judge.build import asking_of, build_backend, metrics_of
from ivedit.judge.protocol import METRICS
from ivedit.judge.record import Record
from ivedit.judge.runner import Asking, Pace, judge
from ivedit.judge.showing import Shown
from tests.judge.faults import MODEL, FaultServer, clips

SMALL = Shown(frames=4, smallest=16)
ASKED = [METRICS["AA"]]


def test_calls_start_evenly_and_not_before_a_pause_that_a_server_asks_for():
    pace = Pace(120)
    assert [pace.reserve(10.0) for _ in range(4)] == [0.0, 0.5, 1.0, 1.5]
    assert pace.reserve(12.5) == 0.0 and pace.reserve(12.6) == pytest.approx(0.4)
    pace.hold(20.0)
    assert pace.reserve(13.0) == 7.0 and pace.reserve(13.0) == 7.5
    pace.hold(14.0)  # a shorter pause does not shorten a longer one
    assert pace.reserve(13.0) == 8.0
    free = Pace(None)
    assert [free.reserve(1.0) for _ in range(3)] == [0.0] * 3


def test_a_limit_per_minute_holds_over_the_whole_run():
    with FaultServer() as server:
        asking = Asking(repeats=1, shown=SMALL, per_minute=300, concurrency=8)
        judge(clips(4), ASKED, HttpBackend(server.url, MODEL), None, asking)
    times = sorted(call.time for call in server.calls)
    assert times[-1] - times[0] > 0.3  # 0.6 s between the starts of the first and the last


def test_no_more_questions_are_under_way_than_allowed():
    for limit in (1, 3):
        with FaultServer(delay=0.02) as server:
            judge(clips(8), ASKED, HttpBackend(server.url, MODEL), None, Asking(1, shown=SMALL, concurrency=limit))
        assert 1 <= server.most_under_way <= limit


def test_a_server_that_is_busy_is_left_alone_for_as_long_as_it_says():
    with FaultServer("busy", retry_after=0.3) as server:
        judge(clips(1), ASKED, HttpBackend(server.url, MODEL), None, Asking(1, shown=SMALL, wait=0.001))
    first, second = [call.time for call in server.calls]
    assert second - first >= 0.3


def test_a_server_that_asks_for_hours_is_an_error_and_not_waited_for():
    with FaultServer("busy", retry_after=7200) as server:
        found = judge(clips(1), ASKED, HttpBackend(server.url, MODEL), None, Asking(1, shown=SMALL))
    assert found[0].status == "error" and len(server.calls) == 1 and "429" in found[0].reason


@pytest.mark.parametrize(("header", "low", "high"), [
    ("3", 3, 3), ("0.5", 0.5, 0.5), ("-4", 0, 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ("Wed, 21 Oct 2115 07:28:00 GMT", 1e9, 1e10),
])  # fmt: skip
def test_retry_after_is_seconds_or_a_date(header, low, high):
    assert low <= _retry_after(header) <= high


@pytest.mark.parametrize("header", [None, "", "soon", "nan", "inf", "21 Oct"])
def test_a_retry_after_that_says_nothing_asks_for_nothing(header):
    assert _retry_after(header) is None


def test_it_runs_where_an_event_loop_already_runs_as_in_a_notebook():
    async def cell():
        with FaultServer() as server:
            return judge(clips(1), ASKED, HttpBackend(server.url, MODEL), None, Asking(1, shown=SMALL))

    assert [j.status for j in asyncio.run(cell())] == ["ok"]


def test_one_backend_can_be_asked_twice_and_progress_is_told():
    done = []
    with FaultServer() as server:
        backend = HttpBackend(server.url, MODEL)
        for _ in range(2):
            judge(clips(2), ASKED, backend, None, Asking(2, shown=SMALL), done.append)
    assert sum(done) == 8


def test_cases_are_read_when_their_turn_comes_and_not_kept():
    read = []

    class Lazy:
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int):
            read.append((index, len(server.calls)))
            return clips(40)[index]

    with FaultServer() as server:
        found = judge(Lazy(), ASKED, HttpBackend(server.url, MODEL), None, Asking(1, shown=SMALL, concurrency=2))
    assert len(found) == len(read) == 40
    assert all(place - calls <= 4 for place, (_, calls) in enumerate(read))


def test_a_metric_can_be_asked_about_some_cases_only():
    with FaultServer() as server:
        found = judge(
            clips(4, ("a", "b")), [METRICS["IA"], METRICS["AA"]], HttpBackend(server.url, MODEL), None,
            Asking(1, shown=SMALL), None, lambda case, metric: case.method == "a" or metric.name == "AA",
        )  # fmt: skip
    assert sorted((j.method, j.metric) for j in found) == [("a", "AA")] * 4 + [("a", "IA")] * 4 + [("b", "AA")] * 4


def test_an_interrupted_run_leaves_a_record_that_goes_on(tmp_path):
    class Interrupted(Exception):
        pass

    def stop(done: int) -> None:
        if len(server.calls) >= 3:
            raise Interrupted

    asking = Asking(1, shown=SMALL, concurrency=1)
    with FaultServer() as server:
        with Record(tmp_path / "r") as record, pytest.raises(Interrupted):
            judge(clips(6), ASKED, HttpBackend(server.url, MODEL), record, asking, stop)
        with Record(tmp_path / "r") as record:
            assert len(record.kept.turns) == 3
            assert len(judge(clips(6), ASKED, HttpBackend(server.url, MODEL), record, asking)) == 6
        assert len(server.calls) == 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio")]


def test_the_settings_build_the_judge_that_they_describe(monkeypatch, tmp_path):
    judge_settings = Config().judge
    with pytest.raises(ConfigError, match=r"judge\.backend=none"):
        build_backend(judge_settings)
    judge_settings.backend = "http"
    with pytest.raises(ConfigError, match=r"judge\.base_url"):
        build_backend(judge_settings)
    judge_settings.base_url, judge_settings.model, judge_settings.key_env = "http://host/v1/", "m", "NO_SUCH_KEY"
    judge_settings.temperature, judge_settings.max_tokens, judge_settings.request = 0.2, 99, {"top_k": "5"}
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        build_backend(judge_settings)
    built = build_backend(judge_settings, asks=False)  # a dry run needs no key
    assert isinstance(built, HttpBackend) and str(built.address) == "http://host/v1/chat/completions"
    assert built.sampling == {
        "temperature": 0.2, "top_p": 1.0, "max_tokens": 99, "response_format": "json_schema", "top_k": 5,
    }  # fmt: skip
    judge_settings.frames, judge_settings.requests_per_minute, judge_settings.metrics = 4, 30, ["VF", "IA"]
    asking = asking_of(judge_settings)
    assert (asking.shown.frames, asking.per_minute, asking.repeats, asking.concurrency) == (4, 30, 5, 8)
    assert [metric.name for metric in metrics_of(judge_settings)] == ["VF", "IA"]
    judge_settings.backend, judge_settings.path = "replay", str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no such record"):
        build_backend(judge_settings)
