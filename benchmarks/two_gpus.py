"""Two GPUs against one: pairs per second, the same loss, and the memory of a large backbone that two share.

    python benchmarks/two_gpus.py --out benchmarks/records/two_gpus.json     # two GPUs, about two minutes
    python benchmarks/two_gpus.py --device cpu --small                       # the same code at a toy size, gloo

The real training on random weights and random pairs of true size: `ivedit.training.fit` with its Trainer, module,
averaging and optimiser. One process first, then two through torchrun, each doing in turn:

- pace: the same batch on every GPU (DDP), windows of steps after the first one, which warms up;
- loss: a few steps of one global batch, on one GPU in twice as many micro-batches, on two with DDP and with FSDP2;
- memory: the large backbone with gradient checkpointing, whole on one GPU, shared by two (FSDP2), peak of each rank.

CUDA graphs and torch.compile are off on both sides: a graph needs one process, and compiling would take longer than
everything else here (--compile turns it on).
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
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a clone that is not installed

BAR = 1.9
"""Pairs per second of two GPUs over those of one."""
TOLERANCE = 5e-3
"""Relative difference of a step's loss in bfloat16: sums run in another order, and each step starts from the last."""


NO_DATA = ("data.reader=sprites", "data.path=null", "data.height=480", "data.width=480")
"""Settings of the experiments that name a data set; pairs are random here, at 480x832."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; 1 when an arm fails."""
    given = _parser().parse_args(arguments)
    if given.worker:
        work(given)
        return 0
    with tempfile.TemporaryDirectory(prefix="ivedit-two-gpus-") as folder:
        found: dict[str, Any] = {}
        for name, count in (("one", 1), ("two", 2)):
            file = Path(folder) / f"{name}.json"
            code = _launch(count, [*(arguments if arguments is not None else sys.argv[1:]), "--worker", str(file)])
            if code:
                print(f"error: the arm on {count} ended with exit code {code}", file=sys.stderr)
                return 1
            found[name] = json.loads(file.read_text(encoding="utf-8"))
    report = _report(given, found)
    print(_table(report))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/two_gpus.py", description="Two GPUs against one, in one command.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--backbone", default="wan2.1_1.3b", help="published backbone of pace and loss (default: %(default)s)")
    add("--large", default="wan2.1_14b", help="published backbone of memory (default: %(default)s)")
    add("--layers", type=int, help="blocks of --backbone (default: all)")
    add("--large-layers", type=int, default=10, help="blocks of --large (default: %(default)s, a quarter)")
    add("--batch", type=int, default=8, help="pairs per GPU and step (default: %(default)s)")
    add("--windows", type=int, default=4, help="windows whose pace is kept (default: %(default)s)")
    add("--window", type=int, default=6, help="steps of a window (default: %(default)s)")
    add("--loss-steps", type=int, default=5, help="steps compared (default: %(default)s)")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--small", action="store_true", help="two blocks, 32x32 pictures, short texts: for trying it out")
    add("--compile", action="store_true", help="torch.compile the blocks of pace")
    add("--out", type=Path, metavar="FILE", help="write the values, with the environment, as JSON")
    add("--note", default="", help="kept in the JSON: what else the machine was doing")
    add("--worker", metavar="FILE", help=argparse.SUPPRESS)
    return parser


def _launch(count: int, arguments: Sequence[str]) -> int:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count),
        str(Path(__file__).resolve()), *arguments,
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1", **os.environ}).returncode


# ---- one process


