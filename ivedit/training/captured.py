"""Replaying a training step's forward and backward pass as one CUDA graph.

At sprite size a step is thousands of tiny kernels, and an eager step spends its time launching them. A graph is
captured once, for fixed shapes and fixed addresses, and then launched as one: batches are copied into its input
buffers, its gradients and losses come out in its output buffers. Optimiser, averaging and clipping stay outside;
they are a few fused kernels each.

What a capturable step must keep to: static shapes; no read-back of a device value (`.item()`, boolean indexing,
printing); no tensor made from host data; parameters updated in place, never replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ivedit.errors import IveditError

__all__ = ["CapturedSteps", "StaticStep", "capture_obstacles", "choose_capture", "laid_out", "to_device"]

logger = logging.getLogger("ivedit.training")

Inputs = Mapping[str, Tensor]
_WARM_UP = 3


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it: pageable host memory is pinned first, else the copy would wait."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def laid_out(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients with their parameters' memory layout, as ``backward()`` leaves them and ``autograd.grad`` does not.

    One that is a slice of a wider gradient (of a product that several weights make together) would turn every operation
    on the whole list, of clipping and the optimiser, into hundreds of small ones.
    """
    return [
        g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
        for g, p in zip(gradients, parameters, strict=True)
    ]


class StaticStep:
    """Per-sample losses and gradients of their mean, from static buffers.

    Args:
        losses_of: Tensors by name -> per-sample losses (B,). Shapes are those of the first call for ever.
        parameters: What the gradients are for.
        device: Where it runs.
        graph: Capture a CUDA graph; False runs the same buffers eagerly, which is how a machine without a GPU tests
            everything but the capture itself.
        share: A step of other shapes that has run. This one uses its gradient buffers and its graph's memory, so that
            shapes cost inputs and losses only; a call of either overwrites the results of both.
    """

    def __init__(
        self,
        losses_of: Callable[[Inputs], Tensor],
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        *,
        graph: bool,
        share: StaticStep | None = None,
    ) -> None:
        self.share = share
        self.losses_of = losses_of
        self.parameters = list(parameters)
        self.device = device
        self.graph = graph
        self._inputs: dict[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self.losses = torch.empty(0)
        self.gradients: list[Tensor] = []

    def __call__(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """Run one micro-batch.

        Returns:
            Losses (B,) and one gradient per parameter, of the mean loss. Both are this object's own buffers and
            are overwritten by the next call.

        Raises:
            ValueError: Names or shapes differ from the first call's.
            RuntimeError: The capture failed, or the graph gives other losses than the eager step.
        """
        if not self._inputs:
            self._inputs = {
                name: torch.empty(value.shape, dtype=value.dtype, device=self.device) for name, value in inputs.items()
            }
        self._fill(inputs)
        if not self.graph:
            self._eager()
        elif self._graph is None:
            self._capture()
        else:
            self._graph.replay()
        return self.losses, self.gradients

    def _fill(self, inputs: Inputs) -> None:
        if inputs.keys() != self._inputs.keys():
            raise ValueError(f"the step was built for {sorted(self._inputs)}, not {sorted(inputs)}")
        for name, buffer in self._inputs.items():
            value = inputs[name]
            if value.shape != buffer.shape or value.dtype != buffer.dtype:
                raise ValueError(
                    f"{name} is {tuple(value.shape)} {value.dtype}; the step was built for {tuple(buffer.shape)} "
                    f"{buffer.dtype}"
                )
            buffer.copy_(to_device(value, self.device))

    def _run(self) -> tuple[Tensor, list[Tensor]]:
        losses = self.losses_of(self._inputs)
        gradients = torch.autograd.grad(losses.mean(), self.parameters, allow_unused=True, materialize_grads=True)
        return losses.detach(), laid_out(gradients, self.parameters)

    def _eager(self) -> None:
        losses, gradients = self._run()
        if not self.gradients:
            self.losses, self.gradients = losses.clone(), self._buffers(gradients)
            return
        self.losses.copy_(losses)
        torch._foreach_copy_(self.gradients, gradients)

    def _buffers(self, gradients: list[Tensor]) -> list[Tensor]:
        """Where the gradients are handed out: the other step's buffers, filled with these, or their own."""
        if self.share is None:
            return gradients if self.graph else [g.clone() for g in gradients]
        torch._foreach_copy_(self.share.gradients, gradients)
        return self.share.gradients

    def _capture(self) -> None:
        current = torch.cuda.current_stream(self.device)
        side = torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            # Libraries choose algorithms and allocate workspaces in the first passes, which no graph may contain.
            for _ in range(_WARM_UP):
                losses, gradients = self._run()
            expected = losses.clone()
            del losses, gradients
        current.wait_stream(side)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        # thread_local: a loader's pinning thread may use the device meanwhile without breaking the capture.
        pool = self.share._graph.pool() if self.share is not None and self.share._graph is not None else None
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self.losses, gradients = self._run()
            # Rebinding inside the capture gives this graph's own gradients back to the memory that graphs share.
            gradients = self.gradients = self._buffers(gradients)
        graph.replay()
        if not torch.allclose(self.losses, expected, rtol=0.05, atol=1e-3):
            worst = (self.losses - expected).abs().max().item()
            raise RuntimeError(f"the captured step's losses differ from the eager step's by up to {worst:.3g}")
        self._graph = graph


class CapturedSteps:
    """A `StaticStep` for each set of shapes (each of `data.buckets`), made at the first micro-batch that has them.

    Args:
        losses_of, parameters, device: As for `StaticStep`; a graph is captured on a GPU.
    """

    def __init__(
        self, losses_of: Callable[[Inputs], Tensor], parameters: Sequence[nn.Parameter], device: torch.device
    ) -> None:
        self.losses_of = losses_of
        self.parameters = list(parameters)
        self.device = device
        self._steps: dict[tuple[tuple[str, torch.Size], ...], StaticStep] = {}

    def __contains__(self, inputs: Inputs) -> bool:
        """Whether these shapes have their step."""
        return _shapes(inputs) in self._steps

    def __call__(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """As `StaticStep`, of which a failed first call leaves nothing behind."""
        key = _shapes(inputs)
        if key in self._steps:
            return self._steps[key](inputs)
        first = next(iter(self._steps.values()), None)
        step = StaticStep(self.losses_of, self.parameters, self.device, graph=self.device.type == "cuda", share=first)
        result = step(inputs)
        self._steps[key] = step
        pairs, *_, height, width = inputs["source"].shape
        logger.info("captured step %d: %d pairs of %dx%d latents", len(self._steps), pairs, height, width)
        return result


def _shapes(inputs: Inputs) -> tuple[tuple[str, torch.Size], ...]:
    return tuple((name, value.shape) for name, value in inputs.items())


def choose_capture(train: Any, device: torch.device, *, checkpointing: bool) -> tuple[bool, str]:
    """Whether a step is captured, and why.

    Args:
        train: ``train.capture``, ``train.strategy`` and ``train.nodes`` are read.
        device: Where the step runs.
        checkpointing: Whether the backbone recomputes its activations.

    Raises:
        IveditError: ``train.capture=on`` where it is impossible.
    """
    if train.capture == "off":
        return False, "train.capture=off"
    obstacles = capture_obstacles(train, device, checkpointing=checkpointing)
    if not obstacles:
        return True, f"CUDA graph, train.capture={train.capture}"
    if train.capture == "on":
        raise IveditError(f"train.capture=on is impossible: {' and '.join(obstacles)}; use auto or off")
    return False, f"train.capture=auto; {' and '.join(obstacles)}"


def capture_obstacles(train: Any, device: torch.device, *, checkpointing: bool) -> list[str]:
    """Why a step is not captured, unless ``train.capture`` is off; arguments as for `choose_capture`."""
    obstacles = []
    if device.type != "cuda":
        obstacles.append(f"the device is {device.type}")
    if train.strategy == "fsdp":
        obstacles.append("train.strategy=fsdp gathers weights while a step runs")
    if checkpointing:
        obstacles.append("backbone.gradient_checkpointing is on")
    if train.nodes > 1 and train.capture == "auto":
        obstacles.append(f"{train.nodes} machines, between which gradients are better summed during the backward pass")
    return obstacles
