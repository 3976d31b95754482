"""A plan as plain values (for JSON) and as the text that ``--plan`` prints."""

from __future__ import annotations

from typing import Any

from ivedit.data.buckets import largest_size
from ivedit.planning.backbones import backbone_configs
from ivedit.planning.estimate import CONTEXT, DDP_SHARE, RESERVE, WORDS, Planner, Step, steps_of_run
from ivedit.planning.gpus import Gpu
from ivedit.planning.levers import levers
from ivedit.planning.pairs import with_counted_pairs
from ivedit.planning.simulate import PARTS

__all__ = ["MODULES", "gibibytes", "lever_lines", "plan_text", "plan_values"]

_TITLES = {
    "frozen": "frozen weights",
    "trained": "trained weights, float32",
    "optimiser": "optimiser state",
    "ema": "averaged weights (EMA)",
    "cache": "latents and texts of all pairs",
    "gradients": "gradients there at that moment",
    "features": "source features",
    "batch": "batch (latents and texts)",
    "activations": "activations kept for the backward pass",
    "working": "working tensors",
}
MODULES = {"path": "attention", "adapter": "token map", "copy": "copy path"}
"""Parts of an edit module that docs/method.md calls otherwise than the code does."""


def plan_values(cfg: Any, gpu: Gpu) -> dict[str, Any]:
    """Everything that is planned, in bytes, seconds and operations.

    Raises:
        ConfigError: settings, backbone and editor do not fit together.
        IveditError: the backbone's configs cannot be read.
    """
    configs = backbone_configs(cfg.backbone.path, cfg.text.length)
    cfg, counted = with_counted_pairs(cfg)
    plan = Planner(cfg, configs, gpu)
    step, train = plan.step(), cfg.train
    pairs = train.batch_size * train.accumulate
    height, width = largest_size(cfg, plan.spec.size_multiple)
    seconds = step.seconds * train.accumulate + step.update_seconds
    together = plan.world * (DDP_SHARE if plan.world > 1 else 1.0)
    pace = pairs / seconds * together
    steps = steps_of_run(cfg)
    flops = {kind: value * train.accumulate for kind, value in step.trace.flops.items() if kind != "other"}
    total = sum(flops.values())
    return {
        "version": 1,
        "name": cfg.name,
        "backbone": {"path": cfg.backbone.path, "blocks": plan.configs.blocks, "width": plan.spec.width},
        "gpu": vars(gpu),
        "settings": {
            "height": height,
            "width": width,
            "batch_size": train.batch_size,
            "accumulate": train.accumulate,
            "gpus": plan.world,
            "strategy": "fsdp" if plan.shards > 1 else "ddp",
            "variant": cfg.editor.variant,
            "editor_width": cfg.editor.width,
            "draws_per_pair": cfg.flow.draws_per_pair,
            "gradient_checkpointing": cfg.backbone.gradient_checkpointing,
            "compiled": plan.compiles,
            "captured": plan.captures(cfg.backbone.gradient_checkpointing),
        },
        "data": {"pairs": cfg.data.pairs, "validation_pairs": cfg.data.validation_pairs, "counted": counted},
        "parameters": plan.parameters,
        "memory": {
            "peak": step.trace.peak.parts,
            "peak_bytes": step.trace.peak.total,
            "peak_during": step.trace.peak.phase,
            "context_bytes": CONTEXT,
            "reserve_bytes": RESERVE * step.trace.peak.total,
            "needed_bytes": step.needed,
            "gpu_bytes": gpu.memory,
            "fits": step.needed <= gpu.memory,
            "activations": _activations(plan),
            "largest_batch": plan.largest_batch(),
        },
        "flops": {
            "pair": {kind: value / pairs for kind, value in flops.items()} | {"all": total / pairs},
            "step": total * plan.world,
            "run": total * plan.world * steps,
        },
        "time": {
            "steps": steps,
            "seconds_per_step": seconds,
            "pairs_per_second": pace,
            "run_seconds": steps * pairs * plan.world / pace,
            "limit": step.limit,
            "achieved": total / seconds / (gpu.bf16_tflops * 1e12),
            "share": gpu.share,
        },
        "sampling": plan.sampling(),
        "cache": plan.cache(),
        "levers": [vars(lever) for lever in levers(plan)],
    }


def _activations(plan: Planner) -> dict[str, float]:
    """Bytes kept for the backward pass, eager and compiled, with and without gradient checkpointing."""
    kept: dict[str, float] = {}
    for checkpointing in (False, True):
        for compiles in (False, True):
            name = ("compiled" if compiles else "eager") + (", checkpointed" if checkpointing else "")
            kept[name] = _kept(plan.step(checkpointing=checkpointing, compiles=compiles))
    return kept


def _kept(step: Step) -> float:
    return max(moment.parts["activations"] for moment in step.trace.moments)


