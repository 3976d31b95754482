"""The method at true size: training and sampling beside the side-by-side mechanism, framework beside a bare loop.

    python benchmarks/wan.py --out wan.json                       # a GPU: all parts, about eight minutes
    python benchmarks/wan.py --parts training --out training.json
    python benchmarks/wan.py --device cpu --small                 # the same code at a toy size
    python benchmarks/wan.py --table a.json b.json                # the tables of what was measured before

Published backbones with random weights of true size (cost, memory and gradients are those of the real ones):

- training: pairs per second of the real training (`ivedit.training.fit`: Trainer, optimiser, averaging, logging; blocks
  compiled, the step captured), for `paper_1.3b`'s editor and for ViFeEdit's mechanism, each at its own best batch; the
  share of the matrix-product ceiling that was measured in the same process, counted operations, modules included; then
  200 steady steps, from which the paper's 65,000 pairs are extrapolated, with a bare loop between their windows;
- large: the same of 14B with `paper_14b`'s editor and gradient checkpointing, at its batch; how much memory it takes;
- sampling: one step of 81 frames at 480x832 of the frozen backbone, of our editor and of the side-by-side mechanism;
- sprites: the framework beside a bare loop where steps are short, batch 64.

The bare loop (`wan_overhead.py`) is the same compiled and captured step with clipping, optimiser and averaging, without
Trainer, schedule, draws by seed, metrics, progress and data module. Counted operations are those of forward and
backward passes, without the optimiser; recomputing is not counted.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # a clone that is not installed

from profile_step import ceiling, counted, sampling_steps, timed  # noqa: E402
from random_pairs import NO_DATA, Told, pair_batch  # noqa: E402
from wan_tables import PAIRS, overhead, tables  # noqa: E402

EDITORS = {
    "ours": (),
    "side_by_side": ("editor.variant=side_by_side", "editor.rank=32", "editor.width=null", "editor.gate_grain=channel",
                     "editor.copy_path=true", "text.source=instruction"),
}  # fmt: skip
"""What each changes of `paper_1.3b`; the side-by-side mechanism has no modules of a width."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON after each part; 1 when a part failed."""
    given = _parser().parse_args(arguments)
    if given.table:
        for file in given.table:
            print(tables(json.loads(file.read_text(encoding="utf-8"))) + "\n")
        return 0
    if given.small:
        given.batches, given.side_by_side_batches, given.steps, given.window = [2], None, 4, 2
    import torch

    from ivedit.runfolder import describe_environment

    given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(given.device)
    environment = {key: value for key, value in describe_environment().items() if key != "command"}
    report: dict[str, Any] = {
        "benchmark": "wan",
        "weights": "random, of the published shapes",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "size": "toy" if given.small else "480x832",
        "ceiling_tflops": round(ceiling(device), 3),
        "environment": environment,
        "note": given.note,
    }
    failed = False
    for name in given.parts:
        started, found = time.monotonic(), report.setdefault(name, {})
        try:
            PART[name](given, device, report, found)
        except Exception as error:  # the other parts are still worth their time, and what this one has found
            import traceback

            traceback.print_exc()
            found["error"], failed = f"{type(error).__name__}: {error}", True
        found["took_seconds"] = round(time.monotonic() - started, 1)
        print(json.dumps({name: report[name]}), flush=True)
        write(given.out, report)
        forget(device)
    print(tables(report))
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/wan.py", description="Training and sampling at true size.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--parts", nargs="+", default=list(PART), choices=list(PART), help="default: all")
    add("--editors", nargs="+", default=list(EDITORS), choices=list(EDITORS), help="training: default both")
    add("--batches", nargs="+", type=int, default=[8], metavar="N", help="training: batches to try (default: 8)")
    add("--side-by-side-batches", nargs="+", type=int, metavar="N", help="training: for that one (default: --batches)")
    add("--steps", type=int, default=200, metavar="N", help="training: steady steps of ours (default: 200; 0: none)")
    add("--window", type=int, default=10, metavar="N", help="steps whose mean pace is one value (default: 10)")
    add("--layers", type=int, metavar="N", help="only so many blocks")
    add("--frames", type=int, default=81, metavar="N", help="sampling: frames of the clip (default: 81)")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--small", action="store_true", help="two blocks, small pictures, a few steps: for trying it out")
    add("--out", type=Path, metavar="FILE", help="write the values, with the environment, as JSON")
    add("--note", default="", metavar="TEXT", help="kept in the JSON: what else the machine was doing")
    add("--table", nargs="+", type=Path, metavar="FILE", help="print the tables of these and measure nothing")
    return parser


