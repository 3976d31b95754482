"""Is ``--plan`` right? Peak memory and pairs/s of real steps on a GPU beside what the plan says of them.

    python benchmarks/plan_check.py --out plan_check.json                  # an H200: about seven minutes
    python benchmarks/plan_check.py --cases eager compiled --steps 4
    python benchmarks/plan_check.py --measured a.json b.json --out both.json           # plans again, measures nothing
    python benchmarks/plan_check.py --device cpu --layers 1 --size 64x64 --steps 2     # a dry run

Each case builds a published backbone at its true size with random weights, and takes real training steps (losses,
backward pass, clipping, optimiser, average) on latents and texts made up on the spot. Peak memory is
`torch.cuda.max_memory_allocated` of the steps after the warm-up (of a captured step, with it); the plan's is what it
calls tensors together. Every case is written to --out when it is done. One that fails is told and kept in the JSON, and
the others go on; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a clone that is not installed

OURS = {"gate_grain": "head", "copy_path": False}
CASES: dict[str, dict[str, Any]] = {
    "compiled": {"batch": 8, "editor": {"width": 384, **OURS}, "compiled": True},
    "eager": {"batch": 8, "editor": {"width": 384, **OURS}},
    "checkpointed": {"batch": 16, "editor": {"width": 384, **OURS}, "checkpointing": True, "compiled": True},
    "adamw_full_width": {"batch": 4, "editor": {"width": None}, "optimizer": "adamw", "compiled": True},
    "side_by_side": {"batch": 4, "editor": {"variant": "side_by_side", "rank": 32}, "compiled": True},
    "four_draws": {"batch": 2, "draws": 4, "editor": {"width": 384, **OURS}, "compiled": True},
    "captured": {"batch": 8, "editor": {"width": 384, **OURS}, "captured": True, "compiled": True},
    "5b": {"backbone": "wan2.2_5b", "batch": 16, "editor": {"width": 768, **OURS}, "compiled": True},
    "14b": {
        "backbone": "wan2.1_14b", "batch": 4, "editor": {"width": 640, **OURS}, "checkpointing": True, "compiled": True,
    },
}  # fmt: skip
"""What is measured: 1.3B, Muon, eager and one draw a pair where nothing else is said."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON; 1 when a case failed."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/plan_check.py", description="The plan beside measured steps.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    add("--gpu", default="", metavar="NAME", help="the plan's GPU (default: the one in this machine)")
    add("--layers", type=int, metavar="N", help="only so many blocks")
    add("--size", default="480x832", metavar="HxW", help="of the pictures (default: 480x832)")
    add("--steps", type=int, default=6, metavar="N", help="timed steps (default: 6)")
    add("--measure-only", action="store_true", help="plan later, with --measured: a plan takes 10 to 20 seconds of CPU")
    add("--measured", type=Path, nargs="+", metavar="FILE", help="plan again beside what earlier --out FILEs measured")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--out", type=Path, metavar="FILE", help="write the values, with the environment, as JSON")
    given = parser.parse_args(arguments)
    earlier = together(given.measured) if given.measured else None
    import torch

    from ivedit.planning.gpus import chosen_gpu

    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu, how = chosen_gpu(given.gpu)
    report: dict[str, Any] = {
        "benchmark": "plan_check", "weights": "random", "gpu": vars(gpu) | {"chosen": how},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "speeds": None if earlier else speeds(device), "steps": given.steps, "cases": {},
    }  # fmt: skip
    if earlier:
        report |= {key: earlier[key] for key in ("device", "speeds", "steps", "environment")}
    print(json.dumps({key: report[key] for key in ("device", "speeds")}), flush=True)
    for name in given.cases:
        if earlier and name not in earlier["cases"]:
            continue
        started = time.monotonic()
        try:
            row = check(CASES[name], gpu, device, given, earlier and earlier["cases"][name]["measured"])
        except Exception as error:  # the others are still worth their time
            traceback.print_exc()
            row = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        report["cases"][name] = row | {"took_seconds": round(time.monotonic() - started, 1)}
        print(f"{name}: {json.dumps(report['cases'][name])}", flush=True)
        gc.collect()
        if device.type == "cuda" and not earlier:
            torch.cuda.empty_cache()
        write(given.out, report)
    print(table(report))
    return 1 if any("error" in row for row in report["cases"].values()) else 0


