"""From a configuration to numbers: memory, operations and time of a step on a named GPU, sampling, the cache."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ivedit.backbone import Backbone
from ivedit.backbone.compiled import LARGE
from ivedit.data.buckets import largest_size
from ivedit.editor.base import module_blocks
from ivedit.editor.build import editor_config
from ivedit.editor.registry import VARIANTS
from ivedit.errors import ConfigError
from ivedit.planning.backbones import BackboneConfigs, text_encoder_parameters, vae_parameters
from ivedit.planning.fused import Fusion
from ivedit.planning.gpus import Gpu
from ivedit.planning.simulate import BACKWARD, UPDATE, Model, Moment, Trace, extrapolated
from ivedit.training.captured import capture_obstacles
from ivedit.training.run import total_steps

__all__ = ["CONTEXT", "RESERVE", "Planner", "Step", "steps_of_run"]

CONTEXT = 0.76 * 2**30
"""Bytes that a process needs on a GPU besides its tensors: CUDA's context and its libraries' code (on an H200)."""
RESERVE = 0.05
"""Share of the peak that the allocator loses between tensors (3 to 11% on an H200, part of which it can give back)."""
FUSED = 1.48
"""Traffic of compiled code over what it would be if all code between products were fused (measured on an H200)."""
DDP_SHARE = 0.95
"""Pairs/s of N GPUs together over N times those of one (assumed)."""
WORDS = 24
"""Tokens of an instruction in the cache (assumed)."""


@dataclass(frozen=True)
class Step:
    """A training step on one GPU.

    Attributes:
        trace: Of a micro-batch with the update behind it.
        seconds: Of one micro-batch without the update.
        update_seconds: Of the update.
        limit: gpu, or host where launching the kernels takes longer than running them.
    """

    trace: Trace
    seconds: float
    update_seconds: float
    limit: str

    @property
    def needed(self) -> float:
        """Bytes of GPU memory, context and the allocator's loss included."""
        return self.trace.peak.total * (1 + RESERVE) + CONTEXT