def plan_text(values: dict[str, Any], how: str = "") -> str:
    """What ``--plan`` prints."""
    s, m, t, gpu = values["settings"], values["memory"], values["time"], values["gpu"]
    lines = [
        f"plan of {values['name']}: {values['backbone']['path']}, {s['variant']}, {s['height']}x{s['width']}, on "
        + f"{s['gpus']} x {gpu['name']}" + (f" ({how})" if how else ""),
        f"batch {s['batch_size']} x {s['accumulate']}, "
        + ("compiled" if s["compiled"] else "eager")
        + (", captured" if s["captured"] else "")
        + (", gradient checkpointing" if s["gradient_checkpointing"] else "")
        + (f", {s['draws_per_pair']} draws a pair" if s["draws_per_pair"] > 1 else "")
        + (f", weights spread over {s['gpus']} GPUs" if s["strategy"] == "fsdp" else ""),
    ]  # fmt: skip
    d = values["data"]
    pairs = f"{d['pairs']:,} training and {d['validation_pairs']:,} validation pairs"
    lines.append(pairs + (f", {d['counted']}" if d["counted"] else ""))
    lines += ["", "parameters"]
    for name, count in values["parameters"]["frozen"].items():
        note = "" if name == "transformer" else "  (fills the cache, then leaves the GPU)"
        lines.append(_row(f"frozen: {name.replace('_', ' ')}", _millions(count)) + note)
    trained = values["parameters"]["trained"]
    named = {MODULES.get(part, part): count for part, count in trained.items() if part != "all"}
    lines += [_row(f"trained: {name}", _millions(count)) for name, count in named.items()]
    lines.append(_row("trained: all", _millions(trained["all"])))
    lines += ["", f"GPU memory at the fullest moment of a step ({m['peak_during']})"]
    lines += [_row(_TITLES[part], gibibytes(m["peak"][part])) for part in PARTS if m["peak"][part] >= 2**20]
    lines.append(_row("tensors together", gibibytes(m["peak_bytes"])))
    besides = gibibytes(m["context_bytes"] + m["reserve_bytes"])
    lines.append(_row("CUDA context, allocator (as on an H200)", besides))
    fits = "fits" if m["fits"] else "DOES NOT FIT"
    lines.append(_row("needed", gibibytes(m["needed_bytes"])) + f"  {fits} in {gibibytes(m['gpu_bytes'])}")
    lines.append(_row("largest train.batch_size that fits", str(m["largest_batch"])))
    kept = "; ".join(f"{name} {gibibytes(size)}" for name, size in m["activations"].items())
    lines.append(f"  activations at this batch: {kept}")
    lines += ["", "operations (TFLOP; a multiply-add is two)"]
    pair = values["flops"]["pair"]
    lines.append(_row("a pair", f"{pair['all'] / 1e12:.4g}") + "  of it " + ", ".join(
        f"{title} {pair[kind] / 1e12:.3g}"
        for kind, title in (("frozen", "frozen weights"), ("modules", "edit modules"), ("attention", "attention"))
    ))  # fmt: skip
    lines.append(_row("a step", f"{values['flops']['step'] / 1e12:,.4g}"))
    lines.append(_row("the run", f"{values['flops']['run'] / 1e12:,.0f}") + f"  {t['steps']:,} steps")
    lines += ["", f"time (shares of the data sheet's speed: {t['share']} for {gpu['name']})"]
    lines.append(_row("a step", f"{t['seconds_per_step']:.3g} s") + f"  {100 * t['achieved']:.0f}% of the peak"
                 + (", held up by launching kernels" if t["limit"] == "host" else ""))  # fmt: skip
    lines.append(_row("pairs/s", f"{t['pairs_per_second']:.3g}"))
    lines.append(_row("the run", _duration(t["run_seconds"])))
    a = values["sampling"]
    lines += ["", f"editing a clip of {a['frames']} frames"]
    lines.append(_row("a denoising step", f"{a['step_seconds']:.3g} s") + f"  {a['step_flops'] / 1e12:.4g} TFLOP")
    lines.append(_row("the clip", _duration(a["clip_seconds"])))
    lines.append(_row("source features", gibibytes(a["features_bytes"])))
    chosen = "kept: the steps are cheaper" if a["cached"] else "too large here: each step projects the features"
    lines.append(_row("source keys and values in their place", gibibytes(a["cached_bytes"])) + f"  {chosen}")
    lines.append(_row("tensors at the fullest moment", gibibytes(a["peak_bytes"])) + "  without the VAE")
    c = values["cache"]
    where = {"none": "not kept", "disk": "on disk", "memory": "on the GPU" if c["on_gpu"] else "in host memory"}
    lines += ["", f"cache of latents and texts ({where[c['kind']]})"]
    sizes = f"{gibibytes(c['latents_bytes'])}, {gibibytes(c['texts_bytes'])}"
    lines.append(_row(f"latents, texts ({WORDS} tokens each)", sizes))
    lines.append(_row("encoders' weights while it is filled", gibibytes(c["encoders_bytes"])))
    lines += ["", "what saves memory in a training step, the cheapest first"]
    lines += lever_lines(values["levers"])
    return "\n".join(lines) + "\n"


def lever_lines(found: list[dict[str, Any]]) -> list[str]:
    """The levers as aligned lines."""
    rows = [(lever["settings"], gibibytes(lever["saves"]), lever["cost"] + _changed(lever)) for lever in found]
    if not rows:
        return ["  nothing that is left"]
    left = max(len(row[0]) for row in rows)
    return [f"  {settings:<{left}}  saves {saves:>9}  {cost}" for settings, saves, cost in rows]


def _changed(lever: dict[str, Any]) -> str:
    return "" if lever["result"] else " (another result)"


def _row(title: str, value: str) -> str:
    return f"  {title:<42}{value:>12}"


def gibibytes(size: float) -> str:
    """Bytes in words."""
    if size >= 0.1 * 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def _millions(count: int) -> str:
    return f"{count / 1e9:.3f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
