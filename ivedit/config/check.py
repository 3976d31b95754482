"""Rules between settings: combinations that cannot run, or that would not do what they say.

Each rule names the keys that it speaks of. A rule is skipped when one of its keys already holds a bad value, so that
one mistake is reported once; all broken rules are reported together. Nothing heavy is imported: names of tasks,
variants and readers from ``plugins`` are left for their registries to judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ivedit.config import check_data, check_evaluation  # noqa: F401  (they file their rules)
from ivedit.config.fields import fields, show
from ivedit.config.rules import BACKBONES, TASKS, VARIANTS, broken, changed, no_editor, rule, unknown
from ivedit.config.schema import Config
from ivedit.config.wan_folder import cached_folder, read_folder
from ivedit.errors import ConfigError, nearest

__all__ = ["check"]


def check(config: Config, sources: Mapping[str, str], skip: set[str] | frozenset[str] = frozenset()) -> list[str]:
    """See `ivedit.config.rules.broken`; all rules are filed by then."""
    return broken(config, sources, skip)


# -- the run ------------------------------------------------------------------------------------------------------


@rule("name")
def _name_is_a_folder_name(c: Config) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", c.name):
        yield "it names a folder; use letters, digits, dots, dashes and underscores"


@rule("task", "plugins")
def _task_is_known(c: Config) -> Iterator[str]:
    if not c.plugins:
        for problem in unknown([c.task], TASKS, "task"):
            yield problem + ", or list the module that registers it in plugins"


@rule("resume", "init_from")
def _one_start(c: Config) -> Iterator[str]:
    if c.resume and c.init_from:
        yield "a resumed run already has its weights; give one of the two"


@rule("init_from")
def _init_from_is_an_editor(c: Config) -> Iterator[str]:
    if c.init_from and c.init_from != "shipped" and not Path(c.init_from).expanduser().exists():
        yield "there is no such file or run folder; give a .safetensors file, a run folder, or `shipped`"
    elif c.init_from:
        yield from no_editor(c.init_from)


@rule("init_from", "task")
def _init_from_is_for_editors(c: Config) -> Iterator[str]:
    if c.init_from and c.task != "edit":
        yield "init_from loads trained edit modules, which only task=edit has; use resume=FOLDER to continue"


@rule("task", "train.max_steps")
def _pretraining_counts_steps(c: Config) -> Iterator[str]:
    if c.task in TASKS[1:] and c.train.max_steps is None:
        yield "pretraining counts steps, not epochs; set train.max_steps"


# -- data ---------------------------------------------------------------------------------------------------------


@rule("backbone.path")
def _backbone_can_be_there(c: Config) -> Iterator[str]:
    """A path to nowhere, a word that looks like a name and a folder of another kind are told at once; OWNER/NAME may be
    on the hub, or in its cache."""
    name = c.backbone.path
    folder = Path(name).expanduser()
    if name == BACKBONES[0]:  # the shipped one, whatever lies here
        return
    if folder.is_dir():
        yield from _unfit(folder, name)
    elif name in BACKBONES:
        return
    elif name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1:
        yield "there is no such folder"
    elif "/" not in name:
        near = nearest(name, BACKBONES)
        fix = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(BACKBONES)}"
        yield f"there is no such folder and no backbone of that name; {fix}"
    elif cached := cached_folder(name):
        yield from _unfit(cached, name, whole=False)


def _unfit(folder: Path, name: str, *, whole: bool = True) -> Iterator[str]:
    try:
        read_folder(folder, name, whole=whole)
    except ConfigError as error:
        yield from error.problems


@rule("editor.variant", "plugins")
def _variant_is_known(c: Config) -> Iterator[str]:
    if not c.plugins:
        for problem in unknown([c.editor.variant], VARIANTS, "editor variant"):
            yield problem + ", or list the module that registers it in plugins"


@rule("editor.gate", "text.gate")
def _shuffled_text_needs_a_reader(c: Config) -> Iterator[str]:
    if c.text.gate == "shuffled" and c.editor.gate != "text":
        yield "no gate reads the shuffled text; set editor.gate=text or text.gate=instruction"


@rule("editor.gate", "editor.gate_grain")
def _grain_needs_a_gate(c: Config) -> Iterator[str]:
    if c.editor.gate == "none" and changed(c, "editor.gate_grain"):
        yield "there is no gate whose grain could be chosen; leave editor.gate_grain out"


def _only_for(key: str, why: str, *variants: str) -> None:
    """A setting that only some variants read must not be changed for the others."""

    @rule("editor.variant", key)
    def _applies(c: Config) -> Iterator[str]:
        if c.editor.variant in VARIANTS and c.editor.variant not in variants and changed(c, key):
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
    if c.flow.timesteps == "uniform" and (changed(c, "flow.logit_mean") or changed(c, "flow.logit_std")):
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
    if c.train.optimizer != "muon" and changed(c, "train.momentum"):
        yield "AdamW has betas in place of it; set train.optimizer=muon, or train.beta1"


@rule("train.capture", "train.accelerator", "train.strategy", "backbone.gradient_checkpointing")
def _capture_is_possible(c: Config) -> Iterator[str]:
    if c.train.capture != "on":
        return
    if c.train.accelerator == "cpu":
        yield "CUDA graphs need a GPU; set train.capture=auto"
    if c.train.strategy == "fsdp" or c.backbone.gradient_checkpointing:
        yield "a captured step holds all weights and activations of its GPU; set train.capture=auto"


@rule("train.strategy", "train.devices", "train.nodes", "task")
def _shared_by_several(c: Config) -> Iterator[str]:
    if c.train.strategy != "fsdp":
        return
    if c.train.devices == 1:
        yield "the GPUs of a machine share the weights, and this is one; set train.devices, or train.strategy=auto"
    if c.task in TASKS and c.task != "edit":
        yield "the tiny pipeline fits every GPU; set train.strategy=auto"


@rule("sampling.guidance", "text.dropout", "data.null_edits")
def _guidance_has_a_trained_branch(c: Config) -> Iterator[str]:
    if c.task == "edit" and c.sampling.guidance > 1 and c.text.dropout == 0 and c.data.null_edits == 0:
        yield (
            "guidance subtracts a branch with empty text, which is trained only by dropped texts or null edits; "
            "set text.dropout=0.1, data.null_edits=0.1 or sampling.guidance=1"
        )


# -- evaluation ---------------------------------------------------------------------------------------------------