class Planner:
    """Plans for one configuration; what is asked twice is computed once.

    Args:
        cfg: The run's `Config`.
        configs: Of its backbone.
        gpu: What it is to run on.

    Raises:
        ConfigError: editor and backbone do not fit together.
    """

    def __init__(self, cfg: Any, configs: BackboneConfigs, gpu: Gpu) -> None:
        self.cfg, self.configs, self.gpu = cfg, configs, gpu
        self.spec = Backbone(
            None,
            scheduler_config=configs.scheduler,
            vae_config=configs.vae,
            transformer_config=configs.transformer,
            text_length=configs.text_length,
            name=configs.name,
        ).spec
        self._check_size()
        every, blocks = cfg.editor.every, configs.blocks
        self.modules = len(module_blocks(every, blocks))
        self.sizes: tuple[int, ...] = (2 * every, 3 * every) if blocks > 3 * every else (blocks,)
        self._models: dict[tuple[int, int | None], Model] = {}
        self._fusion: Fusion | None = None
        self._steps: dict[tuple[Any, ...], Step] = {}
        self._traces: dict[tuple[int, int, bool, int | None], Trace] = {}
        self._samplings: dict[tuple[Any, ...], list[tuple[Trace, Trace, float]]] = {}

    def _check_size(self) -> None:
        for name, pixels, patch in (
            ("height", self.cfg.data.height, self.spec.patch[1]), ("width", self.cfg.data.width, self.spec.patch[2]),
        ):  # fmt: skip
            if pixels % (multiple := self.spec.space_factor * patch):
                raise ConfigError(f"data.{name}: {pixels} does not divide by {multiple}, as {self.spec.name} needs")

    # ---- what will be chosen

    @property
    def world(self) -> int:
        """GPUs of the run."""
        return int(self.cfg.train.devices * self.cfg.train.nodes)

    @property
    def shards(self) -> int:
        """Over how many GPUs the weights are spread."""
        return int(self.cfg.train.devices) if self.cfg.train.strategy == "fsdp" else 1

    @property
    def compiles(self) -> bool:
        """Whether the training step is compiled."""
        return self._compiles(self.cfg.train.compile)

    @property
    def compiles_sampling(self) -> bool:
        """Whether sampling is compiled."""
        return self._compiles(self.cfg.sampling.compile)

    def _compiles(self, setting: str) -> bool:
        large = self.parameters["frozen"]["transformer"] >= LARGE
        return bool(setting == "on" or (setting == "auto" and large))

    def captures(self, checkpointing: bool) -> bool:
        """Whether the training step is replayed as a CUDA graph."""
        train, device = self.cfg.train, torch.device("cuda")
        return train.capture != "off" and not capture_obstacles(train, device, checkpointing=checkpointing)

    # ---- parameters

    @cached_property
    def parameters(self) -> dict[str, dict[str, int]]:
        """Number of weights, by part: ``frozen`` and ``trained``."""
        frozen = {"transformer": round(self._line(lambda m: _count(m.backbone.transformer.parameters())))}
        if self.configs.text_encoder is not None:
            frozen["text_encoder"] = text_encoder_parameters(self.configs.text_encoder)
        frozen["vae"] = vae_parameters(self.configs.vae)
        parts: dict[str, int] = {}
        for name, weight in self.model(self.sizes[0]).editor.named_parameters():
            path = name.split(".")
            part = next((word for word in path[1:] if not word.isdigit()), path[0])
            parts[part] = parts.get(part, 0) + weight.numel()
        share = self.modules / len(self.model(self.sizes[0]).editor.blocks)
        trained = {part: round(count * share) for part, count in parts.items()}
        config = editor_config(self.cfg.editor)
        expected = VARIANTS.get(config["variant"]).expected_parameters(config, self.spec)
        return {"frozen": frozen, "trained": trained | {"all": int(expected)}}

    # ---- training

    def step(
        self,
        *,
        batch: int | None = None,
        draws: int | None = None,
        checkpointing: bool | None = None,
        compiles: bool | None = None,
        width: int | None = None,
        shards: int | None = None,
    ) -> Step:
        """A training step with these settings; None: as configured."""
        cfg = self.cfg
        batch = batch or cfg.train.batch_size
        draws = draws or cfg.flow.draws_per_pair
        checkpointing = cfg.backbone.gradient_checkpointing if checkpointing is None else checkpointing
        compiles = self.compiles if compiles is None else compiles
        shards = shards or self.shards
        key = (batch, draws, checkpointing, compiles, width, shards)
        if key not in self._steps:
            self._steps[key] = self._step(batch, draws, checkpointing, compiles, width, shards)
        return self._steps[key]

    def _step(
        self, batch: int, draws: int, checkpointing: bool, compiles: bool, width: int | None, shards: int
    ) -> Step:
        trace = self._trace(batch, draws, checkpointing, width)
        if compiles:
            trace = _compiled(trace, self.fusion())
        if shards > 1:
            trace = self._sharded(trace, shards, width)
        resident = {"cache": float(self.cache()["gpu_bytes"])}
        trace = replace(trace, moments=tuple(replace(m, parts=m.parts | resident) for m in trace.moments))
        seconds = trace.seconds
        kernels = 0.0 if self.captures(checkpointing) else seconds["launches"] * self.gpu.launch_us * 1e-6
        busy = _busy(trace)
        update = max(seconds["update"], seconds["update launches"] * self.gpu.launch_us * 1e-6)
        return Step(trace, max(busy, kernels), update, "gpu" if busy >= kernels else "host")

    def _trace(self, batch: int, draws: int, checkpointing: bool, width: int | None) -> Trace:
        """Of an eager step on one GPU."""
        key = (batch, draws, checkpointing, width)
        if key not in self._traces:
            models = [self.model(blocks, width) for blocks in self.sizes]
            traces = [m.training_step(batch=batch, draws=draws, checkpointing=checkpointing) for m in models]
            self._traces[key] = self._joined([self._timed(trace) for trace in traces])
        return self._traces[key]

    def largest_batch(self, *, checkpointing: bool | None = None, compiles: bool | None = None) -> int:
        """The largest micro-batch that fits, 0 for none: memory is affine in it, between and beyond two plans."""
        base = self.cfg.train.batch_size
        other = self.smaller_batch() or 2 * base
        one, two = (self.step(batch=n, checkpointing=checkpointing, compiles=compiles) for n in (base, other))
        best = None
        for low, high in zip(one.trace.moments, two.trace.moments, strict=True):
            slope = (high.total - low.total) / (other - base)
            free = (self.gpu.memory - CONTEXT) / (1 + RESERVE) - low.total
            if slope > 0:
                fits = base + free / slope
                best = fits if best is None else min(best, fits)
        return max(0, int(best)) if best is not None else base

    def smaller_batch(self) -> int | None:
        """The largest micro-batch of at most half the size that divides it; None for a single pair."""
        batch = self.cfg.train.batch_size
        return next((n for n in range(batch // 2, 0, -1) if batch % n == 0), None)

    def fusion(self) -> Fusion:
        """What compiling a block leaves of its memory and traffic."""
        if self._fusion is None:  # the shares hardly depend on the settings, and tracing takes seconds
            self._fusion = self.model(self.sizes[0]).fusion(batch=2, draws=1)
        return self._fusion

    def model(self, blocks: int, width: int | None = None) -> Model:
        """The simulated model of so many blocks."""
        if (blocks, width) not in self._models:
            cfg = self.cfg
            if width is not None:
                cfg = copy.deepcopy(cfg)
                cfg.editor.width = width
            self._models[blocks, width] = Model(cfg, self.configs, blocks=blocks, gpu=True)
        return self._models[blocks, width]

    def _timed(self, trace: Trace) -> Trace:
        """With the time of its kernels, by kind; those of the update apart."""
        seconds = dict.fromkeys(
            ("frozen", "modules", "attention", "other", "update", "launches", "update launches"), 0.0
        )
        for operation in trace.operations:
            taken = self.gpu.seconds(operation.kind, operation.flops, operation.moved, operation.length)
            if operation.phase == UPDATE:
                seconds["update"] += taken
                seconds["update launches"] += 1
            else:
                seconds[operation.kind] += taken
                seconds["launches"] += 1
        return replace(trace, seconds=seconds, operations=())

    def _joined(self, traces: list[Trace]) -> Trace:
        if len(traces) == 1:
            return traces[0]
        return extrapolated(traces[0], traces[1], (*self.sizes, self.configs.blocks))  # type: ignore[arg-type]

    def _line(self, of: Any) -> float:
        """A quantity of the model with all its blocks, from those with few."""
        values = [of(self.model(blocks)) for blocks in self.sizes]
        if len(values) == 1:
            return float(values[0])
        low, *_, high = self.sizes
        return float(values[0] + (self.configs.blocks - low) * (values[1] - values[0]) / (high - low))

    def _sharded(self, trace: Trace, shards: int, width: int | None) -> Trace:
        """Weights and what belongs to them spread over GPUs; two blocks are put together at a time."""
        block = (self.model(self.sizes[-1], width).held()["frozen"] - self.model(self.sizes[0], width).held()["frozen"])
        block = block / (self.sizes[-1] - self.sizes[0]) if len(self.sizes) > 1 else 0.0

        def spread(moment: Moment) -> Moment:
            parts = dict(moment.parts)
            for part in ("frozen", "trained", "optimiser", "ema", "gradients"):
                parts[part] /= shards
            parts["working"] += 2 * block
            return Moment(moment.phase, parts)

        return replace(trace, moments=tuple(spread(moment) for moment in trace.moments))

    # ---- sampling

    def frames(self) -> int:
        """Frames of the clip that sampling is planned for."""
        return int(self.cfg.evaluation.frames) if self.cfg.evaluation.enabled else 81

    def sampling(
        self,
        *,
        frames: int | None = None,
        clips: int = 1,
        size: tuple[int, int] | None = None,
        cached: bool | None = None,
    ) -> dict[str, float | bool | int]:
        """Memory, operations and time of editing clips; see `docs/scale.md`.

        Args:
            frames: Of a clip; None: as configured.
            clips: Sampled at once.
            size: (height, width); None: as configured.
            cached: Whether the source's keys and values are kept between steps; None: where they fit.
        """
        frames, scheduled = frames or self.frames(), self.cfg.sampling
        height, width = size or (self.cfg.data.height, self.cfg.data.width)
        shape = {"frames": frames, "clips": clips, "size": (height, width)}
        runs = self._sampled(shape, project=True)
        kept = self._scaled([kept for _, _, kept in runs])
        held = runs[0][0].moments[0].parts
        tokens = 1 + (frames - 1) // self.spec.time_factor
        tokens *= clips * (height // self.spec.space_factor // self.spec.patch[1])
        tokens *= width // self.spec.space_factor // self.spec.patch[2]
        stream = self.model(self.sizes[0]).editor.uses_source_stream
        features = 2.0 * self.modules * tokens * self.spec.width if stream else 0.0
        free = self.gpu.memory - CONTEXT - held["frozen"] - held["trained"]
        used = kept <= free / 2 if cached is None else cached
        if not used:  # each step projects the features
            runs = self._sampled(shape, project=False)
        reading = self._joined([self._timed(trace) for trace, _, _ in runs])
        step = self._joined([self._timed(trace) for _, trace, _ in runs])
        if self.compiles_sampling:
            reading, step = _compiled(reading, self.fusion()), _compiled(step, self.fusion())
        guided = 1 if scheduled.guidance == 1 else 2
        return {
            "frames": frames,
            "features_bytes": features,
            "cached_bytes": kept,
            "cached": used,
            "peak_bytes": max(reading.peak.total, step.peak.total),
            "reading_flops": sum(reading.flops.values()),
            "step_flops": guided * sum(step.flops.values()),
            "step_seconds": guided * _busy(step),
            "clip_seconds": scheduled.steps * guided * _busy(step) + _busy(reading),
        }

    def _sampled(self, shape: dict[str, Any], *, project: bool) -> list[tuple[Trace, Trace, float]]:
        key = (*shape.values(), project)
        if key not in self._samplings:
            self._samplings[key] = [self.model(n).sampling(**shape, project=project) for n in self.sizes]
        return self._samplings[key]

    def _scaled(self, values: list[float]) -> float:
        """Bytes that are proportional to the number of modules."""
        return values[0] * self.modules / len(self.model(self.sizes[0]).editor.blocks)

    # ---- the cache

    def cache(self) -> dict[str, float | str | bool]:
        """Size of the encoded latents and texts, where they will be, and the encoders that fill it."""
        cfg, spec = self.cfg, self.spec
        height, width = largest_size(cfg, spec.size_multiple)
        places = (height // spec.space_factor) * (width // spec.space_factor)
        pairs = cfg.data.pairs + cfg.data.validation_pairs
        mirrored = cfg.data.pairs if cfg.data.flip > 0 else 0  # kept besides the plain ones, for training alone
        latents = 2.0 * 4 * spec.latent_channels * places * (pairs + mirrored)
        texts = 2.0 * WORDS * spec.text_dim * pairs
        parameters = self.parameters["frozen"]
        free = self.gpu.memory - CONTEXT - self.model_bytes()
        on_gpu = cfg.data.cache == "memory" and latents <= free / 4
        return {
            "kind": cfg.data.cache,
            "latents_bytes": latents,
            "texts_bytes": texts,
            "on_gpu": on_gpu,
            "gpu_bytes": latents + texts if on_gpu else 0.0,
            "encoders_bytes": 2.0 * parameters.get("text_encoder", 0) + 4.0 * parameters["vae"],
        }

    def model_bytes(self) -> float:
        """Bytes of the frozen transformer."""
        return self._line(lambda model: model.held()["frozen"])


def steps_of_run(cfg: Any) -> int:
    """Optimiser steps of the run; ConfigError as of `total_steps`."""
    train = cfg.train
    return total_steps(cfg, cfg.data.pairs // (train.batch_size * train.devices * train.nodes))


def _compiled(trace: Trace, fusion: Fusion) -> Trace:
    def less(moment: Moment) -> Moment:
        # with gradient checkpointing, what a block keeps for its own backward pass is there for a moment only
        shrinks = ("activations", "working") if moment.phase in BACKWARD else ("activations",)
        return Moment(moment.phase, moment.parts | {part: moment.parts[part] * fusion.saved for part in shrinks})

    moments = tuple(less(moment) for moment in trace.moments)
    seconds = trace.seconds | {
        "other": trace.seconds["other"] * min(1.0, FUSED * fusion.moved),
        "launches": trace.seconds["launches"] * fusion.kernels,
    }
    return replace(trace, moments=moments, saved=trace.saved * fusion.saved, seconds=seconds)


def _busy(trace: Trace) -> float:
    """Seconds that a GPU computes, the update aside."""
    return sum(trace.seconds[kind] for kind in ("frozen", "modules", "attention", "other"))


def _count(weights: Any) -> int:
    return sum(weight.numel() for weight in weights)
