"""What a rule between settings is, and the names that exist; the rules stand in the `check` modules beside this one.

Nothing heavy is imported: the names are those of registries, and a test holds that they agree with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ivedit.config.editor_file import read_editor_header, resolve_editor_file
from ivedit.config.fields import fields, show
from ivedit.config.schema import Config
from ivedit.errors import ConfigError, or_nearest

__all__ = [
    "BACKBONES", "CLIP_FRAMES", "CONTROLS", "JUDGE_METRICS", "OPERATIONS", "PAIR_FIELDS", "PRESETS", "READERS", "TASKS",
    "VARIANTS", "WEIGHTS", "WEIGHT_FILES", "broken", "changed", "no_editor", "rule", "unknown", "value_of",
]  # fmt: skip

TASKS = ("edit", "pretrain_text", "pretrain_reader", "pretrain_vae", "pretrain_dit")
BACKBONES = ("wan-sprites", "wan2.1_1.3b", "wan2.1_14b", "wan2.2_5b")
VARIANTS = ("predict_update", "side_by_side", "single_attention", "tuned_attention")
READERS = ("folder", "set", "sprites")
PRESETS = ("anyedit", "instructpix2pix", "kiwi", "magicbrush", "nhr_edit", "omniedit", "ultraedit", "vifeedit")
OPERATIONS = (
    "recolour", "reshape", "remove", "add", "resize", "background_colour", "background_pattern", "style", "compound",
)  # fmt: skip
CONTROLS = ("source_copy", "frozen", "vae_ceiling", "still_clip")
WEIGHTS = ("clip", "dino", "lpips", "pickscore", "raft")
WEIGHT_FILES = ("lpips", "raft")  # those that torchvision publishes as one file; the others are folders
JUDGE_METRICS = ("IA", "TC", "VF", "AA", "OVE")
PAIR_FIELDS = (
    "id", "source", "target", "instruction", "source_caption", "target_caption", "mask", "operation", "split", "group",
)  # fmt: skip
CLIP_FRAMES = 17  # the length of a sprite clip

Rule = Callable[[Config], Iterator[str]]
_RULES: list[tuple[tuple[str, ...], Rule]] = []


def rule(*keys: str) -> Callable[[Rule], Rule]:
    """File a rule about ``keys``. It yields one line per fault: why it cannot be, and what to do instead."""

    def add(function: Rule) -> Rule:
        _RULES.append((keys, function))
        return function

    return add


def broken(config: Config, sources: Mapping[str, str], skip: set[str] | frozenset[str] = frozenset()) -> list[str]:
    """Every broken rule as one line that names the settings, their values, who set them and the fix.

    ``sources`` maps a key to the file or argument that set it; ``skip`` holds keys whose values are already bad.
    """
    problems = []
    for keys, function in _RULES:
        if skip.isdisjoint(keys):
            for reason in function(config):
                shown = {key: show(value_of(config, key)) for key in keys}
                named = ", ".join(f"{key}={value} ({sources.get(key, 'default')})" for key, value in shown.items())
                problems.append(f"{named}: {reason}")
    return problems


def value_of(config: Config, key: str) -> Any:
    """The setting named ``key``, such as train.lr."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def changed(config: Config, key: str) -> bool:
    """Whether it is not its default."""
    return bool(value_of(config, key) != fields()[key].default)


def unknown(names: list[str], known: tuple[str, ...], what: str) -> Iterator[str]:
    """A line for every name that does not exist or is listed twice."""
    for name in names:
        if name not in known:
            near = or_nearest(name, known)
            end = near if near.startswith("known") else f"{near} known: {', '.join(known)}"
            yield f"there is no {what} {name!r}; {end}"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name!r} is listed twice; name it once"


def no_editor(place: str) -> Iterator[str]:
    """A line for a file or folder that is there and holds no trained editor; its weights are not looked at.

    The one that ships with the package is not read: every start would pay for it.
    """
    if place == "shipped":
        return
    try:
        read_editor_header(resolve_editor_file(place))
    except ConfigError as error:
        yield from error.problems