def write(out: Path | None, report: dict[str, Any]) -> None:
    """As far as it has come."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def forget(device: Any) -> None:
    """Give a part's memory back before the next one."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def settings(given: argparse.Namespace, *changes: str, experiment: str = "paper_1.3b") -> Any:
    """An experiment with these changes, on no data."""
    from ivedit.config import load

    return load(
        experiment, *NO_DATA, f"train.accelerator={given.device}", "train.accumulate=1", "train.warmup_steps=2",
        f"train.log_every={given.window}", *changes,
    )  # fmt: skip


def wan(given: argparse.Namespace, device: Any, name: str = "wan2.1_1.3b") -> Any:
    """A published backbone."""
    from ivedit.backbone import random_backbone

    backbone = random_backbone(name, device=device, layers=2 if given.small else given.layers)
    backbone._fingerprint = "random"  # hashing it would take longer than a part
    return backbone


def picture_size(given: argparse.Namespace) -> tuple[int, int]:
    """Height and width in pixels."""
    return (32, 32) if given.small else (480, 832)


def shape(given: argparse.Namespace, batch: int, frames: int = 1) -> argparse.Namespace:
    """What `profile_step` reads: sizes of latents and texts."""
    height, width = picture_size(given)
    return argparse.Namespace(batch=batch, frames=frames, height=height, width=width, features=False)


def random_pairs(given: argparse.Namespace, backbone: Any, batch: int, device: Any) -> list[dict[str, Any]]:
    """A few batches as the data module gives them, held on the device."""
    return [pair_batch(backbone, batch, picture_size(given), device, seed=seed) for seed in range(3)]


# ---- training


def framework_paces(cfg: Any, module: Any, batches: Callable[[int], Iterator[Any]], steps: int) -> list[float]:
    """Steps per second in each window of the real training after the first one, which compiles and captures."""
    from ivedit.training import build_trainer, fit
    from ivedit.training.loader import RunLoader

    told = Told()
    trainer = build_trainer(cfg, None, told, max_steps=steps)
    fit(trainer, module, RunLoader(steps, batches))
    return [cfg.train.log_every / (after - before) for before, after in itertools.pairwise(told.seconds)]


def training(given: argparse.Namespace, device: Any, report: dict[str, Any], found: dict[str, Any]) -> None:
    """Pairs per second of both mechanisms at each batch that fits; the long stretch of ours, at its best."""
    import torch

    from ivedit.editor import build_editor, parameter_count
    from ivedit.training import EditModule

    found["rows"] = []
    backbone = wan(given, device)
    for name in given.editors:
        cfg = settings(given, *EDITORS[name])
        editor = build_editor(cfg.editor, backbone, seed=0)
        tflop = pair_tflop(given, cfg, backbone, editor, device)
        for size in given.batches if name == "ours" else given.side_by_side_batches or given.batches:
            row = {"editor": name, "batch": size, "trained_weights": parameter_count(editor), "tflop_per_pair": tflop}
            try:
                row |= pace_of(given, cfg, EditModule(backbone, editor, cfg, max_steps=3 * given.window), size, device)
                row["tflops"] = row["pairs_per_second"] * tflop
                row["share_of_ceiling"] = row["tflops"] / report["ceiling_tflops"]
            except torch.OutOfMemoryError:
                row["pairs_per_second"] = None
            found["rows"].append(row)
            print(json.dumps(row), flush=True)
            write(given.out, report)
            forget(device)
    best = {name: max((row for row in found["rows"] if row["editor"] == name and row["pairs_per_second"]),
                      key=lambda row: row["pairs_per_second"]) for name in given.editors}  # fmt: skip
    if len(best) == 2:
        ours, other = best["ours"], best["side_by_side"]
        found["ratio"] = ours["pairs_per_second"] / other["pairs_per_second"]
        found["ratio_counted"] = other["tflop_per_pair"] / ours["tflop_per_pair"]
    if given.steps and "ours" in best:
        found["steady"] = steady(given, backbone, device, best["ours"]["batch"])


