"""The anchors over real HTTP: a judge that knows is believed, and each way of being wrong is found out.

The oracle checks what it is sent, so these tests also hold the whole way of a picture to the judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from ivedit.judge.anchor_scenes import MaskedScenes, sprite_scenes
from ivedit.judge.anchors import RELATIONS, AnchorCases, Anchored, judge_anchors, verdict, verdicts_text
from ivedit.judge.backends.http import HttpBackend
from ivedit.judge.judgements import Asking
from ivedit.judge.protocol import METRICS
from ivedit.judge.record import Record
from ivedit.judge.showing import Shown
from ivedit.judge.verdict import NOT_PROVEN, NOT_VALID, VALID, read_verdicts, write_verdicts
from tests.judge.moving_photographs import panned_clips
from tests.judge.oracle import Oracle, OracleServer, disordered, swapped

SHOWN = Shown(smallest=64)  # the oracle needs no enlarged sprites, and the test gets faster
ASKING = Asking(repeats=1, shown=SHOWN, attempts=1, concurrency=4)
SCENES = sprite_scenes(40)


@contextmanager
def serving(oracle: Oracle, scenes=SCENES) -> Iterator[HttpBackend]:
    for scene in scenes:
        oracle.tell(scene.source, scene.truth, words=(scene.name, *(f"A{i}" for i in range(9))))
    with OracleServer(oracle) as server:
        yield HttpBackend(server.url, "oracle-1", temperature=0.0, max_tokens=256)


def asked(oracle: Oracle, names=tuple(METRICS), scenes=SCENES, record=None) -> Anchored:
    """The verdicts of an oracle that is shown as many moments as it expects."""
    metrics = [METRICS[name] for name in names]
    asking = replace(ASKING, shown=replace(SHOWN, frames=oracle.moments))
    with serving(oracle, scenes) as backend:
        return judge_anchors(AnchorCases(scenes, names), metrics, backend, record, asking)


def test_a_judge_that_knows_has_every_relation_right_on_forty_pairs(tmp_path):
    oracle = Oracle()
    with Record(tmp_path / "judge.jsonl") as record:
        result = asked(oracle, record=record)
    assert oracle.violations == []
    assert oracle.asked == 40 * (4 + 4 + 4 + 2) == len(result.judgements)
    assert AnchorCases(SCENES, list(METRICS)).questions(list(METRICS)) == oracle.asked  # what a progress bar ends at
    assert [one.metric for one in result.verdicts] == ["IA", "TC", "VF", "AA"]
    for one in result.verdicts:
        assert one.state == VALID, verdicts_text(result.verdicts)
        assert [(r.better, r.worse) for r in one.relations] == list(RELATIONS[one.metric])
        assert all((r.accuracy, r.pairs, r.lost) == (1.0, 40, 0) for r in one.relations)


def test_a_judge_that_sees_red_as_blue_is_not_valid_for_what_depends_on_colour():
    result = asked(Oracle(eyes=swapped, moments=4), ("IA",))
    (ia,) = result.verdicts
    assert ia.state == NOT_VALID
    assert all(r.accuracy < 0.8 for r in ia.relations)


def test_a_judge_that_mixes_up_the_pictures_is_not_valid_for_what_depends_on_their_order():
    result = asked(Oracle(eyes=disordered, moments=4), ("IA", "TC"))
    assert [one.state for one in result.verdicts] == [NOT_VALID] * 2
    assert all(r.accuracy < 0.8 for one in result.verdicts for r in one.relations)


def test_a_judge_that_answers_the_same_to_everything_is_valid_for_nothing():
    result = asked(Oracle(constant=3, moments=2))
    assert [one.state for one in result.verdicts] == [NOT_VALID] * 4
    assert all(r.right == 0 for one in result.verdicts for r in one.relations)


def test_pictures_arrive_whole_as_they_are_shown_by_default():
    oracle = Oracle()
    with serving(oracle, SCENES[:2]) as backend:
        cases = AnchorCases(SCENES[:2], list(METRICS))
        result = judge_anchors(cases, list(METRICS.values()), backend, None, Asking(repeats=1, attempts=1))
    assert oracle.violations == []
    assert all(r.accuracy == 1.0 for one in result.verdicts for r in one.relations)


def test_photographs_of_a_user_serve_as_anchors_too():
    scenes = list(MaskedScenes(panned_clips(8)))
    oracle = Oracle(moments=4)
    result = asked(oracle, scenes=scenes)
    assert oracle.violations == []
    for one in result.verdicts:
        assert one.state == NOT_PROVEN  # eight clips are not forty
        assert all(r.accuracy == 1.0 and r.pairs == 8 for r in one.relations), verdicts_text(result.verdicts)


# -- mistakes on our side of the wire, planted --------------------------------------------------------------------


def _swap_colours(parts):
    return [part if isinstance(part, str) else replace(part, frame=part.frame[::-1]) for part in parts]


def _swap_pictures(parts):
    pictures = [part for part in parts if not isinstance(part, str)]
    frames = iter([picture.frame for picture in pictures[::-1]])
    return [part if isinstance(part, str) else replace(part, frame=next(frames)) for part in parts]


def _drop_a_picture(parts):
    last = max(i for i, part in enumerate(parts) if not isinstance(part, str))
    return [*parts[:last], *parts[last + 1 :]]


def _exchange_labels(parts):
    exchange = {"Source": "Edit", "Edit": "Source", "Reference": "Edit"}
    return [
        part if isinstance(part, str)
        else replace(part, label=" ".join([exchange[part.label.split()[0]], part.label.split()[1]]))
        for part in parts
    ]  # fmt: skip


def _name_the_kind(parts):
    return [*parts, "This is A2."]


def _shift_in_time(parts):
    """Every method shows its frames, but those of another moment."""
    frames = [part.frame for part in parts if not isinstance(part, str)]
    moved = iter([*frames[2:], *frames[:2]])
    return [part if isinstance(part, str) else replace(part, frame=next(moved)) for part in parts]


@pytest.mark.parametrize("name", ["IA", "TC", "VF"])
@pytest.mark.parametrize(
    "fault", [_swap_colours, _swap_pictures, _drop_a_picture, _exchange_labels, _name_the_kind, _shift_in_time]
)
def test_a_mistake_on_the_way_to_the_judge_cannot_pass(monkeypatch, name, fault):
    metric = METRICS[name]

    def show(case, shown):
        parts, frames = metric.show(case, shown)
        return fault(parts), frames

    oracle = Oracle()
    with serving(oracle, SCENES[:2]) as backend:
        result = judge_anchors(AnchorCases(SCENES[:2], [name]), [replace(metric, show=show)], backend, None, ASKING)
    assert {judgement.status for judgement in result.judgements} == {"error"}
    assert len(oracle.violations) == len(result.judgements) > 0
    assert result.verdicts[0].state == NOT_PROVEN


# -- verdicts -----------------------------------------------------------------------------------------------------


def means(right: int, tied: int, wrong: int, lost: int = 0) -> dict[tuple[str, str], float]:
    scores = [(5.0, 4.0)] * right + [(4.0, 4.0)] * tied + [(3.0, 4.0)] * wrong + [(math.nan, 4.0)] * lost
    better = {(f"s{i}", "A1"): pair[0] for i, pair in enumerate(scores)}
    return better | {(f"s{i}", "A7"): pair[1] for i, pair in enumerate(scores)}


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ((40, 0, 0), VALID),
        ((36, 0, 4), VALID),  # 90%, at least 0.77
        ((35, 0, 5), NOT_VALID),
        ((36, 4, 0), VALID),
        ((35, 5, 0), NOT_VALID),  # a tie is not the right order
        ((36, 0, 0, 4), VALID),
        ((35, 0, 0, 5), NOT_VALID),  # nor is a pair without a score
        ((0, 400, 0), NOT_VALID),
        ((39, 0, 0), NOT_PROVEN),
        ((0, 0, 39), NOT_PROVEN),
        ((), NOT_PROVEN),
    ],
)
def test_a_metric_is_valid_with_forty_pairs_of_which_nine_in_ten_are_in_the_right_order(counts, state):
    found = verdict(METRICS["AA"], means(*counts) if counts else {}, SHOWN)
    assert found.state == state
    (relation,) = found.relations
    assert relation.pairs == sum(counts) and relation.lost == (counts[3] if len(counts) == 4 else 0)


def test_one_relation_that_fails_is_enough_and_is_named():
    scores = {(f"s{i}", kind): 5.0 - (kind != "A1") for i in range(44) for kind in ("A1", "A4", "A5", "A6")}
    good = verdict(METRICS["TC"], scores, SHOWN)
    blind = verdict(METRICS["TC"], {**scores, **{(f"s{i}", "A5"): 5.0 for i in range(44)}}, SHOWN)
    assert (good.state, blind.state) == (VALID, NOT_VALID)
    assert "A1 over A5" in blind.text()
    text = verdicts_text([good, blind])
    assert "! A1 true edit over A5 shuffled or reversed: 0 of 44, at least 0.00" in text
    assert text.count("!") == 1


def test_a_verdict_is_kept_for_this_judge_and_this_way_of_showing_only(tmp_path):
    metrics = [METRICS["AA"]]
    found = verdict(metrics[0], means(40, 0, 0), SHOWN)
    file = tmp_path / "anchors.json"
    write_verdicts(file, "m", {"temperature": 0.0}, [found])
    read = lambda model, sampling, shown: read_verdicts(file, model, sampling, metrics, shown)["AA"].state  # noqa: E731
    assert read("m", {"temperature": 0.0}, SHOWN) == VALID
    assert read("other", {"temperature": 0.0}, SHOWN) == NOT_PROVEN
    assert read("m", {"temperature": 1.0}, SHOWN) == NOT_PROVEN
    assert read("m", {"temperature": 0.0}, Shown()) == NOT_PROVEN


def test_cases_are_made_for_the_relations_alone():
    cases = AnchorCases(SCENES[:3], ["AA"])
    assert sorted({cases[i].method for i in range(len(cases))}) == ["A1", "A7"] and len(cases) == 6
    assert len(AnchorCases(SCENES[:3], list(METRICS))) == 27
    assert len({AnchorCases(SCENES[:3], list(METRICS))[i].id for i in range(27)}) == 27
    copy = AnchorCases(SCENES[:1], ["IA"])[0]
    assert copy.method == "A0" and np.array_equal(copy.edited, copy.source)
