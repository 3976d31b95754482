"""Metrics with networks of torchvision, an optional extra: LPIPS, and warp error along RAFT's optical flow.

Nothing is ever fetched: `evaluation.weights` names the file that torchvision publishes for a network, and which network
it is follows from what the file holds. Without the file, or without torchvision, a metric is skipped with that reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivedit.errors import ConfigError
from ivedit.evaluation.metrics.base import ClipMetric, Reference, Unavailable, frame_chunks, register_metric
from ivedit.evaluation.metrics.flow import SourceFlow, visible_pixels
from ivedit.evaluation.metrics.learned import named_weights
from ivedit.evaluation.metrics.motion import WarpError

__all__ = ["Perceptual", "RaftWarpError", "network_flow"]

_LPIPS_SMALLEST = 32
"""Shorter side of the smallest frames that LPIPS' backbones can look at."""

_RAFT_SMALLEST, _RAFT_LARGEST = 128, 720
"""Frames whose shorter side is outside are scaled to it for RAFT: below, its pyramid of correlations has no pixels
left; above, the correlations of all pixels with all others need gigabytes (3.7 at 1080 x 1920)."""

_PAIRS = 16
"""Pairs of frames that RAFT sees at once ..."""

_CORRELATIONS = 1 << 30
"""... but no more than whose correlations fill this many bytes."""


# -- networks ------------------------------------------------------------------------------------------------------


def _torchvision() -> Any:
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise Unavailable("torchvision is not installed: pip install 'ivedit[vision]'") from error
    return torchvision