def pace_of(given: argparse.Namespace, cfg: Any, module: Any, size: int, device: Any) -> dict[str, Any]:
    """Pairs per second of the real training at one batch. torch.OutOfMemoryError where it does not fit."""
    import torch

    cfg.train.batch_size = size
    pool = random_pairs(given, module.backbone, size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    paces = framework_paces(cfg, module, endless(pool), 3 * given.window)
    return {
        "pairs_per_second": size * statistics.median(paces),
        "windows_pairs_per_second": [size * pace for pace in paces],
        "seconds": time.perf_counter() - began, "peak_gb": peak(device),
    }  # fmt: skip


def steady(given: argparse.Namespace, backbone: Any, device: Any, size: int) -> dict[str, Any]:
    """Ours for many steps, the bare loop between its windows; how long the paper's schedule would take."""
    from wan_overhead import side_by_side_windows

    from ivedit.editor import build_editor
    from ivedit.training import EditModule

    cfg = settings(given)
    cfg.train.batch_size = size
    pool = random_pairs(given, backbone, size, device)
    windows = max(1, given.steps // given.window)
    module = EditModule(backbone, build_editor(cfg.editor, backbone, seed=0), cfg, max_steps=given.steps)
    times = side_by_side_windows(module, endless(pool), pool, windows)
    found = overhead(times.framework, times.bare, given.window, size)
    return found | {"paper_schedule_minutes": PAIRS / found["pairs_per_second"]["framework"] / 60}


def endless(pool: list[Any]) -> Callable[[int], Iterator[Any]]:
    """Batches of the pool in turn, from a position on."""
    return lambda position: (pool[number % len(pool)] for number in itertools.count(position))


def pair_tflop(given: argparse.Namespace, cfg: Any, backbone: Any, editor: Any, device: Any) -> float:
    """Counted operations of one pair, forward and backward."""
    import torch

    from ivedit.training import EditModule

    module = EditModule(backbone, editor, cfg, max_steps=1).to(device)
    batch = random_pairs(given, backbone, 1, device)[0]
    tensors = module.step_tensors(batch, torch.tensor([0.5]), [0], shift=module.shift, kind="uniform")
    moved = {name: value.to(device) for name, value in tensors.items()}
    found = counted(lambda: module.sample_losses(moved).mean().backward())
    for weight in module.trained_parameters():
        weight.grad = None
    return float(found)


def peak(device: Any) -> float | None:
    """GB that tensors have held at most."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None


def large(given: argparse.Namespace, device: Any, report: dict[str, Any], found: dict[str, Any]) -> None:
    """Pairs per second and memory of 14B on this GPU."""
    from ivedit.editor import build_editor, parameter_count
    from ivedit.training import EditModule

    cfg = settings(given, experiment="paper_14b")
    backbone = wan(given, device, cfg.backbone.path)
    editor = build_editor(cfg.editor, backbone, seed=0)
    size = 1 if given.small else cfg.train.batch_size
    found |= {"editor": "14B", "batch": size, "trained_weights": parameter_count(editor)}
    found["tflop_per_pair"] = pair_tflop(given, cfg, backbone, editor, device)  # without what is computed twice
    backbone.gradient_checkpointing = cfg.backbone.gradient_checkpointing
    forget(device)
    found |= pace_of(given, cfg, EditModule(backbone, editor, cfg, max_steps=3 * given.window), size, device)
    found["share_of_ceiling"] = found["pairs_per_second"] * found["tflop_per_pair"] / report["ceiling_tflops"]


# ---- sampling


def sampling(given: argparse.Namespace, device: Any, report: dict[str, Any], found: dict[str, Any]) -> None:
    """Seconds of one denoising step, and of reading the source once."""
    from ivedit.editor import build_editor

    backbone = wan(given, device)
    found |= {"frames": 5 if given.small else given.frames, "rows": []}
    sizes = shape(given, 1, found["frames"])
    for name in EDITORS:
        editor = build_editor(settings(given, *EDITORS[name]).editor, backbone, seed=0).to(device)
        steps = sampling_steps(sizes, backbone, editor)
        tflop = {step: counted(call) for step, call in steps.items()}
        with backbone.compiling(device.type == "cuda"):
            seconds = {step: statistics.median(timed(call, device, 5)) for step, call in steps.items()}
        if not found["rows"]:
            row = {"row": "frozen", "seconds": seconds["frozen"], "tflop": tflop["frozen"], "source_seconds": 0.0}
            found["rows"].append(row)
        row = {"row": name, "seconds": seconds["edit"], "tflop": tflop["edit"], "source_seconds": seconds["source"],
               "frozen_seconds": seconds["frozen"]}  # fmt: skip
        found["rows"].append(row)
        print(json.dumps(row), flush=True)
        del editor, steps
        forget(device)
    frozen, ours, other = found["rows"]
    found["to_frozen"] = ours["seconds"] / ours["frozen_seconds"]
    found["to_frozen_counted"] = ours["tflop"] / frozen["tflop"]
    found["faster_than_side_by_side"] = other["seconds"] / ours["seconds"]
    found["faster_counted"] = other["tflop"] / ours["tflop"]


# ---- sprites


def sprites(given: argparse.Namespace, device: Any, report: dict[str, Any], found: dict[str, Any]) -> None:
    """Framework and bare loop with the shipped pipeline and its data module, batch 64, settings as a run has them."""
    from wan_overhead import side_by_side_windows

    from ivedit.backbone import Backbone
    from ivedit.config import load
    from ivedit.data.datamodule import PairDataModule
    from ivedit.editor import build_editor
    from ivedit.training import EditModule

    size, window, windows = (4, 2, 2) if given.small else (64, 20, 24)
    cfg = load(
        "imvideoedit", f"data.pairs={20 * size}", f"data.validation_pairs={size}", f"train.batch_size={size}",
        "flow.draws_per_pair=1", f"train.accelerator={given.device}", f"train.log_every={window}",
    )  # fmt: skip
    backbone = Backbone.load(cfg.backbone.path, dtype=cfg.backbone.dtype, device=device, text_length=cfg.text.length)
    module = EditModule(backbone, build_editor(cfg.editor, backbone, seed=0), cfg, max_steps=(windows + 1) * window)
    data = PairDataModule(
        cfg, backbone.encode_pixels, backbone.encode_text, backbone.fingerprint(), device=device, rank=0, world=1
    )
    data.setup("fit")
    held = list(data.train_dataloader())[:8]

    def batches(position: int) -> Iterator[Any]:
        data.set_micro_batches(position)
        while True:
            yield from data.train_dataloader()

    times = side_by_side_windows(module, batches, held, windows)
    found |= overhead(times.framework, times.bare, window, size)


PART = {"training": training, "large": large, "sampling": sampling, "sprites": sprites}

if __name__ == "__main__":
    sys.exit(main())
