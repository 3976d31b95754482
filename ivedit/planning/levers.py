"""What to change when memory is short, and how much each change saves by the plan's own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ivedit.planning.estimate import Planner, Step

__all__ = ["Lever", "levers", "sampling_levers", "slower"]

_SMALLER = 0.7
"""Share of a side that is left when a picture is to have half the pixels."""


@dataclass(frozen=True)
class Lever:
    """One change of settings.

    Attributes:
        settings: As they are typed.
        saves: Bytes of GPU memory.
        cost: What it costs, in words.
        result: Whether the trained editor stays the same (in exact arithmetic).
    """

    settings: str
    saves: float
    cost: str
    result: bool


def levers(plan: Planner) -> list[Lever]:
    """Every change that saves memory in a training step as configured, the cheapest first."""
    cfg, now = plan.cfg, plan.step()
    found: list[Lever] = []

    def add(settings: str, then: Step, cost: str, result: bool) -> None:
        found.append(Lever(settings, now.needed - then.needed, cost, result))

    cache = plan.cache()
    if cache["gpu_bytes"]:
        found.append(Lever("data.cache=disk", float(cache["gpu_bytes"]), "batches are read from disk", True))
    if not plan.compiles:
        add("train.compile=on", plan.step(compiles=True), "a minute of compiling; then faster", True)
    batch = cfg.train.batch_size
    if smaller := plan.smaller_batch():
        then = plan.step(batch=smaller)
        pace = (then.seconds / smaller) / (now.seconds / batch)
        more = cfg.train.accumulate * batch // smaller
        add(f"train.batch_size={smaller} train.accumulate={more}", then, slower(pace), True)
    if not cfg.backbone.gradient_checkpointing:
        then = plan.step(checkpointing=True)
        add("backbone.gradient_checkpointing=true", then, slower(then.seconds / now.seconds), True)
    if plan.shards == 1:
        found += _spread(plan, now)
    if cfg.flow.draws_per_pair > 1:
        then = plan.step(draws=1)
        add("flow.draws_per_pair=1", then, "noisier gradients: more steps are needed", False)
    if width := _narrower(plan):
        add(f"editor.width={width}", plan.step(width=width), "a smaller editor", False)
    if cfg.train.ema > 0:
        found.append(Lever("train.ema=0", now.trace.peak.parts["ema"], "no averaged weights, which edit better", False))
    return [lever for lever in found if lever.saves > 0.001 * now.needed]


def sampling_levers(plan: Planner, settings: Mapping[str, str], *, clips: int = 1, overlap: int = 1) -> list[Lever]:
    """Every change that saves memory while clips are edited, the cheapest first.

    Args:
        plan: Of the configuration; ``evaluation.frames``, ``data.height`` and ``data.width`` are what is sampled.
        settings: How each change is typed, with a place for its value: ``clips`` (at once), ``encoders`` (on the GPU
            only while they are used; no value), ``frames`` (of a clip or window), ``size`` (height, width). What is
            not named cannot be changed.
        clips: Sampled at once.
        overlap: Windows must be longer.
    """
    as_it_is = plan.sampling(clips=clips)
    now, cached = float(as_it_is["peak_bytes"]), bool(as_it_is["cached"])
    found: list[Lever] = []

    def add(settings: str, cost: str, result: bool, **changed: int | tuple[int, int]) -> None:
        # What is kept where it fits would otherwise fill what the change has saved.
        then = plan.sampling(**{"clips": clips, "cached": cached, **changed})["peak_bytes"]  # type: ignore[arg-type]
        found.append(Lever(settings, now - float(then), cost, result))

    if "encoders" in settings:
        beside = float(plan.cache()["encoders_bytes"])
        found.append(Lever(settings["encoders"], beside, "each part is copied to the GPU when it is used", True))
    if "clips" in settings and clips > 1:
        add(settings["clips"].format(clips // 2), "fewer clips at a time", True, clips=clips // 2)
        if clips > 3:
            add(settings["clips"].format(1), "one clip at a time", True, clips=1)
    if "frames" in settings:
        factor = plan.spec.time_factor
        fewer = 1 + (plan.frames() - 1) // factor // 2 * factor
        if overlap < fewer < plan.frames():
            add(settings["frames"].format(fewer), "fewer frames at a time", False, frames=fewer)
    if "size" in settings:
        multiple = plan.spec.size_multiple
        sides = (plan.cfg.data.height, plan.cfg.data.width)
        height, width = (max(multiple, int(_SMALLER * side) // multiple * multiple) for side in sides)
        add(settings["size"].format(height, width), "less detail", False, size=(height, width))
    return [lever for lever in found if lever.saves > 0.001 * now]


def _spread(plan: Planner, now: Step) -> list[Lever]:
    train, found = plan.cfg.train, []
    for devices in ([train.devices] if train.devices > 1 else [2, 4]):
        then = plan.step(shards=devices)
        settings = "train.strategy=fsdp" + ("" if train.devices > 1 else f" train.devices={devices}")
        cost = f"{devices} GPUs; every block is gathered three times a step"
        found.append(Lever(settings, now.needed - then.needed, cost, True))
    return found


def _narrower(plan: Planner) -> int | None:
    """About half the inner width of the edit modules, in whole heads; None where it has none, or no less."""
    cfg, spec = plan.cfg.editor, plan.spec
    if cfg.variant == "side_by_side" or cfg.match_parameters is not None:
        return None
    width = cfg.width or spec.width
    half = width // 2 // spec.head_dim * spec.head_dim
    return half if half >= spec.head_dim else None


def slower(ratio: float) -> str:
    """How many times as long, in words."""
    if ratio < 1.005:
        return "no time"
    if ratio > 3:  # 200% more
        return f"{ratio:.0f} times the time"
    return f"{100 * (ratio - 1):.0f}% more time"