def _state(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file or of one that `torch.save` wrote; nothing in it is run."""
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        first = str(error).strip().splitlines()[:1]
        raise ConfigError(f"evaluation.weights: {file} cannot be read: {''.join(first)}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"evaluation.weights: {file} holds no weights by name; give the file that torchvision has")
    return state


def _which(file: Path, state: Mapping[str, Tensor], networks: Mapping[str, Callable[..., nn.Module]], part: str) -> str:
    """Which of these networks the weights below ``part`` are of. ConfigError when they are of none."""

    def shapes(of: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in of.items() if name.startswith(part)}

    for name, build in networks.items():
        with torch.device("meta"):
            if shapes(build(weights=None).state_dict()) == shapes(state):
                return name
    raise ConfigError(f"evaluation.weights: {file} holds the weights of none of torchvision's {', '.join(networks)}")


def _lpips(file: Path, device: torch.device) -> nn.Module:
    """LPIPS with the backbone of ``file`` and the linear heads that torchmetrics ships (the authors' 0.1)."""
    models = _torchvision().models
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    state = _state(file)
    short: dict[str, Any] = {"alexnet": "alex", "vgg16": "vgg", "squeezenet1_1": "squeeze"}
    net = _which(file, state, {name: getattr(models, name) for name in short}, "features.")
    found = _NoTrainLpips(net=short[net], pnet_rand=True)
    # its backbone is the network's features cut into slices: slice1.0.weight, or slices.0.0.weight
    places = {name: name.removeprefix("slices.").split(".", 1)[1] for name in found.net.state_dict()}
    found.net.load_state_dict({name: state[f"features.{place}"] for name, place in places.items()})
    return found.to(device)


def _raft(file: Path, device: torch.device) -> nn.Module:
    from importlib import import_module

    _torchvision()
    flows = import_module("torchvision.models.optical_flow")
    state = _state(file)
    build = getattr(flows, _which(file, state, {n: getattr(flows, n) for n in ("raft_large", "raft_small")}, ""))
    found = build(weights=None)
    found.load_state_dict(state)
    return found.eval().requires_grad_(False).to(device)


_LOADING = threading.Lock()
_lpips_once, _raft_once = cache(_lpips), cache(_raft)


# -- LPIPS ---------------------------------------------------------------------------------------------------------


class Perceptual(ClipMetric):
    """LPIPS to the true edit, mean over frames (Zhang et al., CVPR 2018, arXiv 1801.03924).

    Args:
        file: Weights of torchvision's alexnet, vgg16 or squeezenet1_1.
        kept: Look at the kept region alone: inside the edited one the edit is given the true edit's own pixels, so that
            nothing there can count; where no true edit is known it is compared with the source.
    """

    higher_is_better = False

    def __init__(self, file: Path, kept: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.file, self.kept = file, kept

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) from 0; no value where there is no true edit, or with ``kept`` no kept region.

        Raises:
            ValueError: frames smaller than 32 pixels.
        """
        if min(edited.shape[-2:]) < _LPIPS_SMALLEST:
            raise ValueError(f"LPIPS needs frames of {_LPIPS_SMALLEST} pixels or more, got {tuple(edited.shape[-2:])}")
        with _LOADING:  # rows are measured in threads
            network = _lpips_once(self.file, edited.device)
        total = torch.zeros(len(edited), dtype=torch.float64, device=edited.device)
        for part in frame_chunks(edited):
            ours, true = edited[:, part].float(), reference.target[:, part].float()
            if self.kept:
                ours = torch.where(reference.mask[:, part], true, ours)
            found = network(ours.flatten(0, 1), true.flatten(0, 1), normalize=True)
            total += found.reshape(len(edited), -1).sum(dim=1).double()
        values = (total / edited.shape[1]).float()
        if not self.kept:
            return reference.against_truth(values)
        return torch.where(reference.mask.flatten(1).all(dim=1), torch.nan, values)


# -- RAFT ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def network_flow(pixels: Tensor, estimate: Callable[[Tensor, Tensor], Tensor]) -> SourceFlow:
    """Flow of clips by a network, with the visibility mask of the built-in one.

    Args:
        pixels: (B, T, 3, H, W) in [0, 1].
        estimate: Takes N first and N second frames (N, 3, H', W') in [-1, 1], both sides multiples of 8 and at least
            128; returns (N, 2, H', W'): (dx, dy) in pixels from each pixel of the first to where it is in the second.

    Returns:
        Backward flow, on the device of ``pixels``; empty for one frame.
    """
    b, t, _, h, w = pixels.shape
    backward, visible = pixels.new_zeros(b, t - 1, 2, h, w, dtype=torch.float32), []
    at_once = _pairs_at_once(h, w)
    for clip, out in zip(pixels, backward, strict=True):
        for start in range(0, t - 1, at_once):
            stop = min(start + at_once, t - 1)
            first, second = _scaled(clip[start:stop]), _scaled(clip[start + 1 : stop + 1])
            out[start:stop] = _unscaled(estimate(second, first), h, w)
            forward = _unscaled(estimate(first, second), h, w)
            both = (x.permute(0, 2, 3, 1).cpu().numpy() for x in (out[start:stop], forward))
            visible += [torch.from_numpy(visible_pixels(*pair)) for pair in zip(*both, strict=True)]
    seen = torch.stack(visible) if visible else torch.ones(0, h, w, dtype=torch.bool)
    return SourceFlow(backward, seen.reshape(b, t - 1, 1, h, w).to(pixels.device))


def _working_size(height: int, width: int) -> tuple[int, int]:
    """The size that RAFT sees frames at: multiples of 8, the shorter side within its limits."""
    short = min(height, width)
    factor = min(max(short, _RAFT_SMALLEST), _RAFT_LARGEST) / short
    return max(_RAFT_SMALLEST, round(height * factor / 8) * 8), max(_RAFT_SMALLEST, round(width * factor / 8) * 8)


def _pairs_at_once(height: int, width: int) -> int:
    cells = _working_size(height, width)[0] * _working_size(height, width)[1] // 64
    return max(1, min(_PAIRS, _CORRELATIONS // (cells * cells * 4)))


def _scaled(frames: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] to the working size, in [-1, 1]."""
    frames, size = frames.float(), _working_size(*frames.shape[-2:])
    if size != tuple(frames.shape[-2:]):
        frames = F.interpolate(frames, size, mode="bilinear", antialias=True).clamp(0, 1)
    return frames * 2 - 1


def _unscaled(flow: Tensor, height: int, width: int) -> Tensor:
    """(N, 2, H', W') in pixels there, to (N, 2, H, W) in pixels here."""
    there = flow.shape[-2:]
    if tuple(there) != (height, width):
        flow = F.interpolate(flow.float(), (height, width), mode="bilinear", antialias=True)
    return flow.float() * torch.tensor([width / there[1], height / there[0]], device=flow.device).view(2, 1, 1)


class RaftWarpError(WarpError):
    """`WarpError` along the flow that RAFT (Teed and Deng, ECCV 2020, arXiv 2003.12039) finds in the source.

    Args:
        file: Weights of torchvision's raft_large or raft_small.
    """

    def __init__(self, file: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.file = file

    def flow(self, reference: Reference) -> SourceFlow:
        """RAFT's flow of the sources, found once for all rows."""

        def find() -> SourceFlow:
            with _LOADING:
                network = _raft_once(self.file, reference.source.device)
            return network_flow(reference.source, lambda first, second: network(first, second)[-1])

        return reference.kept(f"raft {self.file}", find)


# -- registration --------------------------------------------------------------------------------------------------


def _file(evaluation: Any, name: str) -> Path:
    """The file of a network that can be built here. Raises `Unavailable`."""
    file = named_weights(evaluation, name)
    _torchvision()
    return file


@register_metric(
    "lpips", needs="lpips", better="lower", label="LPIPS", range="from 0", digits=3,
    meaning="How different the edit looks from the true edit to a network whose judgement was fitted to people's.",
    source="LPIPS 0.1 (arXiv 1801.03924) by torchmetrics, on alexnet, vgg16 or squeezenet1_1; mean over frames",
)  # fmt: skip
def _lpips_metric(evaluation: Any) -> ClipMetric:
    return Perceptual(_file(evaluation, "lpips"))


@register_metric(
    "kept_lpips", needs="lpips", better="lower", label="kept LPIPS", range="from 0", digits=3,
    meaning="How much damage outside the edited region is seen.",
    source="LPIPS 0.1 to the true edit (where none is known: the source), whose pixels stand in the edited region too",
)  # fmt: skip
def _kept_lpips_metric(evaluation: Any) -> ClipMetric:
    return Perceptual(_file(evaluation, "lpips"), kept=True)


@register_metric(
    "raft_warp_error", needs="raft", better="lower", label="RAFT warp error", range="0 to 1", digits=4,
    meaning="How badly the edit moves otherwise than its source; read it beside the source copy's own.",
    source="mean |e(t+1) - warp(e(t))| along the source's RAFT flow (arXiv 2003.12039), visible pixels",
)  # fmt: skip
def _raft_metric(evaluation: Any) -> ClipMetric:
    return RaftWarpError(_file(evaluation, "raft"))
