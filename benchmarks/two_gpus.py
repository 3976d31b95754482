"""Two GPUs against one: pairs per second, the same loss, and the memory of a large backbone that two share.

    python benchmarks/two_gpus.py --out benchmarks/records/two_gpus.json     # two GPUs, about four minutes
    python benchmarks/two_gpus.py --parts pace --out FILE                    # of these about two and a half
    python benchmarks/two_gpus.py --device cpu --small --windows 1 --window 1 --loss-steps 2     # a toy, gloo

The real training on random weights and random pairs of true size: `ivedit.training.fit` with its Trainer, module,
averaging and optimiser. One process first, then two, each started once through torchrun and doing in turn:

- pace: the same batch on every GPU (DDP), windows of steps after the first one, which warms up;
- loss: a few steps of one global batch, on one GPU in twice as many micro-batches, on two with DDP, with captured
  steps whose gradients are averaged after them, and with FSDP2;
- memory: the large backbone with gradient checkpointing, whole on one GPU, shared by two (FSDP2), peak of each rank.

Every arm is written to --out when it is done. A second call with the same settings takes the arms that are there and
measures the others, so that a machine may go away in between.

The pace is that of a run's own settings on both sides: blocks compiled, the step captured as a CUDA graph, at the batch
that is best on one GPU (--eager: neither, a minute less). Losses are of eager steps and of captured ones, memory of
eager ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # a clone that is not installed

from random_pairs import NO_DATA, Told, pair_batch  # noqa: E402

BAR = 1.9
"""Pairs per second of two GPUs over those of one."""
TOLERANCE = 2e-4
"""Relative difference of a step's loss in bfloat16: sums run in another order, and each step starts from the last."""

