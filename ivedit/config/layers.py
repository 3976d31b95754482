"""The layers of a configuration: YAML files with their parents, and command-line arguments.

A layer is a list of settings ``(dotted key, value, where it was written)``. Reading one finds unknown keys and
malformed text but judges no value; `ivedit.config.compose` does that once the layers are stacked.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ivedit import experiments
from ivedit.config.fields import fields, groups, show
from ivedit.errors import ConfigError, or_nearest

__all__ = ["SHORT", "Layer", "Setting", "argument_layer", "file_layers", "read_yaml", "typed_value"]

SHORT = {"backbone": "backbone.path"}
"""Groups that one word stands for: ``backbone=wan2.1_1.3b`` sets ``backbone.path``."""


@dataclass(frozen=True)
class Setting:
    """One value given to one key. ``text`` is the raw text of a command-line value, else None."""

    key: str
    value: Any
    source: str
    text: str | None = None
    entry: str | None = None  # for dicts: the one entry that was set, as in evaluation.editors.mine=FOLDER


@dataclass
class Layer:
    """The settings of one file or of the command line, and what was wrong with its keys or text."""

    source: str
    settings: list[Setting] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, key: str, value: Any, source: str, text: str | None = None) -> None:
        """File ``value`` under ``key``; a group takes a mapping of its own settings."""
        table = fields()
        if key in table:
            self.settings.append(Setting(key, value, source, text))
            return
        if key in groups():
            if isinstance(value, dict):
                for name, item in value.items():
                    self.add(f"{key}.{name}", item, source)
            elif key in SHORT and isinstance(value, (str, int, float)):
                self.settings.append(Setting(SHORT[key], value, source, text))
            elif value is not None:
                self.problems.append(
                    f"{key}: {show(value)} is not a group of settings ({source}); set one of them, "
                    f"e.g. {next(name for name in table if name.startswith(key + '.'))}=..."
                )
            return
        parent, _, entry = key.rpartition(".")
        if parent in table and table[parent].kind == "dict":
            self.settings.append(Setting(parent, value, source, text, entry))
            return
        self.problems.append(f"{key}: there is no such setting ({source}); {or_nearest_key(key)}")


def or_nearest_key(key: str) -> str:
    """The hint for an unknown key: near keys, also when only the group was forgotten (``lr`` for ``train.lr``)."""
    same_leaf = [name for name in fields() if name.rpartition(".")[2] == key.rpartition(".")[2]]
    if same_leaf:
        return f"did you mean {' or '.join(same_leaf)}?"
    hint = or_nearest(key, [*fields(), *groups()])
    return hint if hint.startswith("did you") else "`--help` lists them all"


def file_layers(path: Path) -> list[Layer]:
    """Layers of ``base.yaml``, of the file's ``defaults:`` parents (recursively, in order) and of the file itself.

    A parent that several files share is applied once, where it first appears; so ``defaults: [a, b]`` keeps what
    ``a`` changed when both inherit from the same experiment. ConfigError for a cycle or an unreadable file.
    """
    layers: list[Layer] = []
    done: set[Path] = set()
    _add_file(experiments.folder() / f"{experiments.BASE}.yaml", (), layers, done)
    _add_file(path, (), layers, done)
    return layers


def _add_file(path: Path, below: tuple[Path, ...], layers: list[Layer], done: set[Path]) -> None:
    if path in below:
        chain = " -> ".join(experiments.shown(item) for item in (*below[below.index(path) :], path))
        raise ConfigError(f"defaults: the experiments inherit from each other in a circle: {chain}")
    if path in done:
        return
    content, lines = read_yaml(path)
    where = experiments.shown(path)
    parents = content.pop("defaults", None) or []
    if not isinstance(parents, list) or not all(isinstance(item, str) for item in parents):
        raise ConfigError(f"defaults: {show(parents)} is not a list of experiments ({where}); write [NAME, ...]")
    for parent in parents:
        try:
            found = experiments.find(parent, relative_to=path.parent)
        except ConfigError as error:
            raise ConfigError([f"defaults: {problem} ({where})" for problem in error.problems]) from error
        _add_file(found, (*below, path), layers, done)
    done.add(path)
    layer = Layer(where)
    if path.stem != experiments.BASE:
        # A name and a summary speak of one experiment, so they are never inherited.
        layer.settings += [Setting("name", path.stem, where), Setting("summary", "", where)]
    _flatten(content, "", layer, where, lines)
    layers.append(layer)


def _flatten(content: dict[str, Any], prefix: str, layer: Layer, where: str, lines: dict[str, int]) -> None:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in groups() and isinstance(value, dict):
            _flatten(value, f"{key}.", layer, where, lines)
        else:
            layer.add(key, value, f"{where}:{lines[key]}" if key in lines else where)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A file's content and the line of every key (dotted). ConfigError for what is no mapping or no YAML."""
    where = experiments.shown(path)
    try:
        content, lines = copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error
    except (yaml.YAMLError, OmegaConfBaseException, AssertionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {_yaml_fault(error)}") from error
    if content is None:
        return {}, {}
    if not isinstance(content, dict) or (not lines and content):
        raise ConfigError(f"{where} does not hold `key: value` lines")
    return {str(key): value for key, value in content.items()}, lines


@functools.lru_cache(maxsize=256)  # a sweep composes the same few experiments for each of its arms
def _parsed(text: str) -> tuple[Any, dict[str, int]]:
    content = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    return content, dict(_key_lines(yaml.compose(text, Loader=yaml.SafeLoader), ""))


def _key_lines(node: yaml.Node | None, prefix: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            yield dotted, key.start_mark.line + 1
            yield from _key_lines(value, dotted + ".")


def _yaml_fault(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or (str(error).strip() or "not a mapping").splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark is not None else problem


def typed_value(text: str) -> Any:
    """A command-line value, typed as in YAML (``1e-3``, ``null``, ``[a, b]``, ``{a: b}``). ValueError: no YAML."""
    if text == "":
        return ""
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{text!r} is not valid YAML ({_yaml_fault(error)})") from error
    return parsed["value"]


def argument_layer(arguments: list[str], origin: str = "command line") -> Layer:
    """The layer of ``key=value`` arguments; ``origin`` says in messages where they were written."""
    layer = Layer(origin)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            layer.problems.append(f"{argument}: not understood; settings are written key=value, options are in --help")
            continue
        try:
            value = typed_value(text)
        except ValueError as fault:
            layer.problems.append(f"{key}: {fault}; quote it: {key}='\"...\"'")
            continue
        layer.add(key, value, f"{origin}: {argument}", text)
    return layer
