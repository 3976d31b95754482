"""Rules about evaluation and judges (see `ivedit.config.check`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ivedit.config.rules import (
    CLIP_FRAMES,
    CONTROLS,
    JUDGE_METRICS,
    OPERATIONS,
    WEIGHT_FILES,
    WEIGHTS,
    no_editor,
    rule,
    unknown,
)
from ivedit.config.schema import Config


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
    yield from unknown(c.evaluation.controls, CONTROLS, "control")


@rule("evaluation.editors")
def _editors_exist(c: Config) -> Iterator[str]:
    for row, place in c.evaluation.editors.items():
        if row in CONTROLS:
            yield f"the row name {row!r} belongs to a control; choose another"
        if place != "shipped" and not Path(place).expanduser().exists():
            yield f"row {row!r}: there is no {place}; give a .safetensors file, a run folder, or `shipped`"
        else:
            yield from (f"row {row!r}: {problem}" for problem in no_editor(place))


@rule("evaluation.weights")
def _weights_exist(c: Config) -> Iterator[str]:
    if not c.plugins:
        yield from unknown(list(c.evaluation.weights), WEIGHTS, "metric's kind of weights called")
    for name, place in c.evaluation.weights.items():
        path = Path(place).expanduser()
        if name in WEIGHT_FILES:
            if not path.is_file() or path.suffix not in (".pth", ".pt", ".safetensors"):
                yield f"{name!r}: {place} is no .pth or .safetensors file; download torchvision's there first"
        elif not path.is_dir() and (name in WEIGHTS or not path.exists()):  # a plugin's may be a file
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
    yield from unknown(c.judge.metrics, JUDGE_METRICS, "judge metric")
    yield from unknown(c.judge.pairwise, JUDGE_METRICS[:4], "judge metric about two edits")
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
