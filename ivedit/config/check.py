"""Rules between settings: combinations that cannot run, or that would not do what they say.

Each rule names the keys that it speaks of. A rule is skipped when one of its keys already holds a bad value, so that
one mistake is reported once; all broken rules are reported together. Nothing heavy is imported: names of tasks,
variants and readers from ``plugins`` are left for their registries to judge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ivedit.config.fields import fields, show
from ivedit.config.schema import Config
from ivedit.errors import or_nearest

__all__ = ["CONTROLS", "JUDGE_METRICS", "OPERATIONS", "READERS", "TASKS", "VARIANTS", "check"]

TASKS = ("edit", "pretrain_text", "pretrain_reader", "pretrain_vae", "pretrain_dit")
VARIANTS = ("predict_update", "side_by_side", "single_attention", "tuned_attention")
READERS = ("folder", "sprites")
OPERATIONS = (
    "recolour", "reshape", "remove", "add", "resize", "background_colour", "background_pattern", "style", "compound",
)  # fmt: skip
CONTROLS = ("source_copy", "frozen", "vae_ceiling", "still_clip")
WEIGHTS = ("clip", "dino", "pickscore")
JUDGE_METRICS = ("IA", "TC", "VF", "AA", "OVE")
PAIR_FIELDS = (
    "id", "source", "target", "instruction", "source_caption", "target_caption", "mask", "operation", "split",
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


def check(config: Config, sources: Mapping[str, str], skip: set[str] | frozenset[str] = frozenset()) -> list[str]:
    """Every broken rule as one line that names the settings, their values, who set them and the fix.

    ``sources`` maps a key to the file or argument that set it; ``skip`` holds keys whose values are already bad.
    """
    problems = []
    for keys, function in _RULES:
        if skip.isdisjoint(keys):
            for reason in function(config):
                named = ", ".join(f"{key}={show(_get(config, key))} ({sources.get(key, 'default')})" for key in keys)
                problems.append(f"{named}: {reason}")
    return problems


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _changed(config: Config, key: str) -> bool:
    return bool(_get(config, key) != fields()[key].default)


def _unknown(names: list[str], known: tuple[str, ...], what: str) -> Iterator[str]:
    for name in names:
        if name not in known:
            near = or_nearest(name, known)
            end = near if near.startswith("known") else f"{near} known: {', '.join(known)}"
            yield f"there is no {what} {name!r}; {end}"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name!r} is listed twice; name it once"


# -- the run ------------------------------------------------------------------------------------------------------


@rule("name")
def _name_is_a_folder_name(c: Config) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", c.name):
        yield "it names a folder; use letters, digits, dots, dashes and underscores"


@rule("task", "plugins")
def _task_is_known(c: Config) -> Iterator[str]:
    if not c.plugins:
        for problem in _unknown([c.task], TASKS, "task"):
            yield problem + ", or list the module that registers it in plugins"


@rule("resume", "init_from")
def _one_start(c: Config) -> Iterator[str]:
    if c.resume and c.init_from:
        yield "a resumed run already has its weights; give one of the two"


@rule("init_from")
def _init_from_exists(c: Config) -> Iterator[str]:
    if c.init_from and c.init_from != "shipped" and not Path(c.init_from).expanduser().exists():
        yield "there is no such file or run folder; give a .safetensors file, a run folder, or `shipped`"


@rule("init_from", "task")
def _init_from_is_for_editors(c: Config) -> Iterator[str]:
    if c.init_from and c.task != "edit":
        yield "init_from loads trained edit modules, which only task=edit has; use resume=FOLDER to continue"


@rule("task", "train.max_steps")
def _pretraining_counts_steps(c: Config) -> Iterator[str]:
    if c.task in TASKS[1:] and c.train.max_steps is None:
        yield "pretraining counts steps, not epochs; set train.max_steps"


# -- data ---------------------------------------------------------------------------------------------------------


@rule("data.reader", "plugins")
def _reader_is_known(c: Config) -> Iterator[str]:
    if not c.plugins:
        for problem in _unknown([c.data.reader], READERS, "data reader"):
            yield problem + ", or list the module that registers it in plugins"


@rule("data.reader", "data.path")
def _folder_needs_a_path(c: Config) -> Iterator[str]:
    if c.data.reader == "folder" and not c.data.path:
        yield "the folder reader needs data.path=FOLDER, the directory with the table and the images"
    if c.data.reader == "folder" and c.data.path and not Path(c.data.path).expanduser().is_dir():
        yield f"{c.data.path} is not a directory"
    if c.data.reader == "sprites" and c.data.path:
        yield "sprites are drawn, not read; set data.reader=folder or leave data.path out"


@rule("data.reader", "data.path", "data.table")
def _table_exists(c: Config) -> Iterator[str]:
    if c.data.reader == "folder" and c.data.path:
        base = Path(c.data.path).expanduser()
        if base.is_dir() and not (base / c.data.table).is_file():
            found = sorted(p.name for p in base.iterdir() if p.suffix in (".csv", ".jsonl"))
            yield f"the folder has no such table; it has {', '.join(found) or 'no .csv or .jsonl file'}"


@rule("data.reader", "data.columns")
def _columns_map_a_table(c: Config) -> Iterator[str]:
    if c.data.reader == "sprites" and c.data.columns:
        yield "sprites have no table; set data.reader=folder or leave data.columns out"
    yield from _unknown(list(c.data.columns), PAIR_FIELDS, "field of a pair called")


@rule("data.operations")
def _operations_exist(c: Config) -> Iterator[str]:
    yield from _unknown(c.data.operations, OPERATIONS, "edit operation")


@rule("data.operations", "data.reader")
def _operations_are_of_sprites(c: Config) -> Iterator[str]:
    if c.data.operations and c.data.reader == "folder":
        yield "operations choose sprite edits; a folder is trained on whole, so leave data.operations out"


@rule("data.height")
def _height_divides(c: Config) -> Iterator[str]:
    yield from _divides(c.data.height, "data.height")


@rule("data.width")
def _width_divides(c: Config) -> Iterator[str]:
    yield from _divides(c.data.width, "data.width")


@rule("data.reader", "data.height", "data.width")
def _sprites_are_square(c: Config) -> Iterator[str]:
    sizes = c.data.height, c.data.width
    if c.data.reader == "sprites" and sizes[0] != sizes[1] and not any(size % 16 for size in sizes):
        yield "sprites are square; set both alike"


def _divides(size: int, key: str) -> Iterator[str]:
    if size % 16:
        yield f"Wan needs a multiple of 16; the nearest is {key}={max(16, round(size / 16) * 16)}"


@rule("data.pairs", "train.batch_size", "train.accumulate", "train.devices", "train.nodes")
def _one_full_step(c: Config) -> Iterator[str]:
    t = c.train
    step = t.batch_size * t.accumulate * t.devices * t.nodes
    if c.task == "edit" and t.epochs > 0 and t.max_steps != 0 and c.data.pairs < step:
        yield f"one optimiser step takes {step} pairs, more than there are; lower train.batch_size"


@rule("data.null_edits")
def _some_real_edits(c: Config) -> Iterator[str]:
    if c.data.null_edits == 1:
        yield "with only null edits nothing but copying is trained; use a share below 1, e.g. 0.1"


@rule("data.cache", "data.cache_dir")
def _cache_has_a_place(c: Config) -> Iterator[str]:
    if c.data.cache == "disk" and not c.data.cache_dir:
        yield "a cache on disk needs a folder: data.cache_dir=cache"


# -- editor and texts ---------------------------------------------------------------------------------------------


@rule("editor.variant", "plugins")
def _variant_is_known(c: Config) -> Iterator[str]:
    if not c.plugins:
        for problem in _unknown([c.editor.variant], VARIANTS, "editor variant"):
            yield problem + ", or list the module that registers it in plugins"


@rule("editor.gate", "text.gate")
def _shuffled_text_needs_a_reader(c: Config) -> Iterator[str]:
    if c.text.gate == "shuffled" and c.editor.gate != "text":
        yield "no gate reads the shuffled text; set editor.gate=text or text.gate=instruction"


@rule("editor.gate", "editor.gate_grain")
def _grain_needs_a_gate(c: Config) -> Iterator[str]:
    if c.editor.gate == "none" and _changed(c, "editor.gate_grain"):
        yield "there is no gate whose grain could be chosen; leave editor.gate_grain out"


def _only_for(key: str, why: str, *variants: str) -> None:
    """A setting that only some variants read must not be changed for the others."""

    @rule("editor.variant", key)
    def _applies(c: Config) -> Iterator[str]:
        if c.editor.variant in VARIANTS and c.editor.variant not in variants and _changed(c, key):
            yield f"{why}; leave {key} at {show(fields()[key].default)} or use editor.variant={variants[0]}"


_GATED = ("predict_update", "single_attention", "tuned_attention")
_only_for("editor.rank", "this variant has no low-rank weights", "side_by_side", "tuned_attention")
_only_for("editor.difference", "only predict-update forms a difference", "predict_update", "tuned_attention")
_only_for("editor.source_attention", "this variant has no source stream", *_GATED)
for _key in ("width", "rounds", "mlp", "text_update", "copy_path", "gate", "gate_grain"):
    _only_for(f"editor.{_key}", "this variant has no gated edit modules", *_GATED)
_only_for("text.gate", "this variant has no gated edit modules", *_GATED)


# -- training and sampling ----------------------------------------------------------------------------------------


@rule("flow.timesteps", "flow.logit_mean", "flow.logit_std")
def _logit_settings_apply(c: Config) -> Iterator[str]:
    if c.flow.timesteps == "uniform" and (_changed(c, "flow.logit_mean") or _changed(c, "flow.logit_std")):
        yield "uniform timesteps have no logit; set flow.timesteps=logit_normal or leave the logit settings out"


@rule("train.ema")
def _ema_moves(c: Config) -> Iterator[str]:
    if c.train.ema == 1:
        yield "with decay 1 the average never leaves the initial weights; use e.g. 0.999, or 0 for no average"


@rule("train.beta1", "train.beta2")
def _betas_below_one(c: Config) -> Iterator[str]:
    if c.train.beta1 == 1 or c.train.beta2 == 1:
        yield "AdamW's betas must be below 1; the usual ones are 0.9 and 0.99"


@rule("train.optimizer", "train.momentum")
def _momentum_is_of_muon(c: Config) -> Iterator[str]:
    if c.train.momentum == 1:
        yield "with momentum 1 no gradient ever arrives; the usual one is 0.95"
    if c.train.optimizer != "muon" and _changed(c, "train.momentum"):
        yield "AdamW has betas in place of it; set train.optimizer=muon, or train.beta1"


@rule("train.capture", "train.accelerator", "train.devices", "train.nodes", "backbone.gradient_checkpointing")
def _capture_is_possible(c: Config) -> Iterator[str]:
    if c.train.capture != "on":
        return
    if c.train.accelerator == "cpu":
        yield "CUDA graphs need a GPU; set train.capture=auto"
    if c.train.devices * c.train.nodes > 1 or c.backbone.gradient_checkpointing:
        yield "a captured step runs on one GPU without gradient checkpointing; set train.capture=auto"


@rule("sampling.guidance", "text.dropout", "data.null_edits")
def _guidance_has_a_trained_branch(c: Config) -> Iterator[str]:
    if c.task == "edit" and c.sampling.guidance > 1 and c.text.dropout == 0 and c.data.null_edits == 0:
        yield (
            "guidance subtracts a branch with empty text, which is trained only by dropped texts or null edits; "
            "set text.dropout=0.1, data.null_edits=0.1 or sampling.guidance=1"
        )


# -- evaluation ---------------------------------------------------------------------------------------------------


@rule("evaluation.clips", "data.operations")
def _a_clip_for_each_operation(c: Config) -> Iterator[str]:
    operations = c.data.operations if c.data.operations and c.data.reader == "sprites" else OPERATIONS
    if c.task == "edit" and c.evaluation.enabled and c.evaluation.clips < len(operations):
        yield f"{len(operations)} operations need a clip each; set evaluation.clips={len(operations)} or more"


@rule("evaluation.frames")
def _frames_fill_latents(c: Config) -> Iterator[str]:
    frames = c.evaluation.frames
    if (frames - 1) % 4:
        lower = (frames - 1) // 4 * 4 + 1
        near = [n for n in (lower, lower + 4) if n <= CLIP_FRAMES] or [CLIP_FRAMES]
        yield f"the first latent frame is one image and each later one four: use {' or '.join(map(str, near))}"
    elif frames > CLIP_FRAMES:
        yield f"a sprite clip has {CLIP_FRAMES} frames; use at most that"


@rule("evaluation.controls")
def _controls_exist(c: Config) -> Iterator[str]:
    yield from _unknown(c.evaluation.controls, CONTROLS, "control")


@rule("evaluation.editors")
def _editors_exist(c: Config) -> Iterator[str]:
    for row, place in c.evaluation.editors.items():
        if row in CONTROLS:
            yield f"the row name {row!r} belongs to a control; choose another"
        if place != "shipped" and not Path(place).expanduser().exists():
            yield f"row {row!r}: there is no {place}; give a .safetensors file, a run folder, or `shipped`"


@rule("evaluation.weights")
def _weights_exist(c: Config) -> Iterator[str]:
    if not c.plugins:
        yield from _unknown(list(c.evaluation.weights), WEIGHTS, "metric's kind of weights called")
    for name, place in c.evaluation.weights.items():
        if not Path(place).expanduser().is_dir():
            yield f"{name!r}: {place} is not a folder; download the weights there first, nothing is fetched here"


@rule("evaluation.weights", "evaluation.sha256")
def _hashes_are_of_weights(c: Config) -> Iterator[str]:
    for name, digest in c.evaluation.sha256.items():
        if name not in c.evaluation.weights:
            yield f"there are no weights {name!r} to check; name their folder in evaluation.weights"
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            yield f"{name!r}: {digest} is not a sha256 of 64 hex digits in lower case"


# -- judge --------------------------------------------------------------------------------------------------------


@rule("judge.backend", "judge.base_url", "judge.model", "judge.path")
def _judge_is_named(c: Config) -> Iterator[str]:
    needed = {"http": ("base_url", "model"), "local": ("path",), "replay": ("path",)}.get(c.judge.backend, ())
    for name in needed:
        if not getattr(c.judge, name):
            yield f"the backend {c.judge.backend} needs judge.{name}"


@rule("judge.backend")
def _judge_settings_hold_no_secret(c: Config) -> Iterator[str]:
    # Named without the values, so that what should not have been written there is not written once more.
    if c.judge.key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", c.judge.key_env):
        yield "judge.key_env takes the name of an environment variable, not the key itself"
    if c.judge.base_url and ("@" in c.judge.base_url or "?" in c.judge.base_url):
        yield "judge.base_url takes no user, password or query; put the key where judge.key_env names it"
    if any(re.search(r"api_?key|authorization|password|secret", name.lower()) for name in c.judge.request):
        yield "judge.request takes no key; put it where judge.key_env names it"


@rule("judge.metrics", "judge.pairwise")
def _judge_metrics_exist(c: Config) -> Iterator[str]:
    yield from _unknown(c.judge.metrics, JUDGE_METRICS, "judge metric")
    yield from _unknown(c.judge.pairwise, JUDGE_METRICS[:4], "judge metric about two edits")
    if not c.judge.metrics:
        yield "there is nothing to ask; name one, or set judge.backend=none"


@rule("judge.temperature", "judge.repeats")
def _repeats_differ(c: Config) -> Iterator[str]:
    if c.judge.temperature == 0 and c.judge.repeats > 1:
        yield "at temperature 0 every repeat is the same answer; set judge.repeats=1 or judge.temperature=0.7"


@rule("judge.smallest", "judge.largest")
def _sizes_shown_agree(c: Config) -> Iterator[str]:
    if c.judge.smallest > c.judge.largest:
        yield "frames cannot be shown larger than the largest; lower judge.smallest"
