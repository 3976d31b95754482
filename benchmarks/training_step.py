"""How long one training step takes: the real training, its step captured as a CUDA graph or eager.

    python benchmarks/training_step.py                    # a GPU: captured, eager
    python benchmarks/training_step.py --device cpu       # eager

Whole runs of ``python -m ivedit.run experiment=imvideoedit`` in a temporary folder; their pace is read from
metrics.jsonl, so it holds everything that training does between two logged lines (batches, draws, optimiser, averaging,
logging). The first window captures and warms up; it is kept but not counted. What of a step is the framework's is
measured by ``wan.py --parts sprites``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a clone that is not installed

SETTINGS = ("data.pairs=1280", "data.validation_pairs=64", "train.batch_size=64", "flow.draws_per_pair=1")
"""What is timed unless the command line says otherwise; the modules are those of the full method."""

EXAMPLES = """\
examples:
  python benchmarks/training_step.py --out new.json
  python benchmarks/training_step.py --device cpu --steps 6 --window 2 train.batch_size=4 data.pairs=8"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON; the exit code of a run that fails."""
    given = _parser().parse_args(arguments)
    if given.window < 1 or given.steps < 2 * given.window or given.steps % given.window:
        print(f"error: --steps {given.steps} is not two or more whole windows of {given.window}", file=sys.stderr)
        return 2
    import torch

    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = [
        "experiment=imvideoedit", *SETTINGS, f"train.max_steps={given.steps}", f"train.log_every={given.window}",
        f"train.checkpoint_every={given.steps}", "train.validate_every=0", f"train.accelerator={device}",
        "evaluation.enabled=false", "tracking.kind=none",
    ]  # fmt: skip
    paces: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="ivedit-benchmark-") as folder:
        settings += [f"data.cache_dir={folder}/cache", *given.settings]  # one cache for all arms
        try:
            for name, capture in (("captured", "on"), ("eager", "off"))[device != "cuda" :]:
                paces[name] = run_pace([*settings, f"train.capture={capture}"], Path(folder) / name)
        except subprocess.CalledProcessError as error:
            return int(error.returncode)
        weights, batch = sizes(settings)
    report = {
        "benchmark": "training_step",
        "settings": [text for text in settings if not text.startswith("data.cache_dir")],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "trained_weights": weights,
        "batch_size": batch,
        "window_steps": given.window,
        "arms": {name: summary(windows, batch) for name, windows in paces.items()},
        "environment": environment(),
        "note": given.note,
    }
    report["captured_to_eager"] = ratio(report["arms"])
    print(table(report))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/training_step.py", description="Time a training step of the full method.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("settings", nargs="*", metavar="key=value", help="further settings, as for python -m ivedit.run")
    add("--steps", type=int, default=260, metavar="N", help="optimiser steps of each arm (default: 260)")
    add("--window", type=int, default=20, metavar="N", help="steps whose mean pace is one value (default: 20)")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--out", type=Path, metavar="FILE", help="write the values, with the environment, as JSON")
    add("--note", default="", metavar="TEXT", help="kept in the JSON: what else the machine was doing")
    return parser


def run_pace(settings: list[str], output: Path) -> list[float]:
    """Steps per second in each window of a real run. CalledProcessError when it fails, after showing its output."""
    command = [sys.executable, "-m", "ivedit.run", *settings, f"output_dir={output}"]
    print(f"{output.name}: training ...", flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    done.check_returncode()
    from ivedit.runfolder import RunFolder

    (run,) = output.iterdir()
    rows = RunFolder.open(run).read_metrics()
    return [row["train/steps_per_second"] for row in rows if "train/steps_per_second" in row]


def sizes(settings: list[str]) -> tuple[int, int]:
    """Trained weights, and pairs of a step."""
    from ivedit.backbone import Backbone
    from ivedit.config.compose import compose
    from ivedit.editor import build_editor, parameter_count

    cfg = compose(settings).config
    backbone = Backbone.load(cfg.backbone.path, dtype=cfg.backbone.dtype, text_length=cfg.text.length)
    return parameter_count(build_editor(cfg.editor, backbone, seed=cfg.seed)), cfg.train.batch_size


def summary(windows: list[float], batch: int) -> dict[str, Any]:
    """The median pace of the windows after the first, and what it comes to."""
    pace = statistics.median(windows[1:])
    return {
        "first_window_steps_per_second": round(windows[0], 3),
        "windows_steps_per_second": [round(value, 3) for value in windows[1:]],
        "steps_per_second": round(pace, 3),
        "milliseconds_per_step": round(1000 / pace, 2),
        "pairs_per_second": round(pace * batch, 1),
    }


def ratio(arms: dict[str, Any]) -> float | None:
    """How many times faster the captured step is; None without a GPU."""
    if "captured" not in arms:
        return None
    return round(arms["captured"]["steps_per_second"] / arms["eager"]["steps_per_second"], 2)


def environment() -> dict[str, Any]:
    """Versions and machine, without the command, which names folders."""
    from ivedit.runfolder import describe_environment

    return {key: value for key, value in describe_environment().items() if key != "command"}


def table(report: dict[str, Any]) -> str:
    """A Markdown table of a measurement."""
    lines = [
        f"{report['device']}, batch {report['batch_size']}, {report['trained_weights'] / 1e6:.2f}M trained weights",
        "",
        "| step     | ms per step | pairs/s | windows |",
        "|----------|-------------|---------|---------|",
    ]
    for name, arm in report["arms"].items():
        pace, pairs = f"{arm['milliseconds_per_step']:.1f}", f"{arm['pairs_per_second']:.0f}"
        lines.append(f"| {name:<8} | {pace:<11} | {pairs:<7} | {len(arm['windows_steps_per_second']):<7} |")
    if report["captured_to_eager"]:
        lines += ["", f"captured / eager: {report['captured_to_eager']:.1f} times as many steps per second"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
