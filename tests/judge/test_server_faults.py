"""Whatever a server does, a judgement ends in the state it must, with the score that the pixels have or with none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.errors import ConfigError, IveditError
from ivedit.judge.backends.base import NoReply
from ivedit.judge.backends.http import HttpBackend
from ivedit.judge.backends.replay import ReplayBackend
from ivedit.judge.protocol import METRICS
from ivedit.judge.record import Record
from ivedit.judge.runner import Asking, judge
from ivedit.judge.showing import Shown
from tests.judge.faults import FAULTS, MODEL, SCENARIOS, FaultServer, clips, truth

EVERY = list(METRICS.values())
SMALL = Shown(frames=4, smallest=16)
FAST = Asking(repeats=1, shown=SMALL, wait=0.005, attempts=4, concurrency=4)


def backend(server: FaultServer, **changes) -> HttpBackend:
    return HttpBackend(server.url, MODEL, **{"timeout": 20, **changes})


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_fault_ends_in_its_state_and_never_in_a_wrong_score(scenario: str, tmp_path):
    status, repaired = SCENARIOS[scenario]
    cases = clips(2)
    with FaultServer(scenario, stall=3) as server, Record(tmp_path / "r.jsonl") as record:
        asked = backend(server, timeout=1.5 if scenario == "stall" else 20)
        found = judge(cases, [METRICS["IA"], METRICS["VF"]], asked, record, FAST)
    assert [j.status for j in found] == [status] * 4, found
    assert all(j.repaired == repaired for j in found)
    by_id = {case.id: case for case in cases}
    for j in found:
        assert j.value == (truth(by_id[j.case_id], j.repeat) if status == "ok" else None)
        assert (j.reason is None) == (status == "ok")
    assert replayed(tmp_path / "r.jsonl", cases, [METRICS["IA"], METRICS["VF"]]) == found


def replayed(path, cases, metrics, asking=FAST):
    return judge(cases, metrics, ReplayBackend(path), None, asking)


def test_every_kind_of_fault_among_good_replies_leaves_exact_states_and_right_scores(tmp_path):
    cases = clips(12, ("a", "b"))
    by_id = {case.id: case for case in cases}
    with FaultServer(0.5, stall=4) as server, Record(tmp_path / "r.jsonl") as record:
        found = judge(cases, EVERY, backend(server, timeout=3), record, FAST)
        scenarios = {call.question: call.scenario for call in server.calls}
    assert len(found) == 24 * 4 == len(scenarios)
    assert len(set(scenarios.values())) > len(FAULTS) // 2
    wanted = sorted(SCENARIOS[scenario][0] for scenario in scenarios.values())
    assert sorted(j.status for j in found) == wanted
    assert all(j.value == truth(by_id[j.case_id], j.repeat) for j in found if j.status == "ok")
    assert all(j.value is None and j.values is None for j in found if j.status != "ok")
    assert replayed(tmp_path / "r.jsonl", cases, EVERY) == found


@pytest.mark.parametrize("scenario", ["bad_request", "always_prose"])
def test_a_key_comes_from_the_environment_and_stays_out_of_records_even_when_a_server_repeats_it(
    scenario, tmp_path, monkeypatch
):
    monkeypatch.setenv("JUDGE_SECRET", "sk-very-secret")
    with FaultServer(scenario) as server, Record(tmp_path / "r.jsonl") as record:
        found = judge(clips(1), [METRICS["IA"]], backend(server, key_env="JUDGE_SECRET"), record, FAST)
        assert {call.headers["Authorization"] for call in server.calls} == {"Bearer sk-very-secret"}
    stored = (tmp_path / "r.jsonl").read_text()
    assert "secret" not in stored + str(found) and "Bearer ***" in stored


def test_a_server_on_this_machine_is_reached_whatever_proxy_is_set(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with FaultServer() as server:
        assert judge(clips(1), [METRICS["IA"]], backend(server), None, FAST)[0].status == "ok"


@pytest.mark.parametrize(("settings", "said"), [
    ({"base_url": "ftp://host/v1"}, "base_url"),
    ({"base_url": "host:8000"}, "base_url"),
    ({"base_url": "http://me:word@host/v1"}, "key_env"),
    ({"base_url": "http://host:99999999/v1"}, "base_url"),
    ({"key_env": "NO_SUCH_VARIABLE_HERE"}, "NO_SUCH_VARIABLE_HERE"),
    ({"key_env": "sk-123-key"}, "names the variable"),
    ({"request": {"stop": "word"}}, "not JSON"),
    ({"request": {"messages": "[]"}}, "messages"),
    ({"request": {"api_key": '"sk-123"'}}, "key_env"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused_by_name_and_no_secret_is_repeated(settings, said):
    with pytest.raises(ConfigError, match=said) as refused:
        HttpBackend(**{"base_url": "http://host/v1", "model": MODEL, **settings})
    assert "word@" not in str(refused.value) and "sk-123" not in str(refused.value)


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_what_fails_for_every_question_stops_at_once_and_says_what_to_change(status, tmp_path):
    with FaultServer() as server, Record(tmp_path / "r.jsonl") as record:
        server.answer = lambda handler: refuse(handler, status)  # type: ignore[method-assign]
        with pytest.raises(IveditError, match=str(status)):
            judge(clips(8), EVERY, backend(server), record, FAST)
    assert record.kept.calls <= FAST.concurrency


def refuse(handler, status):
    from tests.judge.faults import _write

    handler.rfile.read(int(handler.headers["Content-Length"]))
    _write(handler, status, {"error": {"message": "no"}}, {"Location": "http://elsewhere/"})


def test_a_server_that_only_fails_is_left_after_thirty_questions_and_answers_are_kept(tmp_path):
    with FaultServer("always_500") as server, Record(tmp_path / "r.jsonl") as record:
        with pytest.raises(IveditError, match=r"last 3\d questions all failed: the server answered 500"):
            judge(clips(40), EVERY, backend(server), record, FAST)
        assert len({call.question for call in server.calls}) <= 30 + FAST.concurrency


def test_nobody_at_the_address_is_told_in_one_line(tmp_path):
    with FaultServer() as server:
        url = server.url
    asking = Asking(repeats=1, shown=SMALL, wait=0.001, attempts=2, concurrency=1)
    with Record(tmp_path / "r.jsonl") as record, pytest.raises(IveditError, match="the connection failed"):
        judge(clips(40), EVERY, HttpBackend(url, MODEL), record, asking)
    assert record.kept.calls == 2  # one question was enough


def test_a_dated_name_of_the_model_is_its_own_and_another_model_is_not():
    for said, status in (("fault-judge-2024-08-06", "ok"), ("fault-judge-mini", "error"), ("fault-judge-7b", "error")):
        with FaultServer(model=said) as server:
            found = judge(clips(1), [METRICS["IA"]], backend(server), None, FAST)
            assert [(j.status, j.model) for j in found] == [(status, said)]


def test_replies_under_another_name_are_kept_and_count_once_the_name_is_said_to_be_right(tmp_path):
    asked = [METRICS["IA"]]
    with FaultServer(model="served") as server:
        for settings, statuses, calls in (
            ({}, {"error"}, 3), ({"returned_model": "served"}, {"ok"}, 3), ({"returned_model": "x"}, {"error"}, 6),
        ):  # fmt: skip
            with Record(tmp_path / "r") as record:
                found = judge(clips(3), asked, backend(server), record, replace(FAST, **settings))
            assert {j.status for j in found} == statuses and len(server.calls) == calls
    assert "set judge.returned_model=served" in found[0].reason


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from(["choices", "message", "content", "text", "type", "error", "usage"]), inner),
    max_leaves=8,
)
MESSAGES = st.fixed_dictionaries({}, optional={"content": ANY, "refusal": ANY, "role": ANY})
CHOICES = st.lists(st.fixed_dictionaries({}, optional={"message": MESSAGES | ANY, "finish_reason": ANY}), max_size=2)
BODIES = st.fixed_dictionaries(
    {}, optional={"choices": CHOICES | ANY, "model": ANY, "usage": ANY, "id": ANY, "error": ANY}
)


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(BODIES.map(json.dumps).map(str.encode) | ANY.map(json.dumps).map(str.encode) | st.binary(max_size=30),
       st.sampled_from([200, 200, 200, 400, 404, 429, 500, 302]))  # fmt: skip
def test_whatever_a_server_sends_is_a_reply_that_can_be_kept_or_none(content, status):
    try:
        reply = HttpBackend("http://host/v1", MODEL)._reply(status, {}, content)
    except NoReply as error:
        assert error.reason and "\n" not in error.reason
        return
    for value in (reply.text, reply.model, reply.finish_reason, reply.refusal, reply.id):
        assert value is None or type(value) is str
    assert all(type(count) is int for count in reply.usage.values())
    assert status == 200 or reply.finish_reason == "content_filter"
