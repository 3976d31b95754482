"""A text is an answer only when it is exactly one; anything else has no score, whatever numbers stand in it."""

from __future__ import annotations

import json
import math
import random
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ivedit.judge.answers import Answer, Unparsed, answer_schema, parse
from ivedit.judge.protocol import METRICS

SCHEMA = METRICS["IA"].schema(8)
GOOD = {"observations": "the ball is red, 3 of 8 frames", "score": 4, "evidence_frames": [1, 8]}


def changed(**values) -> str:
    return json.dumps({**GOOD, **values})


def test_a_valid_object_is_an_answer_alone_or_in_one_fence():
    whole = json.dumps(GOOD)
    for text in (whole, f" \n{whole}\n", f"```json\n{whole}\n```", f"```\n{whole}\n```", json.dumps(GOOD, indent=2)):
        found = parse(text, SCHEMA)
        assert isinstance(found, Answer) and found.values == GOOD
        assert (found.observations, found.evidence) == (GOOD["observations"], (1, 8))


@pytest.mark.parametrize("text", [
    None, "", "   ", "5", "5 / 2", "2 dogs. Score: 4", "Score: 4", "12.5", "4 out of 5", "null", "[4]", "true",
    changed(score=True), changed(score=False), changed(score=4.0), changed(score=12.5), changed(score="4"),
    changed(score=7), changed(score=0), changed(score=-1), changed(score=None), changed(score=[4]), changed(score={}),
    changed(score=math.nan), changed(score=math.inf), changed(score=10**300),
    '{"observations": "x", "score": 1e400, "evidence_frames": []}',
    '{"observations": "x", "score": 4, "score": 5, "evidence_frames": []}',
    '{"observations": "x", "score": ' + "9" * 5000 + ', "evidence_frames": []}',
    '{"observations": "x", "evidence_frames": []}', '{"score": 4}', '{"observations": "x", "score": 4}',
    changed(confidence=1), changed(observations=4), changed(evidence_frames=[9]), changed(evidence_frames=[True]),
    changed(evidence_frames="1"), changed(evidence_frames=[1.0]), json.dumps(GOOD) + json.dumps(GOOD),
    json.dumps(GOOD)[:-1], "Here it is: " + json.dumps(GOOD), json.dumps(GOOD) + " I hope this helps.",
    f"```json\n{json.dumps(GOOD)}\n```\n```json\n{changed(score=1)}\n```", "```json\n4\n```", "[" * 100_000,
    '{"a":' * 50_000, json.dumps({"answer": GOOD}), json.dumps(json.dumps(GOOD)),
])  # fmt: skip
def test_what_is_not_exactly_an_answer_has_no_score_and_one_line_says_why(text):
    found = parse(text, SCHEMA)
    assert isinstance(found, Unparsed), found
    assert found.reason and "\n" not in found.reason and len(found.reason) < 300


def test_words_are_choices_as_well_as_numbers():
    schema = answer_schema({"better": ("first", "second", "tie")}, 4)
    text = '{"observations": "", "better": "%s", "evidence_frames": []}'
    assert parse(text % "tie", schema).values["better"] == "tie"
    assert isinstance(parse(text % "third", schema), Unparsed)
    assert list(schema["properties"]) == schema["required"] == ["observations", "better", "evidence_frames"]


# -- fuzz -------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner:
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["score", "observations", "x"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
OBJECTS = st.fixed_dictionaries(
    {}, optional={"observations": st.text(max_size=8) | JSON, "score": st.integers(-2, 8) | JSON,
                  "evidence_frames": st.lists(st.integers(-1, 10), max_size=3) | JSON, "preserve": JSON},
)  # fmt: skip
NEAR = OBJECTS.map(json.dumps)
WRAPPED = st.tuples(st.sampled_from(["{}", "```json\n{}\n```", "{} ", "Sure! {}", "{}{}"]), NEAR).map(
    lambda t: t[0].replace("{}", t[1])
)
TEXTS = st.text(max_size=40) | WRAPPED
VALID = json.dumps(GOOD)


def damaged(text: str, draw: random.Random) -> str:
    """One to three places of the text, or of a valid answer, lost, doubled or overwritten."""
    text = draw.choice([text, VALID])
    for _ in range(draw.randint(1, 3)):
        start = draw.randint(0, len(text))
        end = min(len(text), start + draw.randint(0, 4))
        middle = draw.choice(["", text[start:end] * 2, *'0123456789.-",:{}[]` \n', "true", "NaN", "e1"])
        text = text[:start] + middle + text[end:]
    return text


def independent(text: str) -> bool:
    """Whether the text is an answer, by another route: a token-level grammar of exactly the objects allowed."""
    body = text.strip()
    if body.startswith("```") and body.endswith("```") and body.count("```") == 2 and "\n" in body:
        head, _, rest = body.partition("\n")
        if head[3:].strip() not in ("", "json", "JSON"):
            return False
        body = rest[:-3]
    space, string = r"[ \t\r\n]*", r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
    values = {
        "observations": string, "score": "[1-5]",
        "evidence_frames": rf"\[{space}(?:[1-8]{space}(?:,{space}[1-8]{space})*)?\]",
    }  # fmt: skip
    pair = "|".join(rf'(?P<{name}>"{name}"{space}:{space}{value})' for name, value in values.items())
    inside = re.fullmatch(rf"{space}\{{(.*)\}}{space}", body, re.DOTALL)
    if not inside:
        return False
    rest, seen = inside[1], set()
    for last in (False, False, True):
        found = re.match(rf"{space}(?:{pair}){space}{'' if last else ','}", rest)
        if not found:
            return False
        seen.add(found.lastgroup)
        rest = rest[found.end() :]
    return not rest and len(seen) == 3


@settings(max_examples=1000, deadline=None, database=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])  # fmt: skip
@example(VALID, 0)
@example(f"```json\n{VALID}\n```", 1)
@example("5 / 2", 2)
@given(TEXTS, st.integers(0, 2**32))
def test_10000_texts_are_answers_exactly_when_they_are_one_of_the_objects_allowed(text, seed):
    draw = random.Random(seed)
    for each in [text, *(damaged(text, draw) for _ in range(9))]:
        found = parse(each, SCHEMA)
        assert isinstance(found, Answer) == independent(each), (each, found)
        if isinstance(found, Answer):
            assert type(found.values["score"]) is int and 1 <= found.values["score"] <= 5
            assert METRICS["IA"].of(found) == found.values["score"]


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 5), st.text(max_size=30))
def test_every_valid_answer_is_read_and_visual_fidelity_is_its_lower_part(preserve, render, words):
    values = {"observations": words, "preserve": preserve, "render": render, "evidence_frames": []}
    found = parse(json.dumps(values), METRICS["VF"].schema(8))
    assert isinstance(found, Answer) and METRICS["VF"].of(found) == min(preserve, render)
