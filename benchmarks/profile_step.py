"""Where the time of one step goes: a training step or a sampling step of a published backbone with random weights.

    python benchmarks/profile_step.py                                     # 1.3B, 480x832 pairs, width C/4, a GPU
    python benchmarks/profile_step.py --variant side_by_side --batch 4
    python benchmarks/profile_step.py --sample --frames 81 --batch 1
    python benchmarks/profile_step.py --layers 2 --height 64 --width 64 --device cpu --modes eager

The training step is the real one (`ivedit.training.EditModule`): source stream, target stream, loss, backward pass,
clipping and optimiser, on latents and texts made up on the spot. For each mode it prints milliseconds, counted
floating-point operations (PyTorch's own counter on the eager step) and the share of the matrix-product ceiling, which
is measured in the same process; then the kernels that took longest, and how the time divides among kinds of kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a clone that is not installed

MODES = ("eager", "compiled", "captured")
KINDS = (
    ("matrix products", r"gemm|cutlass.*(tn|nn|nt)_align|nvjet|cublas|xmma|sm90_.*mma|::mm\b|addmm|conv|implicit"),
    ("attention", r"flash|fmha|attention|cudnn_generated|sdpa"),
    ("compiled elementwise", r"^triton_"),
    ("copies", r"memcpy|memset|copy_kernel|direct_copy|CatArray"),
    ("optimiser", r"multi_tensor|foreach"),
)
"""Kinds of kernels by name, the first that fits; attention is looked for before matrix products."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON."""
    given = _parser().parse_args(arguments)
    if given.sample and "captured" in given.modes:
        print("error: --modes captured is of training steps only", file=sys.stderr)
        return 2
    import torch

    from ivedit.backbone.random_weights import random_backbone
    from ivedit.editor import build_editor, parameter_count

    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(0)
    backbone = random_backbone(
        given.backbone, device=device, layers=given.layers, gradient_checkpointing=given.checkpointing
    )
    settings: dict[str, Any] = {"variant": given.variant}
    if given.variant != "side_by_side":
        width = None if given.share == 1 else backbone.spec.width // given.share // backbone.spec.head_dim
        settings |= {"width": width and width * backbone.spec.head_dim, "gate_grain": "head", "copy_path": False}
    settings |= {key: json.loads(value) for key, value in (item.split("=", 1) for item in given.editor)}
    editor = build_editor(settings, backbone)
    report: dict[str, Any] = {
        "benchmark": "profile_step",
        "weights": "random",
        "backbone": backbone.spec.name,
        "editor": settings,
        "trained_weights": parameter_count(editor),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "frames": given.frames, "height": given.height, "width": given.width, "batch": given.batch,
        "attention_backend": given.sdpa, "text_bias": given.text_bias, "inductor": given.inductor,
        "gradient_checkpointing": given.checkpointing,
        "ceiling_tflops": round(ceiling(device), 1),
        "modes": {},
    }  # fmt: skip
    print(json.dumps({key: value for key, value in report.items() if key != "modes"}), flush=True)
    from torch._inductor import config as inductor

    from ivedit.editor.padded import with_bias

    chosen = {key: json.loads(value) for key, value in (item.split("=", 1) for item in given.inductor)}
    with contextlib.ExitStack() as settings_of_torch:
        settings_of_torch.enter_context(attention_backend(given.sdpa))
        settings_of_torch.enter_context(inductor.patch(chosen))
        if given.text_bias:
            settings_of_torch.enter_context(with_bias())
        for mode in given.modes:
            report["modes"][mode] = row = measure(mode, given, backbone, editor, report)
            print(f"\n## {mode}\n" + text_of(row), flush=True)
    report["environment"] = environment()
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/profile_step.py", description="Where the time of one step goes.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--backbone", default="wan2.1_1.3b", metavar="NAME", help="published backbone (default: wan2.1_1.3b)")
    add("--layers", type=int, metavar="N", help="only so many blocks")
    add("--variant", default="predict_update", help="editor variant (default: predict_update)")
    add("--share", type=int, default=4, metavar="N", help="modules of width C/N (default: 4)")
    add("--editor", nargs="*", default=[], metavar="key=JSON", help="further settings of the editor, e.g. mlp=512")
    add("--batch", type=int, default=8, metavar="N", help="pairs of a step, or clips (default: 8)")
    add("--draws", type=int, default=1, metavar="N", help="draws of noise that share a source (default: 1)")
    add("--frames", type=int, default=1, metavar="N", help="frames of a clip (default: 1)")
    add("--height", type=int, default=480, metavar="N", help="in pixels (default: 480)")
    add("--width", type=int, default=832, metavar="N", help="in pixels (default: 832)")
    add("--sample", action="store_true", help="a sampling step, beside the frozen backbone's own, in place of training")
    add("--features", action="store_true", help="sampling: keep source features and not their projections")
    add("--checkpointing", action="store_true", help="gradient checkpointing")
    add("--modes", nargs="+", default=["eager", "compiled"], choices=MODES,
        help="default: eager and compiled; captured: compiled, and replayed as a CUDA graph (training only)")
    add("--sdpa", default="default", choices=("default", "flash", "cudnn", "efficient"), help="attention kernels")
    add("--text-bias", action="store_true", help="mask padded text by a bias in place of sequences of own length")
    add("--inductor", nargs="*", default=[], metavar="key=JSON",
        help="settings of torch._inductor.config, e.g. coordinate_descent_tuning=true triton.multi_kernel=1")
    add("--steps", type=int, default=10, metavar="N", help="timed steps (default: 10)")
    add("--top", type=int, default=15, metavar="N", help="kernels to list (default: 15)")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--trace", type=Path, metavar="FILE", help="write the compiled step's trace for chrome://tracing")
    add("--out", type=Path, metavar="FILE", help="write the values, with the environment, as JSON")
    return parser