class Pairs:
    """Random batches as `PairDataModule` gives them, a function of (step, place in the step)."""

    def __init__(self, backbone: Any, batch: int, height: int, width: int, words: int, device: Any) -> None:
        spec = backbone.spec
        self.shape = (batch, spec.latent_channels, 1, height // spec.space_factor, width // spec.space_factor)
        self.text = (batch, words, spec.text_dim)
        self.device = device

    def batch(self, number: int) -> dict[str, Any]:
        """The batch of one place."""
        import torch

        from ivedit.backbone import TextStates

        generator = torch.Generator(self.device).manual_seed(number)

        def draw(shape: Sequence[int]) -> Any:
            return torch.randn(tuple(shape), generator=generator, device=self.device)

        mask = torch.ones(self.text[:2], dtype=torch.bool, device=self.device)
        words = TextStates(draw(self.text), mask)
        return {
            "source": draw(self.shape), "target": draw(self.shape),
            "text_target": words, "text_gate": words, "text_source": TextStates(torch.zeros_like(words.states), mask),
        }  # fmt: skip


class Arm:
    """One training on this process's share; `run` gives losses by step, seconds by window and peak memory."""

    def __init__(self, given: argparse.Namespace, device: Any, ranks: Any) -> None:
        self.given, self.device, self.ranks = given, device, ranks

    def run(
        self, name: str, *, layers: int | None, strategy: str, accumulate: int, batch: int, steps: int, large: bool
    ) -> dict[str, Any]:
        """Train ``steps`` steps of random pairs."""
        import torch

        from ivedit.backbone import random_backbone
        from ivedit.config import load
        from ivedit.editor import build_editor, parameter_count
        from ivedit.training import EditModule, build_trainer, fit
        from ivedit.training.distributed import share_editing
        from ivedit.training.loader import RunLoader

        given, world = self.given, self.ranks.world
        cfg = load(
            "paper_14b" if large else "paper_1.3b", *NO_DATA, f"train.devices={world}", f"train.batch_size={batch}",
            f"train.accumulate={accumulate}", f"train.strategy={strategy}", f"train.accelerator={given.device}",
            "train.capture=off", f"train.compile={'on' if given.compile else 'off'}", "train.log_every=1",
            f"train.max_steps={steps}", "train.warmup_steps=2",
            "flow.change_share=0", *(["editor.width=128"] if given.small else []),
        )  # fmt: skip
        height, width, words = (32, 32, 8) if given.small else (480, 832, 512)
        self._forget()
        shared = strategy == "fsdp"
        backbone = random_backbone(name, device=self.device, layers=layers, gradient_checkpointing=large)
        backbone._fingerprint = "random"  # hashing 28 GB would take longer than training here
        editor = build_editor(cfg.editor, backbone, seed=0)
        if shared:
            share_editing(backbone, editor, cfg, self.device)
        pairs = Pairs(backbone, batch, height, width, words, self.device)
        self._settle()
        module = EditModule(backbone, editor, cfg, max_steps=steps)
        told = Told()
        trainer = build_trainer(cfg, None, told, max_steps=steps)

        def batches(position: int) -> Iterator[dict[str, Any]]:
            # Number micro * world + rank: one rank with twice the micro-batches sees the same pairs as two.
            for micro in range(position, steps * accumulate):
                yield pairs.batch(micro * world + self.ranks.rank)

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        fit(trainer, module, RunLoader(steps * accumulate, batches))
        return {
            "backbone": name, "blocks": backbone.spec.blocks, "frozen_weights": None if shared else _count(backbone),
            "trained_weights": parameter_count(editor), "strategy": strategy if world > 1 else "one process",
            "batch_per_gpu": batch, "accumulate": accumulate, "world": world,
            "losses": told.losses, "seconds": told.seconds,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None,
        }  # fmt: skip

    def _settle(self) -> None:
        """What the building of whole weights has left must not count as the training's."""
        import gc

        import torch

        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _forget(self) -> None:
        import torch

        self._settle()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


class Told:
    """A tracker that keeps the loss of every step, and when it was known."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Losses are read back at every step, so this moment is the end of its work on the device."""
        if "train/loss" in values:
            self.losses.append(values["train/loss"])
            self.seconds.append(time.perf_counter())


def _count(backbone: Any) -> int:
    return sum(p.numel() for p in backbone.transformer.parameters())


def work(given: argparse.Namespace) -> None:
    """Every measurement of one process of the launcher; rank 0 writes them."""
    import torch

    from ivedit.config import load
    from ivedit.quiet import no_library_bars
    from ivedit.ranks import find_ranks, join
    from ivedit.training.distributed import local_device

    ranks = find_ranks()
    given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    train = load("paper_1.3b", *NO_DATA, f"train.accelerator={given.device}").train
    join(train)
    device = local_device(train)
    if device.type == "cpu":
        torch.set_num_threads(1)
    two = ranks.world > 1
    layers, large_layers = (2, 2) if given.small else (given.layers, given.large_layers)
    large = given.backbone if given.small else given.large
    arm = Arm(given, device, ranks)
    found: dict[str, Any] = {}
    small: dict[str, Any] = {"layers": layers, "large": False}
    with no_library_bars():
        steps = (given.windows + 1) * given.window
        found["pace"] = arm.run(
            given.backbone, strategy="auto", accumulate=1, batch=given.batch, steps=steps, **small
        )
        compile_was, given.compile = given.compile, False
        share = max(1, given.batch // 2)
        for strategy in ("ddp", "fsdp") if two else ("auto",):
            found[f"loss_{strategy}"] = arm.run(
                given.backbone, strategy=strategy, accumulate=1 if two else 2, batch=share, steps=given.loss_steps,
                **small,
            )  # fmt: skip
        found["memory"] = arm.run(
            large, layers=large_layers, strategy="fsdp" if two else "auto", accumulate=1, batch=1, steps=3, large=True
        )
        given.compile = compile_was
    peaks: list[Any] = [None] * ranks.world
    torch.distributed.all_gather_object(peaks, found["memory"]["peak_gib"])
    found["memory"]["peak_gib_of_ranks"] = peaks
    found["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    if ranks.rank == 0:
        Path(given.worker).write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


# ---- the report


def _pace(arm: dict[str, Any], given: argparse.Namespace) -> list[float]:
    """Pairs per second of all GPUs in each window but the first."""
    ends = arm["seconds"][given.window - 1 :: given.window]
    pairs = given.window * arm["batch_per_gpu"] * arm["accumulate"] * arm["world"]
    return [pairs / (after - before) for before, after in itertools.pairwise(ends)]


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


def _report(given: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    from ivedit.runfolder import describe_environment

    paces = {name: _pace(arms["pace"], given) for name, arms in found.items()}
    medians = {name: statistics.median(values) for name, values in paces.items()}
    reference = found["one"]["loss_auto"]["losses"]
    environment = describe_environment()
    return {
        "benchmark": "two_gpus",
        "device": found["two"]["device"],
        "weights": "random, of the published shapes",
        "settings": {
            name: getattr(given, name)
            for name in (
                "backbone", "layers", "large", "large_layers", "batch", "windows", "window", "small", "compile",
            )
        },
        "pairs_per_second": {name: {"windows": paces[name], "median": medians[name]} for name in paces},
        "ratio": medians["two"] / medians["one"],
        "ratio_bar": BAR,
        "losses": {
            "one": reference,
            "two_ddp": found["two"]["loss_ddp"]["losses"],
            "two_fsdp": found["two"]["loss_fsdp"]["losses"],
        },
        "largest_relative_difference": {
            "two_ddp": _apart(reference, found["two"]["loss_ddp"]["losses"]),
            "two_fsdp": _apart(reference, found["two"]["loss_fsdp"]["losses"]),
        },
        "tolerance": TOLERANCE,
        "memory": {
            "backbone": found["one"]["memory"]["backbone"],
            "blocks": found["one"]["memory"]["blocks"],
            "frozen_weights": found["one"]["memory"]["frozen_weights"],
            "trained_weights": found["one"]["memory"]["trained_weights"],
            "one_gpu_peak_gib": found["one"]["memory"]["peak_gib"],
            "two_gpus_peak_gib_each": found["two"]["memory"]["peak_gib_of_ranks"],
            "losses": {name: arms["memory"]["losses"] for name, arms in found.items()},
        },
        "environment": {k: environment[k] for k in ("python", "packages", "gpus", "cpu_count")},
        "note": given.note,
    }  # fmt: skip


def _table(report: dict[str, Any]) -> str:
    pace, apart, memory = report["pairs_per_second"], report["largest_relative_difference"], report["memory"]

    def gib(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} GiB"

    each = ", ".join(gib(value) for value in memory["two_gpus_peak_gib_each"])
    met = "met" if report["ratio"] >= report["ratio_bar"] else "not met"
    held = {name: "within" if value <= report["tolerance"] else "BEYOND" for name, value in apart.items()}
    return "\n".join([
        f"{report['device']}, {report['settings']['backbone']} with random weights",
        "| | |", "|---|---|",
        f"| pairs/s, one GPU | {pace['one']['median']:.2f} |",
        f"| pairs/s, two GPUs | {pace['two']['median']:.2f} |",
        f"| ratio (bar {report['ratio_bar']}) | {report['ratio']:.3f}, {met} |",
        f"| loss, DDP against one | {apart['two_ddp']:.1e}, {held['two_ddp']} {report['tolerance']:g} |",
        f"| loss, FSDP2 against one | {apart['two_fsdp']:.1e}, {held['two_fsdp']} {report['tolerance']:g} |",
        f"| {memory['backbone']}, {memory['blocks']} blocks, one GPU | {gib(memory['one_gpu_peak_gib'])} |",
        f"| the same shared by two, each | {each} |",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
