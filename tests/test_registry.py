"""One name, one object; an unknown name is answered with the nearest."""

from __future__ import annotations

import pytest

from ivedit.errors import ConfigError
from ivedit.registry import Registry


def test_a_registered_object_is_found_with_what_was_said_about_it():
    shapes: Registry[type] = Registry("shape")

    @shapes.register("circle", corners=0)
    class Circle:
        pass

    assert shapes.get("circle") is Circle
    assert shapes.info("circle") == {"corners": 0}
    assert shapes.names() == ["circle"]
    assert "circle" in shapes and "square" not in shapes


def test_an_unknown_name_is_answered_with_the_nearest():
    shapes: Registry[type] = Registry("shape")
    shapes.register("circle")(int)
    with pytest.raises(ConfigError, match=r"shape 'cirle' is not known; did you mean circle\?"):
        shapes.get("cirle")
    with pytest.raises(ConfigError, match="known: circle"):
        shapes.get("zzz")


def test_a_name_cannot_be_taken_twice():
    shapes: Registry[type] = Registry("shape")
    shapes.register("circle")(int)
    shapes.register("circle")(int)
    with pytest.raises(ValueError, match=r"already registered by builtins\.int"):
        shapes.register("circle")(float)