@contextlib.contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Prefer one of PyTorch's attention kernels; the others stay for what it cannot do."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if name == "default":
        yield
        return
    first = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }[name]
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel([first, *(other for other in others if other != first)], set_priority=True):
        yield


def ceiling(device: Any) -> float:
    """TFLOP/s of a bfloat16 matrix product of 8192^3 (of 512^3 in float32 on a CPU), the best of ten."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    return 2 * size**3 / 1e12 / min(timed(lambda: a @ b, device, 10))


def timed(step: Callable[[], Any], device: Any, count: int) -> list[float]:
    """Seconds of each of ``count`` calls, after one that is not counted."""
    import torch

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    step()
    found = []
    for _ in range(count):
        start = now()
        step()
        found.append(now() - start)
    return found


def training_step(given: argparse.Namespace, backbone: Any, editor: Any, *, capture: bool) -> Callable[[], Any]:
    """One optimiser step of the real training module on made-up pairs."""
    import torch

    from ivedit.config.schema import Config
    from ivedit.training import EditModule
    from ivedit.training.captured import StaticStep, to_device
    from ivedit.training.optim import clip_and_guard

    cfg = Config()
    cfg.flow.draws_per_pair, cfg.flow.change_share = given.draws, 0.5
    module = EditModule(backbone, editor, cfg, max_steps=1000).to(backbone.device)
    optimizer = module.configure_optimizers()["optimizer"]
    source, target = latents(given, backbone), latents(given, backbone)
    words, empty = texts(given, backbone, 24), texts(given, backbone, 1)
    batch = {"source": source, "target": target, "text_target": words, "text_gate": words, "text_source": empty}
    r = torch.linspace(0.02, 0.98, given.batch * given.draws)
    tensors = module.step_tensors(batch, r, list(range(len(r))), shift=module.shift, kind="uniform")
    on_device = {name: to_device(value, backbone.device) for name, value in tensors.items()}

    weights = module.trained_parameters()
    replayed = StaticStep(module.sample_losses, weights, backbone.device, graph=True) if capture else None

    def step() -> Any:
        if replayed is not None:
            losses, gradients = replayed(on_device)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
        else:
            optimizer.zero_grad(set_to_none=True)
            losses = module.sample_losses(on_device)
            losses.mean().backward()
        clip_and_guard(optimizer, [p.grad for p in module.trained_parameters() if p.grad is not None], 1.0)
        optimizer.step()
        return losses.detach()

    return step


def sampling_steps(given: argparse.Namespace, backbone: Any, editor: Any) -> dict[str, Callable[[], Any]]:
    """One denoising step of the editor and of the frozen backbone alone; reading the source, once per clip."""
    import torch

    from ivedit.editor import EditText

    source, noisy = latents(given, backbone).to(backbone.device), latents(given, backbone).to(backbone.device)
    words, empty = texts(given, backbone, 24).to(backbone.device), texts(given, backbone, 1).to(backbone.device)
    text = EditText(words, words, empty)
    sigma = torch.full((given.batch,), 0.7, device=backbone.device)

    @torch.no_grad()
    def read() -> Any:
        return editor.prepare(backbone, source, text, project=not given.features)

    context = read()

    @torch.no_grad()
    def edit() -> Any:
        return editor.velocity(backbone, noisy, sigma, context, text)

    @torch.no_grad()
    def frozen() -> Any:
        return backbone.velocity(noisy, sigma, words)

    return {"edit": edit, "frozen": frozen, "source": read}


def latents(given: argparse.Namespace, backbone: Any) -> Any:
    """(B, Z, F, h, w) random latents."""
    import torch

    spec = backbone.spec
    frames = 1 + (given.frames - 1) // spec.time_factor
    size = (spec.latent_channels, frames, given.height // spec.space_factor, given.width // spec.space_factor)
    return torch.randn(given.batch, *size)


def texts(given: argparse.Namespace, backbone: Any, real: int) -> Any:
    """Texts of ``real`` tokens (zeros behind them), as long as the backbone pads them."""
    import torch

    from ivedit.backbone import TextStates

    length = backbone.spec.text_length
    mask = (torch.arange(length) < real)[None].expand(given.batch, -1).contiguous()
    return TextStates(torch.randn(given.batch, length, backbone.spec.text_dim) * mask[..., None], mask)


def measure(mode: str, given: argparse.Namespace, backbone: Any, editor: Any, report: dict[str, Any]) -> dict[str, Any]:
    """All numbers of one mode."""
    import torch

    from ivedit.backbone.compiled import CompileClock

    device = backbone.device
    steps = sampling_steps(given, backbone, editor) if given.sample else {}
    step = steps["edit"] if given.sample else training_step(given, backbone, editor, capture=mode == "captured")
    if "tflop" not in report:  # counted on the plain step, whatever runs first
        plain = step if mode != "captured" else training_step(given, backbone, editor, capture=False)
        report["tflop"] = round(counted(plain), 3)
        report["tflop_frozen"] = round(counted(steps["frozen"]), 3) if given.sample else None
    with backbone.compiling(mode != "eager"):
        with CompileClock() as clock:
            step()
            for other in steps.values():
                other()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(timed(step, device, given.steps))
        rate = report["tflop"] / seconds
        row: dict[str, Any] = {
            "milliseconds": round(1000 * seconds, 2),
            "pairs_per_second": round(given.batch / seconds, 3),
            "compile_seconds": round(clock.seconds, 1),
            "tflop": report["tflop"],
            "tflops": round(rate, 1),
            "share_of_ceiling": round(rate / report["ceiling_tflops"], 3),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
        }
        if given.sample:
            frozen = statistics.median(timed(steps["frozen"], device, given.steps))
            row |= {
                "frozen_milliseconds": round(1000 * frozen, 2),
                "edit_to_frozen": round(seconds / frozen, 3),
                "edit_to_frozen_counted": round(report["tflop"] / report["tflop_frozen"], 3),
                "source_milliseconds": round(1000 * statistics.median(timed(steps["source"], device, 3)), 2),
            }
        row |= kernels(step, given, device)
    return row


def counted(step: Callable[[], Any]) -> float:
    """TFLOP of one call, by PyTorch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    from ivedit.editor.padded import with_bias

    # The counter does not know the variable-length kernel; so padded keys are counted as if they were attended to.
    with FlopCounterMode(display=False) as counter, with_bias():
        step()
    return counter.get_total_flops() / 1e12


