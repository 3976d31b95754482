"""What the entry points with ``key=value`` settings share: options apart from settings, answers, refusals."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from ivedit.errors import ConfigError, or_nearest

__all__ = ["refuse", "show", "split_options"]


def split_options(
    arguments: Sequence[str], options: Sequence[tuple[str, str]], values: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """``--option [value]`` apart from ``key=value``.

    Args:
        arguments: The command line.
        options: ``("--explain KEY", meaning)`` each; one with a second word takes a value, which may be left out where
            the word is in brackets.
        values: What each option with a value needs, in words and with an example, for the message when it is missing.

    Raises:
        ConfigError: An option is not known, or its value is missing or not wanted.
    """
    found: dict[str, str] = {}
    settings: list[str] = []
    known = {name: word for name, _, word in (text.partition(" ") for text, _ in options)}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        name = {"-h": "--help"}.get(name, name)
        if not name.startswith("-"):
            settings.append(argument)
        elif name not in known:
            raise ConfigError(f"option {name} is not known; {or_nearest(name, known)}")
        elif known[name].startswith("["):
            stands_alone = not rest or rest[0].startswith("-") or "=" in rest[0]
            found[name] = value if equals or stands_alone else rest.pop(0)
        elif known[name]:
            value = value if equals else rest.pop(0) if rest else ""
            if not value:
                raise ConfigError(f"{name} needs {values[name]}")
            found[name] = value
        elif equals:
            raise ConfigError(f"{name} takes no value; leave out ={value}")
        else:
            found[name] = ""
    return found, settings


def show(text: str) -> int:
    """Print an answer; the exit code of one."""
    sys.stdout.write(text)
    sys.stdout.flush()
    return 0


def refuse(error: ConfigError) -> int:
    """Print every problem; the exit code of a configuration that cannot run."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2
