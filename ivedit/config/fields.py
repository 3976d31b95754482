"""The schema as a flat table ``dotted key -> Field``, and the check of one value against its field.

``--help``, ``--explain``, the CLI reference and every error message read this table, so a setting's meaning is
written once, in `ivedit.config.schema`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from dataclasses import dataclass
from typing import Any

from ivedit.config.schema import Config

__all__ = ["BadValue", "Field", "coerce", "fields", "groups", "show"]

_LARGEST = 2**32 - 1  # of any whole number: what every library takes as a seed


class BadValue(ValueError):
    """The value does not fit its field; the text says what is wrong and what would fit."""


@dataclass(frozen=True)
class Field:
    """One setting. ``kind`` is str, int, float, bool, list (of strings) or dict; ``items``: what a dict maps to."""

    key: str
    kind: str
    optional: bool
    default: Any
    help: str
    min: float | None
    max: float | None
    above: float | None
    choices: tuple[str, ...] | None
    items: str = "str"

    @property
    def type_text(self) -> str:
        """The type in words, as help and errors show it."""
        if self.choices:
            text = " | ".join(self.choices)
        else:
            words = {"bool": "true | false", "list": "list of str", "dict": f"dict of {self.items}"}
            text = words.get(self.kind, self.kind)
        return f"{text} | null" if self.optional else text

    @property
    def range_text(self) -> str:
        """The allowed range in words; empty when there is none."""
        parts = []
        if self.above is not None:
            parts.append(f"above {self.above:g}")
        if self.min is not None:
            parts.append(f"at least {self.min:g}")
        if self.max is not None:
            parts.append(f"at most {self.max:g}")
        return ", ".join(parts)


@functools.cache
def fields(schema: type = Config) -> dict[str, Field]:
    """Every setting of ``schema`` (a run's, if not said otherwise) by its dotted key, in the schema's order."""
    return dict(_walk(schema, ""))


@functools.cache
def groups() -> dict[str, str]:
    """Every group of settings (``train``, ``editor``, ...) and what it is about."""
    hints = typing.get_type_hints(Config)
    return {
        item.name: (hints[item.name].__doc__ or "").strip()
        for item in dataclasses.fields(Config)
        if dataclasses.is_dataclass(hints[item.name])
    }


def _walk(cls: type, prefix: str) -> typing.Iterator[tuple[str, Field]]:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint, key = hints[item.name], prefix + item.name
        if dataclasses.is_dataclass(hint):
            yield from _walk(typing.cast(type, hint), key + ".")
            continue
        optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
        if optional:
            hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        default = item.default_factory() if callable(item.default_factory) else item.default
        meta = item.metadata
        yield key, Field(
            key=key,
            kind=(typing.get_origin(hint) or hint).__name__,
            optional=optional,
            default=default,
            help=meta["help"],
            min=meta["min"],
            max=meta["max"],
            above=meta["above"],
            choices=meta["choices"],
            items=typing.get_args(hint)[1].__name__ if typing.get_origin(hint) is dict else "str",
        )


def show(value: Any) -> str:
    """A value as a person would type it after ``key=``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(show(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    return str(value) if value != "" else '""'


def coerce(field: Field, value: Any, text: str | None = None) -> Any:
    """``value`` as the field's own type, or BadValue saying what would fit.

    ``text`` is what was typed on the command line: a string field takes it as it stands, so ``name=007`` stays
    ``007`` and ``train.capture=off`` is the word and not YAML's false.
    """
    if value is None:
        if field.optional:
            return None
        raise BadValue(f"null is not allowed; write {_example(field)}")
    if field.kind == "list":
        return _coerce_list(field, value)
    if field.kind == "dict":
        return _coerce_dict(field, value)
    if field.kind == "str" and text is not None and not isinstance(value, str):
        value = text
    if isinstance(value, (list, dict)):
        raise BadValue(f"{show(value)} is not one {field.kind}; write {_example(field)}")
    value = _coerce_scalar(field, value)
    if field.choices and value not in field.choices:
        raise BadValue(f"{show(value)} is not one of {', '.join(field.choices)}")
    too_low = (field.min is not None and value < field.min) or (field.above is not None and value <= field.above)
    if too_low or (field.max is not None and value > field.max):
        raise BadValue(f"{show(value)} is out of range; it must be {field.range_text}")
    return value


def _example(field: Field) -> str:
    example = field.default
    if example is None or example == "":
        lowest = field.min if field.min is not None else 1
        example = {"int": int(lowest), "float": float(lowest), "str": "TEXT"}.get(field.kind)
    return f"{field.key}={show(example)}"


def _coerce_scalar(field: Field, value: Any) -> Any:
    if field.kind == "str":
        if isinstance(value, bool):  # YAML 1.1 reads a bare on/off as a truth value
            words = ("off", "on") if field.choices and "on" in field.choices else ("false", "true")
            return words[value]
        return str(value)
    if field.kind == "bool":
        if isinstance(value, bool):
            return value
        raise BadValue(f"{show(value)} is neither true nor false; write {_example(field)}")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if field.kind == "int":
        if number and math.isfinite(value) and value == int(value):  # 1e4 is a whole number too
            if abs(value) > _LARGEST:
                raise BadValue(f"{show(value)} is out of range; it must be at most {_LARGEST}")
            return int(value)
        raise BadValue(f"{show(value)} is not a whole number; write e.g. {_example(field)}")
    if number and math.isfinite(value):
        return float(value)
    raise BadValue(f"{show(value)} is not a finite number; write e.g. {_example(field)}")


def _coerce_list(field: Field, value: Any) -> list[str]:
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        return [str(item) for item in value]
    if isinstance(value, (str, int, float)):
        raise BadValue(f"{show(value)} is not a list; write {field.key}=[{value}]")
    raise BadValue(f"{show(value)} is not a list of words; write {field.key}=[FIRST,SECOND]")


def _coerce_dict(field: Field, value: Any) -> dict[str, Any]:
    numbers = field.items == "float"
    if not isinstance(value, dict) or not all(isinstance(item, (str, int, float)) for item in value.values()):
        what = "numbers" if numbers else "words"
        raise BadValue(f"{show(value)} does not map names to {what}; write '{field.key}={{NAME: VALUE}}'")
    if not numbers:
        return {str(key): str(item) for key, item in value.items()}
    for key, item in value.items():
        if isinstance(item, (bool, str)) or not math.isfinite(item):
            raise BadValue(f"{show(item)} is not a finite number; write e.g. {field.key}.{key}=1.0")
    return {str(key): float(item) for key, item in value.items()}
