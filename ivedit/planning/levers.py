"""What to change when memory is short, and how much each change saves by the plan's own arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from ivedit.planning.estimate import Planner, Step

__all__ = ["Lever", "levers"]


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
        add(f"train.batch_size={smaller} train.accumulate={more}", then, _slower(pace), True)
    if not cfg.backbone.gradient_checkpointing:
        then = plan.step(checkpointing=True)
        add("backbone.gradient_checkpointing=true", then, _slower(then.seconds / now.seconds), True)
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


def _slower(ratio: float) -> str:
    if ratio < 1.005:
        return "no time"
    return f"{100 * (ratio - 1):.0f}% more time"
