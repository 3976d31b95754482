"""A training step and a step of sampling of a configuration at true size, run on fake tensors by the package's code.

A backbone's blocks are alike, so two small numbers of blocks are run and everything else follows: what a step
allocates, computes and moves is affine in the number of blocks (`extrapolated`). A test holds this against all blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ivedit.backbone import Backbone
from ivedit.backbone.loading import keep_dtype
from ivedit.data.buckets import largest_size
from ivedit.data.text import TextStates
from ivedit.editor import EditText
from ivedit.editor.base import Editor
from ivedit.editor.build import editor_config
from ivedit.editor.registry import VARIANTS
from ivedit.planning.backbones import BackboneConfigs
from ivedit.planning.fused import Fusion, fusion_of
from ivedit.planning.ledger import Allocation, Ledger, Operation, gpu_kernels
from ivedit.training.ema import Ema
from ivedit.training.module import EditModule
from ivedit.training.optim import clip_and_guard

__all__ = ["BACKWARD", "KINDS", "PARTS", "UPDATE", "Model", "Moment", "Trace", "extrapolated"]

KINDS = ("frozen", "modules", "attention", "other")
PARTS = ("frozen", "trained", "optimiser", "ema", "cache", "gradients", "features", "batch", "activations", "working")
"""What memory is held by: weights of both kinds, optimiser state, averaged weights, the cache where the GPU keeps it,
gradients, the source stream's features, the batch, what the forward pass keeps for the backward pass, and everything
short-lived."""

_FORWARD, UPDATE = "the forward passes", "the update"
_FIRST, _LAST = "the backward pass's first blocks", "the backward pass's last blocks"
BACKWARD = (_FIRST, _LAST)


@dataclass(frozen=True)
class Moment:
    """Bytes by part (see `PARTS`) at the fullest moment of one phase."""

    phase: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Trace:
    """What one step does.

    Attributes:
        moments: The fullest moment of each phase.
        saved: Bytes that the forward pass leaves for the backward pass, source features aside.
        flops: By kind (see `KINDS`).
        moved: Bytes that kernels without a product read and write.
        seconds: By whatever the planner times it.
        operations: Every kernel; empty for an extrapolated trace.
    """

    moments: tuple[Moment, ...]
    saved: float
    flops: dict[str, float]
    moved: float
    seconds: dict[str, float] = field(default_factory=dict)
    operations: tuple[Operation, ...] = field(default=(), repr=False)

    @property
    def peak(self) -> Moment:
        """The fullest moment of all."""
        return max(self.moments, key=lambda moment: moment.total)


def extrapolated(low: Trace, high: Trace, at: tuple[float, float, float]) -> Trace:
    """The trace at ``at[2]`` of what was traced at ``at[0]`` and ``at[1]``, every quantity being affine in it."""
    share = (at[2] - at[0]) / (at[1] - at[0])

    def line(a: float, b: float) -> float:
        return a + share * (b - a)

    def lines(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
        return {key: line(a[key], b[key]) for key in a}

    moments = tuple(
        Moment(x.phase, {part: max(0.0, v) for part, v in lines(x.parts, y.parts).items()})
        for x, y in zip(low.moments, high.moments, strict=True)
    )
    return Trace(
        moments,
        line(low.saved, high.saved),
        lines(low.flops, high.flops),
        line(low.moved, high.moved),
        lines(low.seconds, high.seconds),
    )


class Model:
    """A backbone and an editor on fake tensors, with optimiser and average, ready to be run.

    Args:
        cfg: The run's `Config`.
        configs: Of its backbone.
        blocks: Transformer blocks to build.
        gpu: Storage types, precision and kernels of a GPU; False: of a CPU.
    """

    def __init__(self, cfg: Any, configs: BackboneConfigs, *, blocks: int, gpu: bool) -> None:
        from diffusers import WanTransformer3DModel

        self.configs, self.gpu = configs, gpu
        self.cfg = planned(cfg, configs, blocks=blocks, gpu=gpu)
        self.storage = {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.cfg.backbone.dtype]
        self.fake = FakeTensorMode()
        with self.fake:
            transformer = WanTransformer3DModel.from_config({**configs.transformer, "num_layers": blocks})
            keep_dtype(transformer, self.storage)
            self.backbone = Backbone(
                transformer.eval(),
                scheduler_config=configs.scheduler,
                vae_config=configs.vae,
                text_length=configs.text_length,
                name=configs.name,
            )
            resolved = editor_config(self.cfg.editor)
            self.editor: Editor = VARIANTS.get(resolved["variant"])(resolved, self.backbone)
            self.module = self._module(self.cfg)
            self.trained = self.module.trained_parameters()
            self.optimizer = self.module.configure_optimizers()["optimizer"]
            self.ema = Ema(self.trained, self.cfg.train.ema) if self.cfg.train.ema > 0 else None
            for p in self.trained:  # the first step makes the optimiser's state
                p.grad = torch.zeros_like(p)
            self._update()

    def _module(self, cfg: Any) -> EditModule:
        return EditModule(self.backbone, self.editor, cfg, max_steps=max(1, cfg.train.warmup_steps + 1))

    def _update(self) -> None:
        gradients = [p.grad for p in self.trained if p.grad is not None]
        clip_and_guard(self.optimizer, gradients, self.cfg.train.clip)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()

    def held(self) -> dict[str, float]:
        """Bytes that stay from step to step, by part."""
        states = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return {
            "frozen": _size([*self.backbone.parameters(), *self.backbone.buffers()]),
            "trained": _size(self.trained),
            "optimiser": _size(states),
            "ema": _size(self.ema.average if self.ema is not None else []),
        }

    # ---- a training step

    def training_step(self, *, batch: int, draws: int, checkpointing: bool) -> Trace:
        """One micro-batch and the update, from a state in which the optimiser has taken steps before."""
        cfg = copy.deepcopy(self.cfg)
        cfg.flow.draws_per_pair = draws
        module, ledger = self._module(cfg), Ledger()
        contexts: list[Allocation | None] = []
        prepare = self.editor.prepare

        def kept(*args: Any, **kwargs: Any) -> Any:
            context = prepare(*args, **kwargs)
            contexts.extend(ledger.allocation(t) for t in context.features)
            return context

        starts: list[int] = []
        run = self.backbone.block

        def marking(*args: Any, **openings: Any) -> Tensor:
            out = run(*args, **openings)
            if out.requires_grad:  # blocks before the first edit module have no backward pass
                out.register_hook(lambda _: starts.append(ledger.at))
            return out

        accumulating = self.cfg.train.accumulate > 1
        self.backbone.gradient_checkpointing = checkpointing
        with self.fake:
            for p in self.trained:
                p.grad = torch.zeros_like(p) if accumulating else None
        with self.fake, self._kernels(), ledger, _replaced(self.editor, "prepare", kept):
            ledger.mark_frozen(self.backbone.parameters())
            with ledger.during("batch"):
                tensors = self.tensors(batch, draws)
            with ledger.during(_FORWARD), _replaced(self.backbone, "block", marking):
                losses = module.training_losses(tensors)
                loss = losses.mean() / cfg.train.accumulate
            alive = [a for a in ledger.allocations if a.died is None]
            with ledger.during("backward"):
                loss.backward()
            gradients = [ledger.allocation(p.grad) for p in self.trained if p.grad is not None]
            del losses, loss
            ledger.split("backward", _ends(starts, self.cfg.editor.every))
            with ledger.during(UPDATE):
                self._update()
        kinds = dict.fromkeys((id(a) for a in alive), "activations")
        kinds |= dict.fromkeys((id(a) for a in map(ledger.allocation, tensors.values())), "batch")
        kinds |= dict.fromkeys((id(a) for a in contexts), "features")
        kinds |= dict.fromkeys((id(a) for a in gradients), "gradients")

        def part(allocation: Allocation) -> str:
            return kinds.get(id(allocation), "working")

        held = self.held() | {"gradients": 4.0 * sum(p.numel() for p in self.trained) if accumulating else 0.0}
        saved = sum(a.size for a in alive if part(a) == "activations")
        return _trace(ledger, held, part, saved)

    def fusion(self, *, batch: int, draws: int) -> Fusion:
        """What compiling leaves of a block with an edit module."""
        found: list[Fusion] = []
        run, wanted = self.backbone.block, self.editor.blocks[-1]

        def block(index: int, hidden: Tensor, *args: Any, **openings: Any) -> Tensor:
            if index == wanted and not found:
                found.append(fusion_of(lambda h: run(index, h, *args, **openings), hidden))
            return run(index, hidden, *args, **openings)

        cfg = copy.deepcopy(self.cfg)
        cfg.flow.draws_per_pair = draws
        self.backbone.gradient_checkpointing = False
        with self.fake, self._kernels(), _replaced(self.backbone, "block", block):
            self._module(cfg).training_losses(self.tensors(batch, draws))
        for p in self.trained:
            p.grad = None
        return found[0]

    def tensors(self, batch: int, draws: int) -> dict[str, Tensor]:
        """Inputs of `EditModule.sample_losses`, as the datamodule's batches have them on a GPU."""
        cfg, spec = self.cfg, self.backbone.spec
        height, width = largest_size(cfg, spec.size_multiple)
        size = (spec.latent_channels, 1, height // spec.space_factor, width // spec.space_factor)
        tensors = {
            "source": torch.zeros(batch, *size),
            "target": torch.zeros(batch, *size),
            "sigma": torch.zeros(batch * draws),
            "noise": torch.zeros(batch * draws, *size),
        }
        for name in _texts(cfg):
            text = self._text(batch)
            tensors[f"{name}_states"], tensors[f"{name}_mask"] = text.states, text.mask
        return tensors

    def _text(self, batch: int) -> TextStates:
        spec = self.backbone.spec
        states = torch.zeros(batch, spec.text_length, spec.text_dim, dtype=self.storage)
        return TextStates(states, torch.zeros(batch, spec.text_length, dtype=torch.bool))

    # ---- sampling

    def sampling(
        self, *, frames: int, clips: int, size: tuple[int, int], project: bool
    ) -> tuple[Trace, Trace, float]:
        """Reading the sources of clips of ``size`` (height, width), one denoising step of them (one branch), and the
        bytes kept between steps."""
        cfg, spec = self.cfg, self.backbone.spec
        latent = 1 + (frames - 1) // spec.time_factor
        rows, columns = (side // spec.space_factor for side in size)
        shape = (clips, spec.latent_channels, latent, rows, columns)
        reading, step = Ledger(), Ledger()
        held = self.held()
        held = {"frozen": held["frozen"], "trained": held["trained"], "optimiser": 0.0, "ema": 0.0}
        with self.fake, self._kernels(), torch.no_grad():
            latents, texts = torch.zeros(shape), {name: self._text(clips) for name in _texts(cfg)}
            text = EditText(texts["target"], texts.get("gate", texts["target"]), texts.get("source", texts["target"]))
            with reading, reading.during("reading the source"):
                reading.mark_frozen(self.backbone.parameters())
                context = self.editor.prepare(self.backbone, latents, text, project=project)
            kept = context.bytes()
            with step, step.during("denoising"):
                step.mark_frozen(self.backbone.parameters())
                self.editor.velocity(self.backbone, latents, torch.zeros(clips), context, text)
        return (
            _trace(reading, held, lambda _: "working", 0),
            _trace(step, held | {"features": float(kept)}, lambda _: "working", 0),
            float(kept),
        )

    def _kernels(self) -> Any:
        return gpu_kernels() if self.gpu else nullcontext()


def planned(cfg: Any, configs: BackboneConfigs, *, blocks: int, gpu: bool) -> Any:
    """A copy of ``cfg`` whose automatic choices are made, for a backbone cut to ``blocks``."""
    cfg = copy.deepcopy(cfg)
    if cfg.backbone.dtype == "auto":
        cfg.backbone.dtype = "bfloat16" if gpu else "float32"
    if cfg.train.precision == "auto":
        cfg.train.precision = "bf16-mixed" if gpu else "32-true"
    if hasattr(cfg.train, "compile"):
        cfg.train.compile = "off"
    if hasattr(cfg.sampling, "compile"):
        cfg.sampling.compile = "off"
    if cfg.editor.match_parameters is not None:
        cfg.editor.match_parameters = round(cfg.editor.match_parameters * blocks / configs.blocks)
    return cfg


def _texts(cfg: Any) -> list[str]:
    """The texts of a batch that are objects of their own."""
    own = ["target"]
    if cfg.text.gate == "shuffled" or cfg.text.target == "target_caption":
        own.append("gate")
    if cfg.text.source == "empty" or cfg.text.target == "target_caption":
        own.append("source")
    return own


def _size(tensors: Any) -> float:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return float(sum(storages.values()))


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An instance's method is another one inside the block."""
    object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        object.__delattr__(owner, name)


def _trace(ledger: Ledger, held: dict[str, float], part: Callable[[Allocation], str], saved: float) -> Trace:
    bounds = {name: span for name, span in ledger.bounds.items() if name != "batch"}
    moments = [_moment(name, ledger.allocations, span, held, part) for name, span in bounds.items()]
    flops = {kind: float(sum(o.flops for o in ledger.operations if o.kind == kind)) for kind in KINDS}
    moved = float(sum(o.moved for o in ledger.operations if not o.flops))
    operations = tuple(ledger.operations)
    return Trace(tuple(moments), float(saved), flops, moved, operations=operations)


def _ends(starts: list[int], every: int) -> dict[str, tuple[int | None, int | None]]:
    """The parts of a backward pass that are alike for any number of blocks; in between, memory goes from one to the
    other in a straight line.

    Args:
        starts: Where the backward pass of each block that has one begins, the last block first.
        every: Blocks that are alike only as a group.
    """
    if len(starts) <= every:
        return {_FIRST: (None, None)}
    return {_FIRST: (None, starts[every]), _LAST: (starts[-every], None)}


def _moment(
    name: str,
    allocations: list[Allocation],
    span: tuple[int, int],
    held: dict[str, float],
    part: Callable[[Allocation], str],
) -> Moment:
    """The fullest moment between two operations."""
    first, last = span
    change = [0] * (last - first + 2)
    for a in allocations:
        # what is freed after an operation was there during it
        begin, end = max(a.born, first), last + 1 if a.died is None else min(a.died, last) + 1
        if a.born <= last and begin < end:
            change[begin - first] += a.size
            change[end - first] -= a.size
    live, best, where = 0, -1, first
    for place, delta in enumerate(change[:-1]):
        live += delta
        if live > best:
            best, where = live, first + place
    parts = dict.fromkeys(PARTS, 0.0) | held
    for a in allocations:
        if a.born <= where and (a.died is None or a.died >= where):
            parts[part(a)] += a.size
    return Moment(name, parts)