def together(files: Sequence[Path]) -> dict[str, Any]:
    """The cases of several records as one record; of a case that is in two, the later file's.

    Raises:
        SystemExit: they were measured on different devices.
    """
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    devices = {record["device"] for record in records}
    if len(devices) > 1:
        raise SystemExit(f"error: --measured: records of different devices ({', '.join(sorted(devices))})")
    cases = {name: row for record in records for name, row in record["cases"].items() if "error" not in row}
    return {**records[0], "cases": cases}


def write(out: Path | None, report: dict[str, Any]) -> None:
    """As far as it has come: a lease may end in the middle."""
    if out is not None:
        from ivedit.runfolder import describe_environment

        environment = {key: value for key, value in describe_environment().items() if key != "command"}
        out.parent.mkdir(parents=True, exist_ok=True)
        # with --measured, the environment stays that of the measurement
        out.write_text(json.dumps({"environment": environment} | report, indent=2) + "\n", encoding="utf-8")


def settings(case: dict[str, Any], size: tuple[int, int]) -> Any:
    """The case as a run's configuration."""
    from ivedit.config.schema import Config

    cfg = Config()
    cfg.backbone.path = case.get("backbone", "wan2.1_1.3b")
    cfg.backbone.gradient_checkpointing = case.get("checkpointing", False)
    for name, value in case["editor"].items():
        setattr(cfg.editor, name, value)
    cfg.data.height, cfg.data.width = size
    cfg.data.cache = "none"  # the steps here read no data
    cfg.flow.draws_per_pair = case.get("draws", 1)
    cfg.flow.change_share = 0.5
    cfg.train.batch_size = case["batch"]
    cfg.train.optimizer = case.get("optimizer", "muon")
    cfg.train.compile = "on" if case.get("compiled") else "off"
    cfg.train.capture = "on" if case.get("captured") else "off"
    return cfg


