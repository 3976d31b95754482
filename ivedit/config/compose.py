"""Compose a run's configuration: schema < base.yaml < parents < the experiment < command line.

Every value keeps its history (which file or argument set it, and what that replaced), for ``--explain`` and for
error messages. All faults are reported at once: unknown keys, wrong types, values out of range, combinations that
cannot run.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ivedit import experiments
from ivedit.config.check import check
from ivedit.config.fields import BadValue, coerce, fields, show
from ivedit.config.layers import Layer, Setting, argument_layer, file_layers
from ivedit.config.schema import Config
from ivedit.errors import ConfigError

__all__ = [
    "NEEDED", "RESUME_MAY_CHANGE", "Composed", "compose", "compose_layers", "from_dict", "load", "to_dict", "to_yaml",
]  # fmt: skip

NEEDED = "???"
"""What a file writes for a setting that only the person who runs it can know, such as where the data lies."""

PLACES = (
    "backbone.path", "data.cache_dir", "data.path", "data.preset", "init_from", "judge.path", "output_dir", "resume",
)  # fmt: skip
"""Settings that name a file or folder: ``~`` stands for the home folder, which no shell puts into ``key=~/x``."""

RESUME_MAY_CHANGE = (
    "backbone.gradient_checkpointing",  # how a step is computed, not what comes out: for a run that ran out of memory
    "backbone.path",  # the same weights may lie elsewhere; their fingerprint is checked
    "data.bad_share",
    "data.cache",
    "data.cache_dir",
    "data.encode_batch",
    "data.path",
    "data.workers",
    "evaluation.",
    "judge.",
    "plugins",
    "sampling.",
    "tracking.",
    "train.accelerator",
    "train.capture",
    "train.checkpoint_every",
    "train.compile",
    "train.devices",
    "train.epochs",
    "train.log_every",
    "train.max_minutes",
    "train.max_steps",
    "train.nodes",
    "train.strategy",
    "train.threads",
    "train.validate_every",
)
"""What ``resume=FOLDER`` lets the command line change. The rest would make it another run than the one it continues:
its weights, its data order or its loss would differ from the steps already taken."""


@dataclass
class Composed:
    """A checked configuration and where each value came from."""

    config: Config
    experiment: str
    layers: list[str]
    history: dict[str, list[Setting]] = field(default_factory=dict)

    @property
    def needed(self) -> list[str]:
        """Settings that are left to whoever runs it, and have no value yet."""
        return [key for key, past in self.history.items() if past[-1].value == NEEDED]


def load(experiment: str = experiments.QUICKSTART, *overrides: str) -> Config:
    """The checked `Config` of an experiment (shipped name or YAML path) with ``key=value`` overrides.

    >>> load("imvideoedit", "train.lr=5e-4").train.lr
    0.0005
    """
    return compose([f"experiment={experiment}", *overrides]).config


def compose(arguments: Sequence[str], origin: str = "command line", *, for_reading: bool = False) -> Composed:
    """Compose what ``python -m ivedit.run ARGUMENTS`` would run.

    ``experiment=`` picks the file (default: quickstart); ``resume=FOLDER`` takes the configuration of that run
    folder instead. ConfigError lists every problem found; ``origin`` says in it where the arguments were written.
    ``for_reading``: a setting that is still `NEEDED` is no problem (and has its default); it will not be run.
    """
    special = {name: [a.partition("=")[2] for a in arguments if a.startswith(name + "=")]
               for name in ("experiment", "resume")}  # fmt: skip
    for name, given in special.items():
        if len(given) > 1:
            raise ConfigError(f"{name}= is given {len(given)} times ({', '.join(given)}); give it once")
    typed = argument_layer([a for a in arguments if not a.startswith("experiment=")], origin)
    resumed = special["resume"][0] if special["resume"] else ""
    if resumed and resumed != "null":
        if special["experiment"]:
            raise ConfigError(
                f"resume={resumed} continues a run with its own configuration; leave out "
                f"experiment={special['experiment'][0]}"
            )
        experiment, layers = resumed, [_resumed_layer(Path(resumed).expanduser(), typed)]
    else:
        experiment = special["experiment"][0] if special["experiment"] else experiments.QUICKSTART
        layers = file_layers(experiments.find(experiment))
        for layer in layers:
            layer.problems += [
                f"resume: {show(setting.value)} names one run, so it is given on the command line ({setting.source})"
                for setting in layer.settings
                if setting.key == "resume" and setting.value is not None
            ]
    return _stack(experiment, [*layers, typed], for_reading)


def compose_layers(name: str, layers: Sequence[Layer]) -> Composed:
    """Compose these layers, a later one over an earlier one, on the schema's defaults alone. ConfigError as above."""
    return _stack(name, list(layers))


