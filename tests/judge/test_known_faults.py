"""Faults that published judges have, planted one by one: the check that ours passes finds each of them."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from ivedit.judge import protocol, runner
from ivedit.judge.answers import Answer, Unparsed
from ivedit.judge.backends.http import HttpBackend
from ivedit.judge.protocol import METRICS
from ivedit.judge.runner import Asking, judge
from ivedit.judge.scores import TableRefused, score_table
from ivedit.judge.showing import LabelledImage, Shown
from tests.judge.faults import MODEL, SCENARIOS, FaultServer, clips, truth

ASKING = Asking(repeats=2, shown=Shown(frames=4, smallest=16), wait=0.001, attempts=2)
ASKED = [METRICS["IA"], METRICS["AA"]]


def complaints(scenario: str, metrics=ASKED) -> list[str]:
    """What is wrong with judging two methods through a server with this scenario."""
    cases = clips(3, ("a", "b"))
    by_id = {case.id: case for case in cases}
    with FaultServer(scenario) as server:
        found = runner.judge(cases, metrics, HttpBackend(server.url, MODEL), None, ASKING)
        bodies = server.bodies
    wrong = []
    if len(found) != len(cases) * len(metrics) * ASKING.repeats:
        wrong.append("judgements are missing")
    for j in found:
        if j.status != SCENARIOS[scenario][0]:
            wrong.append(f"the state is {j.status}")
        if j.value is not None and (j.status != "ok" or j.value != truth(by_id[j.case_id], j.repeat)):
            wrong.append(f"the score {j.value} was never given")
    shown = [sum(part["type"] == "image_url" for part in body["messages"][0]["content"]) for body in bodies]
    if len(set(shown)) > len(metrics):
        wrong.append("methods are shown by different numbers of frames")
    return wrong


# -- the faults -------------------------------------------------------------------------------------------------


def lenient(read: Callable[[str], float | None]):
    """A parser that finds a score in whatever is written."""

    def parse(text, schema):
        try:
            values = json.loads(text)
        except (TypeError, ValueError):
            values = {}
        score = values.get("score", read(text or "")) if isinstance(values, dict) else read(text or "")
        score = read(json.dumps(score)) if not isinstance(score, (int, float)) else score
        return Unparsed("nothing found") if score is None else Answer({"observations": "", "score": score})

    return parse


def first_number(text: str) -> float | None:
    found = re.search(r"\d+(\.\d+)?", text)
    return float(found[0]) if found else None


def plant_first_number(patch):
    """"5 / 2" is read as 5, "2 dogs. Score: 4" as 2."""
    patch.setattr(runner, "parse", lenient(first_number))


def plant_random_score(patch):
    """A random score after a failed parse."""
    draw = random.Random(0)
    patch.setattr(runner, "parse", lenient(lambda text: draw.randint(1, 5)))


def plant_score_out_of_range(patch):
    """12.5 of 10, 7 of 5: taken as they are."""
    patch.setattr(runner, "parse", lenient(lambda text: None))


def plant_middle_of_the_scale(patch):
    """A mid-scale score where a call failed."""
    ask = runner._Session._outcome

    async def outcome(self, *arguments):
        found = await ask(self, *arguments)
        if found.status == "error":
            return runner._Outcome("ok", Answer({"observations": "", "score": 3}))
        return found

    patch.setattr(runner._Session, "_outcome", outcome)


def plant_red_for_blue(patch):
    """OpenCV's channel order on the way to the judge."""

    def png(self) -> bytes:
        file = io.BytesIO()
        PIL.Image.fromarray(np.ascontiguousarray(self.frame[::-1].transpose(1, 2, 0))).save(file, "PNG")
        return file.getvalue()

    patch.setattr(LabelledImage, "png", property(png))


def plant_other_frames(patch):
    """One method is shown by fewer frames than the other."""
    evenly = protocol.evenly
    show = METRICS["IA"].show

    def fewer(case, shown):
        patch.setattr(protocol, "evenly", lambda length, count: evenly(length, count - (case.method == "b")))
        return show(case, shown)

    patch.setitem(METRICS, "IA", replace(METRICS["IA"], show=fewer))


def plant_dropped_rows(patch):
    """What failed is left out."""
    patch.setattr(runner, "judge", lambda *arguments: [j for j in judge(*arguments) if j.status == "ok"])


def plant_filtered_is_scored(patch):
    """An answer that a filter cut off, or the server says is unfinished, counts."""

    def read(reply, question):
        return runner._Outcome("ok", runner.parse(reply.text, question.schema))

    patch.setattr(runner, "_read", read)


PLANTED = {
    plant_first_number: ["prose", "prose_fraction", "always_prose"],
    plant_random_score: ["always_prose", "schema_ignored", "empty"],
    plant_score_out_of_range: ["half_points", "seven_of_five", "float"],
    plant_middle_of_the_scale: ["always_500", "bad_request", "wrong_model"],
    plant_red_for_blue: ["good"],
    plant_other_frames: ["good"],
    plant_dropped_rows: ["always_prose", "refusal", "filter"],
    plant_filtered_is_scored: ["filter", "length", "always_length"],
}
CASES = [(plant, scenario) for plant, scenarios in PLANTED.items() for scenario in scenarios]


@pytest.mark.parametrize("scenario", sorted({scenario for scenarios in PLANTED.values() for scenario in scenarios}))
def test_ours_has_none_of_them(scenario: str):
    assert complaints(scenario) == []


@pytest.mark.parametrize(("plant", "scenario"), CASES, ids=[f"{p.__name__[6:]}-{s}" for p, s in CASES])
def test_each_is_found_when_it_is_planted(plant, scenario, monkeypatch):
    plant(monkeypatch)
    assert complaints(scenario, [METRICS["IA"], METRICS["AA"]])


def test_a_table_is_refused_when_failed_rows_are_dropped_from_it_or_fill_it(monkeypatch):
    cases = clips(3, ("a", "b"))
    with FaultServer("always_prose") as server:
        found = judge(cases, ASKED, HttpBackend(server.url, MODEL), None, ASKING)
    with pytest.raises(TableRefused, match=r"lacks 6 of 6 judgements \(6 unparsed\)"):
        score_table(found, ASKED)
