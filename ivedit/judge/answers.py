"""A judge's text becomes an answer, or a reason why it is none. Nothing is guessed.

The text must be one JSON object that fits its schema, alone or in one fenced block. A number in prose is never a
score: "5 / 2" is not 5 and "2 dogs. Score: 4" is not 2. Truth values, 4.0, "4", NaN, 12.5, 7 of 5, a name twice, a
missing or an unknown name: no answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "Unparsed", "answer_schema", "parse"]

OBSERVATIONS, EVIDENCE = "observations", "evidence_frames"
_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\r?\n(.*?)\r?\n?[ \t]*```", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """A valid answer: every name of its schema with a value that the schema allows."""

    values: Mapping[str, Any]

    @property
    def observations(self) -> str:
        """What the judge says it saw, before it scored."""
        return str(self.values[OBSERVATIONS])

    @property
    def evidence(self) -> tuple[int, ...]:
        """Numbers of the frames that decided, as they were labelled."""
        return tuple(self.values.get(EVIDENCE, ()))


@dataclass(frozen=True)
class Unparsed:
    """The text is no answer; ``reason`` is one line that a repair request can quote."""

    reason: str


def answer_schema(choices: Mapping[str, Sequence[int | str]], frames: int) -> dict[str, Any]:
    """The JSON schema of an answer: observations, then each choice, then the frames that decided.

    Only ``type``, ``enum``, ``properties``, ``required``, ``items`` and ``additionalProperties`` occur: servers that
    enforce schemas all know them, and a grammar made from them keeps the order of the properties.

    Args:
        choices: For each name the values allowed, all integers or all strings.
        frames: Frames are labelled 1 to this.
    """
    properties: dict[str, Any] = {OBSERVATIONS: {"type": "string"}}
    for name, allowed in choices.items():
        kind = "integer" if isinstance(allowed[0], int) else "string"
        properties[name] = {"type": kind, "enum": list(allowed)}
    properties[EVIDENCE] = {"type": "array", "items": {"type": "integer", "enum": list(range(1, frames + 1))}}
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def parse(text: str | None, schema: Mapping[str, Any]) -> Answer | Unparsed:
    """The answer in ``text``, or why there is none.

    Args:
        text: What the judge wrote.
        schema: As `answer_schema` makes it.
    """
    body = (text or "").strip()
    if not body:
        return Unparsed("the answer is empty")
    if fenced := _FENCE.fullmatch(body):
        body = fenced[1]
    try:
        value = json.loads(body, object_pairs_hook=_each_name_once, parse_constant=_no_constant)
    except _Refused as error:
        return Unparsed(str(error))
    except (ValueError, RecursionError) as error:
        return Unparsed(f"the answer is not one JSON object: {_short(error)}")
    problem = _problem(value, schema, "the answer")
    return Unparsed(problem) if problem else Answer(value)


class _Refused(ValueError):
    """JSON that Python would read and we do not."""


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _Refused("a name stands twice in one object")
    return value


def _no_constant(name: str) -> Any:
    raise _Refused(f"{name} is not a JSON value")


_TYPES: dict[str, type] = {"object": dict, "array": list, "string": str, "integer": int}
_NAMES = {"object": "an object", "array": "an array", "string": "a string", "integer": "an integer"}


def _problem(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    """Why ``value`` does not fit ``schema``; None when it does. bool is never an integer, nor is 4.0."""
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
        return f"{where} is {_shown(value)}, not {_NAMES[kind]}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is {_shown(value)}, not one of {', '.join(map(str, schema['enum']))}"
    inside: list[tuple[Any, Mapping[str, Any], str]] = []
    if isinstance(value, dict):
        if missing := [name for name in schema["required"] if name not in value]:
            return f"{where} lacks {', '.join(missing)}"
        if unknown := [name for name in value if name not in schema["properties"]]:
            return f"{where} has the unknown name {_shown(unknown[0])}"
        inside = [(value[name], part, name) for name, part in schema["properties"].items()]
    elif isinstance(value, list):
        inside = [(item, schema["items"], f"an item of {where}") for item in value]
    return next((found for item, part, name in inside if (found := _problem(item, part, name))), None)


def _shown(value: Any) -> str:
    """A value in a reason; what is large or nested is only named."""
    for kind in ("object", "array"):
        if isinstance(value, _TYPES[kind]):
            return _NAMES[kind]
    return _short(json.dumps(value))


def _short(what: object) -> str:
    text = " ".join(str(what).split())
    return text if len(text) <= 80 else text[:77] + "..."