def _resumed_layer(folder: Path, typed: Layer) -> Layer:
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"resume: {folder} is not a run folder, it has no config.yaml (command line)")
    content = file_layers(path)[-1]
    layer = Layer(content.source, [s for s in content.settings if s.key not in ("resume", "init_from")])
    layer.problems = content.problems
    for setting in typed.settings:
        if setting.key != "resume" and not _resume_may_change(setting.key):
            typed.problems.append(
                f"{setting.key}: a resumed run cannot change it ({setting.source}); start a new run, with "
                f"init_from={folder} to keep the trained weights"
            )
    typed.problems += _other_ranks(folder, layer, typed)
    return layer


_RANKS = ("train.devices", "train.nodes")


def _other_ranks(folder: Path, stored: Layer, typed: Layer) -> list[str]:
    """A checkpoint of edit modules goes on with as many processes, over which its batches are dealt."""
    values: dict[str, Any] = {s.key: s.value for s in stored.settings}
    before = [values.get(key, 1) for key in _RANKS]
    changed = {s.key: s for s in typed.settings if s.key in _RANKS}
    now = [changed[key].value if key in changed else old for key, old in zip(_RANKS, before, strict=True)]
    if values.get("task", "edit") != "edit" or not (folder / "checkpoints" / "last.ckpt").is_file():
        return []
    if not all(isinstance(number, int) for number in (*before, *now)) or math.prod(before) == math.prod(now):
        return []  # what is no number is told with its setting
    return [
        f"{' and '.join(changed)}: a resumed run keeps its number of processes, which is train.devices={before[0]} "
        f"times train.nodes={before[1]}, now {now[0]} times {now[1]} ({next(iter(changed.values())).source}); start a "
        f"new run, with init_from={folder} to keep the trained weights"
    ]


def _resume_may_change(key: str) -> bool:
    return any(key == may or (may.endswith(".") and key.startswith(may)) for may in RESUME_MAY_CHANGE)


def _stack(experiment: str, layers: list[Layer], for_reading: bool = False) -> Composed:
    problems = [problem for layer in layers for problem in layer.problems]
    values = {key: item.default for key, item in fields().items()}
    history: dict[str, list[Setting]] = {
        key: [Setting(key, item.default, "default")] for key, item in fields().items()
    }
    for layer in layers:
        for setting in layer.settings:
            value, text = setting.value, setting.text
            if setting.entry is not None:
                before = values[setting.key]
                as_typed = text if text and fields()[setting.key].items == "str" else value
                value = {**(before if isinstance(before, dict) else {}), setting.entry: as_typed}
            values[setting.key] = value
            history[setting.key].append(dataclasses.replace(setting, value=value, entry=None))
    values, faults = _resolve(values)
    problems += faults
    wrong = set()
    for key, item in fields().items():
        last = history[key][-1]
        if values[key] == NEEDED:
            values[key] = item.default
            wrong.add(key)
            if not for_reading:
                problems.append(
                    f"{key}: give it, {key}=...; {experiment} leaves it to you ({last.source}): {item.help}"
                )
            continue
        try:
            values[key] = coerce(item, values[key], last.text if "${" not in (last.text or "") else None)
        except BadValue as bad:
            problems.append(f"{key}: {bad} ({last.source})")
            wrong.add(key)
            values[key] = item.default
        if key in PLACES and str(values[key]).startswith("~"):
            values[key] = str(Path(values[key]).expanduser())
        history[key][-1] = dataclasses.replace(last, value=values[key] if key not in wrong else last.value)
    config = _build(values)
    sources = {key: past[-1].source for key, past in history.items()}
    problems += check(config, sources, skip=wrong)
    if problems:
        raise ConfigError(problems)
    return Composed(config, experiment, [layer.source for layer in layers if layer.settings], history)


def _resolve(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Replace ``${other.key}`` by that key's value."""
    if not any("${" in show(value) for value in values.values()):
        return values, []
    tree = OmegaConf.create(_nest(values))
    resolved, problems = {}, []
    for key, value in values.items():
        try:
            found = OmegaConf.select(tree, key)
            if OmegaConf.is_config(found):
                found = OmegaConf.to_container(found, resolve=True)
            resolved[key] = found
        except OmegaConfBaseException as error:
            problems.append(f"{key}: {show(value)} cannot be resolved: {str(error).splitlines()[0]}")
            resolved[key] = fields()[key].default
    return resolved, problems


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[name] = value
    return tree


def _build(values: dict[str, Any]) -> Config:
    """The dataclasses, from a checked value of every key (through OmegaConf, this would take ten times as long)."""
    hints = typing.get_type_hints(Config)
    return Config(**{
        name: hints[name](**value) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in _nest(values).items()
    })  # fmt: skip


def from_dict(content: dict[str, Any], source: str = "config.yaml") -> Config:
    """A checked `Config` from plain containers, as a run folder stores them. ConfigError as in `compose`."""
    layer = Layer(source)
    for name, value in content.items():
        layer.add(str(name), value, source)
    return _stack(source, [layer]).config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain containers of a whole configuration, for JSON or YAML."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML that ``experiment=./FILE.yaml`` reads back to the same configuration."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