def kernels(step: Callable[[], Any], given: argparse.Namespace, device: Any) -> dict[str, Any]:
    """Time by kernel and by kind of kernel, in milliseconds of one step."""
    from torch.profiler import ProfilerActivity, profile

    on_device = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_device]) as profiler:
        timed(step, device, 1)  # two steps: one warms up
    if given.trace:
        profiler.export_chrome_trace(str(given.trace))
    found = []
    for event in profiler.key_averages():
        spent = event.self_device_time_total if on_device else event.self_cpu_time_total
        if spent and (not on_device or str(event.device_type).endswith("CUDA")):
            found.append((spent / 2000, event.count // 2, event.key))
    found.sort(reverse=True)
    kinds: dict[str, float] = defaultdict(float)
    for spent, _, name in found:
        kinds[kind_of(name)] += spent
    return {
        "kinds": {kind: round(spent, 2) for kind, spent in sorted(kinds.items(), key=lambda item: -item[1])},
        "top": [[round(spent, 3), count, name[:150]] for spent, count, name in found[: given.top]],
    }


def kind_of(kernel: str) -> str:
    """The kind a kernel's name stands for."""
    order = ("attention", "compiled elementwise", "optimiser", "matrix products", "copies")
    patterns = dict(KINDS)
    return next((kind for kind in order if re.search(patterns[kind], kernel, re.IGNORECASE)), "elementwise")


def text_of(row: dict[str, Any]) -> str:
    """A mode's numbers as lines."""
    lines = ["  ".join(f"{key}={value}" for key, value in row.items() if key not in ("kinds", "top"))]
    lines += ["by kind (ms): " + ", ".join(f"{kind} {spent}" for kind, spent in row["kinds"].items())]
    return "\n".join([*lines, *(f"{spent:>9.3f} ms {count:>5}x  {name}" for spent, count, name in row["top"])])


def environment() -> dict[str, Any]:
    """Versions and machine, without the command, which names folders."""
    from ivedit.runfolder import describe_environment

    return {key: value for key, value in describe_environment().items() if key != "command"}


if __name__ == "__main__":
    sys.exit(main())