COUNTS = {"one": 1, "two": 2}
ARMS: dict[str, dict[str, tuple[str, ...]]] = {
    "pace": {"one": ("pace",), "two": ("pace",)},
    "loss": {"one": ("loss_auto",), "two": ("loss_ddp", "loss_captured", "loss_fsdp")},
    "memory": {"one": ("memory",), "two": ("memory",)},
}
"""What each part measures on one GPU and on two."""
SETTINGS = {
    "pace": ("device", "small", "backbone", "layers", "batch", "windows", "window", "eager"),
    "loss": ("device", "small", "backbone", "layers", "loss_batch", "loss_steps"),
    "memory": ("device", "small", "large", "large_layers"),
}
"""What an arm depends on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print, write JSON; 1 when a part failed."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = _parser().parse_args(arguments)
    if given.device is None:
        import torch

        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    if given.worker:
        work(given)
        return 0
    with tempfile.TemporaryDirectory(prefix="ivedit-two-gpus-") as folder:
        out = given.out or Path(folder) / "two_gpus.json"
        failed = False
        for name, count in COUNTS.items():
            arms = missing(given, _read(out), name)
            if not arms:
                continue
            began = time.monotonic()
            code = _launch(count, [*arguments, "--out", str(out), "--worker", name, "--arms", *arms])
            print(f"{name}: {', '.join(arms)}: {time.monotonic() - began:.0f} s", flush=True)
            if code:
                print(f"error: the processes on {name} ended with exit code {code}", file=sys.stderr)
                failed = True
        print(_table(_read(out)))
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/two_gpus.py", description="Two GPUs against one, in one command.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--parts", nargs="+", default=list(ARMS), choices=list(ARMS), help="default: all")
    add("--backbone", default="wan2.1_1.3b", help="published backbone of pace and loss (default: %(default)s)")
    add("--large", default="wan2.1_14b", help="published backbone of memory (default: %(default)s)")
    add("--layers", type=int, help="blocks of --backbone (default: all)")
    add("--large-layers", type=int, default=10, help="blocks of --large (default: %(default)s, a quarter)")
    add("--batch", type=int, default=16, help="pairs per GPU and step of pace (default: %(default)s)")
    add("--loss-batch", type=int, default=8, help="pairs per GPU and step of loss (default: %(default)s)")
    add("--windows", type=int, default=5, help="windows whose pace is kept (default: %(default)s)")
    add("--window", type=int, default=5, help="steps of a window (default: %(default)s)")
    add("--loss-steps", type=int, default=5, help="steps compared (default: %(default)s)")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--small", action="store_true", help="two blocks, 32x32 pictures: for trying it out")
    add("--eager", action="store_true", help="pace without compiling and capturing")
    add("--out", type=Path, metavar="FILE", help="the values as JSON, arm by arm; arms that it holds are not repeated")
    add("--note", default="", help="kept in the JSON: what else the machine was doing")
    add("--worker", choices=list(COUNTS), help=argparse.SUPPRESS)
    add("--arms", nargs="+", default=[], help=argparse.SUPPRESS)
    return parser


def _launch(count: int, arguments: Sequence[str]) -> int:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count),
        str(Path(__file__).resolve()), *arguments,
    ]  # fmt: skip
    return subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}).returncode


# ---- the file


def settings_of(given: argparse.Namespace, arm: str) -> dict[str, Any]:
    """What the result of an arm depends on."""
    return {name: getattr(given, name) for name in SETTINGS[arm.partition("_")[0]]}


def missing(given: argparse.Namespace, report: dict[str, Any], name: str) -> list[str]:
    """The wanted arms of "one" or "two" GPUs that the report does not hold with these settings."""
    held = report.get("arms", {}).get(name, {})
    wanted = [arm for part in given.parts for arm in ARMS[part][name]]
    return [arm for arm in wanted if held.get(arm, {}).get("settings") != settings_of(given, arm)]


def _read(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}


def _keep(given: argparse.Namespace, arm: str, found: dict[str, Any]) -> None:
    """Put an arm into the file, with everything that follows from those that are there."""
    from ivedit.runfolder import describe_environment

    report = _read(given.out)
    report.setdefault("arms", {}).setdefault(given.worker, {})[arm] = found | {"settings": settings_of(given, arm)}
    environment = describe_environment()
    report = {
        "benchmark": "two_gpus",
        "weights": "random, of the published shapes",
        "environment": {key: environment[key] for key in ("python", "packages", "gpus", "cpu_count")},
        "note": given.note or report.get("note", ""),
        "arms": report["arms"],
        **_results(report["arms"]),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    fresh = given.out.with_name(given.out.name + ".new")
    fresh.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    fresh.replace(given.out)


# ---- one process


class Arm:
    """Trainings on this process's share."""

    def __init__(self, given: argparse.Namespace, device: Any, ranks: Any) -> None:
        self.given, self.device, self.ranks = given, device, ranks
        self.size = (32, 32) if given.small else (480, 832)

    def measure(self, name: str) -> dict[str, Any]:
        """One of `ARMS`."""
        given, two = self.given, self.ranks.world > 1
        layers = 2 if given.small else given.layers
        if name == "pace":
            steps = (given.windows + 1) * given.window
            fast = not given.eager and self.device.type == "cuda"
            return self.run(
                given.backbone, layers=layers, strategy="auto", batch=given.batch, steps=steps, every=given.window,
                compiled=fast, captured=fast,
            )  # fmt: skip
        if name == "memory":
            large, layers = (given.backbone, 2) if given.small else (given.large, given.large_layers)
            return self.run(
                large, layers=layers, strategy="fsdp" if two else "auto", batch=1, steps=3, experiment="paper_14b"
            )
        strategy, captured = name.partition("_")[2], name == "loss_captured" and self.device.type == "cuda"
        return self.run(
            given.backbone, layers=layers, strategy="ddp" if name == "loss_captured" else strategy,
            accumulate=1 if two else 2, batch=max(1, given.loss_batch // 2), steps=given.loss_steps, captured=captured,
        )  # fmt: skip

    def run(
        self, name: str, *, layers: int | None, strategy: str, batch: int, steps: int, every: int = 1,
        accumulate: int = 1, compiled: bool = False, captured: bool = False, experiment: str = "paper_1.3b",
    ) -> dict[str, Any]:  # fmt: skip
        """Train ``steps`` steps of random pairs: losses and their times every ``every`` steps, the peak of memory."""
        import torch

        from ivedit.backbone import random_backbone
        from ivedit.config import load
        from ivedit.editor import build_editor, parameter_count
        from ivedit.training import EditModule, RunLoader, build_trainer, fit
        from ivedit.training.distributed import share_editing

        given, world, large = self.given, self.ranks.world, experiment == "paper_14b"
        cfg = load(
            experiment, *NO_DATA, f"train.devices={world}", f"train.batch_size={batch}",
            f"train.accumulate={accumulate}", f"train.strategy={strategy}", f"train.accelerator={given.device}",
            f"train.capture={'on' if captured else 'off'}", f"train.compile={'on' if compiled else 'off'}",
            f"train.log_every={every}",
            f"train.max_steps={steps}", "train.warmup_steps=2",
            "flow.change_share=0", *(["editor.width=128"] if given.small else []),
        )  # fmt: skip
        self._settle()
        torch.distributed.barrier()
        shared, began = strategy == "fsdp", time.perf_counter()
        backbone = random_backbone(name, device=self.device, layers=layers, gradient_checkpointing=large)
        backbone._fingerprint = "random"  # hashing 28 GB would take longer than training here
        editor = build_editor(cfg.editor, backbone, seed=0)
        trained, frozen = parameter_count(editor), sum(p.numel() for p in backbone.transformer.parameters())
        if shared:
            share_editing(backbone, editor, cfg, self.device)

        # Number micro * world + rank: one rank with twice the micro-batches sees the same pairs as two.
        number = iter(range(self.ranks.rank, 2**30, world))
        different = steps * accumulate if every == 1 else 3  # where only time counts, a few do
        held = [pair_batch(backbone, batch, self.size, self.device, seed=next(number)) for _ in range(different)]

        def batches(position: int) -> Iterator[dict[str, Any]]:
            return itertools.islice(itertools.cycle(held), position, steps * accumulate)

        self._settle()  # what the building of whole weights has left must not count as the training's
        module = EditModule(backbone, editor, cfg, max_steps=steps)
        told = Told()
        trainer = build_trainer(cfg, None, told, max_steps=steps)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        building = time.perf_counter() - began
        fit(trainer, module, RunLoader(steps * accumulate, batches))
        peaks: list[Any] = [None] * world
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        torch.distributed.all_gather_object(peaks, peak)
        return {
            "backbone": name, "blocks": backbone.spec.blocks, "frozen_weights": frozen, "trained_weights": trained,
            "strategy": strategy if world > 1 else "one process", "captured": captured, "compiled": compiled,
            "batch_per_gpu": batch, "accumulate": accumulate,
            "world": world, "losses": told.losses, "seconds": told.seconds, "log_every": every,
            "peak_gib_of_ranks": peaks, "building_seconds": round(building, 1),
            "took_seconds": round(time.perf_counter() - began, 1),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
        }  # fmt: skip

    def _settle(self) -> None:
        import gc

        import torch

        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def work(given: argparse.Namespace) -> None:
    """Every asked arm in one process of the launcher; rank 0 writes each as it is known."""
    import torch

    from ivedit.config import load
    from ivedit.quiet import no_library_bars
    from ivedit.ranks import find_ranks, join
    from ivedit.training.distributed import local_device

    ranks = find_ranks()
    train = load("paper_1.3b", *NO_DATA, f"train.accelerator={given.device}").train
    join(train)
    device = local_device(train)
    if device.type == "cpu":
        torch.set_num_threads(1)
    arm = Arm(given, device, ranks)
    with no_library_bars():
        for name in given.arms:
            found = arm.measure(name)
            if ranks.rank == 0:
                _keep(given, name, found)
                print(f"{given.worker} {name}: {found['took_seconds']} s", flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


# ---- what follows from the arms


def _pace(arm: dict[str, Any]) -> dict[str, Any]:
    """Pairs per second of all GPUs in each window but the first."""
    pairs = arm["log_every"] * arm["batch_per_gpu"] * arm["accumulate"] * arm["world"]
    windows = [pairs / (after - before) for before, after in itertools.pairwise(arm["seconds"])]
    return {"windows": windows, "median": statistics.median(windows)}


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


def _results(arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of each part that is there on both sides with the same settings."""
    one, two = arms.get("one", {}), arms.get("two", {})

    def both(first: str, second: str) -> bool:
        return first in one and second in two and one[first]["settings"] == two[second]["settings"]

    found: dict[str, Any] = {}
    if both("pace", "pace"):
        pace = {name: _pace(arms[name]["pace"]) for name in COUNTS}
        found |= {"pairs_per_second": pace, "ratio": pace["two"]["median"] / pace["one"]["median"], "ratio_bar": BAR}
    apart = {
        f"two_{strategy}": _apart(one["loss_auto"]["losses"], two[f"loss_{strategy}"]["losses"])
        for strategy in ("ddp", "captured", "fsdp")
        if both("loss_auto", f"loss_{strategy}")
    }
    if apart:
        found |= {"largest_relative_difference": apart, "tolerance": TOLERANCE}
    if both("memory", "memory"):
        found["memory_gib"] = {
            "one_gpu": one["memory"]["peak_gib_of_ranks"][0], "two_gpus_each": two["memory"]["peak_gib_of_ranks"],
        }  # fmt: skip
    return found


def _table(report: dict[str, Any]) -> str:
    def gib(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} GiB"

    lines = ["| | |", "|---|---|"]
    if "ratio" in report:
        pace, met = report["pairs_per_second"], "met" if report["ratio"] >= report["ratio_bar"] else "not met"
        lines += [
            f"| pairs/s, one GPU | {pace['one']['median']:.2f} |",
            f"| pairs/s, two GPUs | {pace['two']['median']:.2f} |",
            f"| ratio (bar {report['ratio_bar']}) | {report['ratio']:.3f}, {met} |",
        ]
    for name, value in report.get("largest_relative_difference", {}).items():
        held = "within" if value <= report["tolerance"] else "BEYOND"
        title = {"two_ddp": "DDP", "two_captured": "captured", "two_fsdp": "FSDP2"}[name]
        lines.append(f"| loss, {title} against one | {value:.1e}, {held} {report['tolerance']:g} |")
    if "memory_gib" in report:
        memory, arm = report["memory_gib"], report["arms"]["one"]["memory"]
        each = ", ".join(gib(value) for value in memory["two_gpus_each"])
        lines += [
            f"| {arm['backbone']}, {arm['blocks']} blocks, one GPU | {gib(memory['one_gpu'])} |",
            f"| the same shared by two, each | {each} |",
        ]
    arms = [arm for held in report.get("arms", {}).values() for arm in held.values()]
    devices = ", ".join(dict.fromkeys(arm["device"] for arm in arms)) or "nothing measured"
    return "\n".join([f"{devices}, random weights", *lines])


if __name__ == "__main__":
    sys.exit(main())