def check(
    case: dict[str, Any], gpu: Any, device: Any, given: Any, measured: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Plan one case, then measure it unless that has been done."""
    from ivedit.planning.backbones import backbone_configs
    from ivedit.planning.estimate import Planner

    height, _, width = given.size.partition("x")
    if device.type != "cuda" and measured is None:
        case = case | {"batch": 1, "optimizer": "adamw"}  # a dry run
    cfg = settings(case, (int(height), int(width)))
    configs = backbone_configs(cfg.backbone.path)
    if given.layers:
        configs = dataclasses.replace(configs, transformer={**configs.transformer, "num_layers": given.layers})
    if given.measure_only:
        measured = measure(cfg, device, given)
        measured["pairs_per_second"] = cfg.train.batch_size / measured["step_seconds"]
        return {"settings": case, "measured": measured}
    begun = time.process_time()
    step = Planner(cfg, configs, gpu).step()
    took = time.process_time() - begun
    pairs = cfg.train.batch_size
    planned = {
        "peak_bytes": step.trace.peak.total,
        "peak_during": step.trace.peak.phase,
        "parts": step.trace.peak.parts,
        "seconds": step.seconds,
        "update_seconds": step.update_seconds,
        "by_kind": step.trace.seconds,
        "tflop_per_pair": sum(step.trace.flops.values()) / pairs / 1e12,
        "pairs_per_second": pairs / (step.seconds + step.update_seconds),
        "plan_cpu_seconds": round(took, 1),
    }
    if measured is None:
        measured = measure(cfg, device, given)
    measured["pairs_per_second"] = pairs / measured["step_seconds"]
    names = ("peak_bytes", "pairs_per_second") if measured["peak_bytes"] else ()
    ratios = {name: planned[name] / measured[name] for name in names}
    return {"settings": case, "planned": planned, "measured": measured, "planned_to_measured": ratios}


def measure(cfg: Any, device: Any, given: Any) -> dict[str, Any]:
    """Steps of the real module, one after the other as in a run: seconds of one, and the highest memory."""
    import torch

    from ivedit.backbone import random_backbone
    from ivedit.editor import build_editor
    from ivedit.training.captured import StaticStep
    from ivedit.training.ema import Ema
    from ivedit.training.module import EditModule
    from ivedit.training.optim import clip_and_guard

    torch.manual_seed(0)
    backbone = random_backbone(
        cfg.backbone.path, device=device, layers=given.layers,
        gradient_checkpointing=cfg.backbone.gradient_checkpointing,
    )  # fmt: skip
    cfg.train.precision = "bf16-mixed" if device.type == "cuda" else "32-true"
    module = EditModule(backbone, build_editor(cfg.editor, backbone), cfg, max_steps=1000).to(device)
    weights = module.trained_parameters()
    optimizer = module.configure_optimizers()["optimizer"]
    ema = Ema(weights, cfg.train.ema)
    inputs = batch(cfg, backbone, device)
    compiling = backbone.compiling() if cfg.train.compile == "on" else contextlib.nullcontext()
    static = StaticStep(module.training_losses, weights, device, graph=True) if cfg.train.capture == "on" else None
    if device.type != "cuda":
        static, compiling = None, contextlib.nullcontext()

    def forward_and_backward() -> None:
        if static is not None:
            _, gradients = static(inputs)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            return
        for weight in weights:
            weight.grad = None
        module.training_losses(inputs).mean().backward()

    def update() -> None:
        clip_and_guard(optimizer, [w.grad for w in weights if w.grad is not None], cfg.train.clip)
        optimizer.step()
        ema.update()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = now(device)
    with compiling:
        for _ in range(2):
            forward_and_backward()
            update()
        warm = now(device) - begun
        if device.type == "cuda" and static is None:  # a replayed graph allocates nothing: its peak was its capture's
            torch.cuda.reset_peak_memory_stats()
        begun = now(device)
        for _ in range(given.steps):  # nothing waits for the device between them, as in a run
            forward_and_backward()
            update()
        taken = now(device) - begun
    found = {
        "step_seconds": taken / given.steps,
        "warm_up_seconds": round(warm, 1),
        "peak_bytes": None,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.memory_reserved(),
            "outside_torch_bytes": total - free - torch.cuda.memory_reserved(),
            "total_bytes": total,
        }
    return found


def batch(cfg: Any, backbone: Any, device: Any) -> dict[str, Any]:
    """Inputs of `EditModule.sample_losses`: random latents and texts of a usual length."""
    import torch

    spec, count, draws = backbone.spec, cfg.train.batch_size, cfg.flow.draws_per_pair
    size = (spec.latent_channels, 1, cfg.data.height // spec.space_factor, cfg.data.width // spec.space_factor)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    values = {
        "source": torch.randn(count, *size, device=device),
        "target": torch.randn(count, *size, device=device),
        "noise": torch.randn(count * draws, *size, device=device),
        "sigma": torch.linspace(0.1, 0.9, count * draws, device=device),
    }
    for name, words in (("target", 20), ("source", 1)):
        mask = torch.arange(spec.text_length, device=device).expand(count, -1) < words
        states = torch.randn(count, spec.text_length, spec.text_dim, device=device, dtype=dtype)
        values[f"{name}_mask"], values[f"{name}_states"] = mask, states * mask[..., None]
    return values


def now(device: Any) -> float:
    """Seconds, after everything that was launched."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def speeds(device: Any) -> dict[str, float] | None:
    """TFLOP/s of a large product and of attention, GB/s of a copy, microseconds of a launch; None on a CPU."""
    import torch

    if device.type != "cuda":
        return None
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    heads = torch.randn(8, 12, 1560, 128, device=device, dtype=torch.bfloat16)
    big, one = torch.empty(2**30, device=device, dtype=torch.uint8), torch.zeros(1, device=device)

    def seconds(action: Any, times: int) -> float:
        for _ in range(3):
            action()
        begun = now(device)
        for _ in range(times):
            action()
        return (now(device) - begun) / times

    attention = seconds(lambda: torch.nn.functional.scaled_dot_product_attention(heads, heads, heads), 50)
    return {
        "product_tflops": round(2 * 8192**3 / seconds(lambda: a @ a, 50) / 1e12, 1),
        "attention_tflops": round(4 * 8 * 12 * 1560**2 * 128 / attention / 1e12, 1),
        "copy_gbs": round(2 * 2**30 / seconds(big.clone, 20) / 1e9, 1),
        "launch_us": round(1e6 * seconds(lambda: one.add_(1), 2000), 2),
    }


def table(report: dict[str, Any]) -> str:
    """Plan and measurement as a Markdown table."""
    lines = [
        "| case | peak GiB: plan | measured | ratio | pairs/s: plan | measured | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in report["cases"].items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} |")
            continue
        if "planned" not in row:
            lines.append(f"| {name} | | {row['measured']} |")
            continue
        plan, found, ratio = row["planned"], row["measured"], row["planned_to_measured"]
        peak = f"{found['peak_bytes'] / 2**30:.1f} | {ratio['peak_bytes']:.2f}" if ratio else "n/a | n/a"
        pace = f"{found['pairs_per_second']:.2f} | {ratio['pairs_per_second']:.2f}" if ratio else "n/a | n/a"
        lines.append(
            f"| {name} | {plan['peak_bytes'] / 2**30:.1f} | {peak} | {plan['pairs_per_second']:.2f} | {pace} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
