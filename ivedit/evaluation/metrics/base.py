"""What every video metric has in common: what it is fed, how it keeps one value per clip, how it is registered.

A metric keeps its value for *each clip* and not only a running mean, because every table compares rows on the same
clips with paired intervals (see `ivedit.evaluation.statistics`). A clip for which a metric is not defined (an edit
without a kept region, a source that stands still) gets NaN, "no value": it is counted, never replaced by a number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ivedit.errors import IveditError
from ivedit.evaluation.metrics.flow import PendingFlow, SourceFlow, source_flow
from ivedit.registry import Registry

__all__ = [
    "METRICS", "ClipMetric", "Reference", "Unavailable", "build_metrics", "frame_chunks", "measure", "register_metric",
    "skipped_metrics",
]

_CHUNK_PIXELS = 1 << 19
"""Pixels (of all clips of a batch) that a metric works on at once: large clips stay within the memory of a laptop, and
within a processor's cache, where they are several times faster."""


@dataclass
class Reference:
    """A batch of clips that edits are measured against.

    Attributes:
        source: (B, T, 3, H, W) the clips before the edit, in [0, 1].
        target: (B, T, 3, H, W) the true edits, in [0, 1]; where none is known, the source.
        mask: (B, T, 1, H, W) True (or above 0.5) where the true edit may differ from the source.
        clips: (B,) whole numbers that identify the clips; they order and pair values. Default: 0 .. B - 1.
        flow: The sources' optical flow, computed once and shared by all rows; it may still be under way
            (`start_source_flow`); None: computed when first asked for.
        truth: (B,) bool, whether ``target`` is a true edit. Without one, what is measured against it inside the edited
            region has no value; the kept region is still the source's. None: all are.
        captions: B descriptions of the wanted results, for metrics that read words; None, or "": not known.
        source_captions: B descriptions of the sources.
    """

    source: Tensor
    target: Tensor
    mask: Tensor
    clips: Tensor | None = None
    flow: SourceFlow | PendingFlow | None = None
    truth: Tensor | None = None
    captions: Sequence[str] | None = None
    source_captions: Sequence[str] | None = None
    _shared: dict[int, tuple[Tensor, dict[str, Any]]] = field(default_factory=dict, repr=False)
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)
    _once: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __post_init__(self) -> None:
        """Check shapes and make the mask boolean.

        Raises:
            ValueError: shapes that do not belong together, or pixels outside [0, 1].
        """
        if self.source.ndim != 5 or self.source.shape[2] != 3:
            raise ValueError(f"source must be (B, T, 3, H, W), got {tuple(self.source.shape)}")
        if self.target.shape != self.source.shape:
            raise ValueError(f"target {tuple(self.target.shape)} and source {tuple(self.source.shape)} differ")
        b, t, _, h, w = self.source.shape
        if tuple(self.mask.shape) != (b, t, 1, h, w):
            raise ValueError(f"mask must be {(b, t, 1, h, w)}, got {tuple(self.mask.shape)}")
        for name, pixels in (("source", self.source), ("target", self.target)):
            low, high = float(pixels.min()), float(pixels.max())
            if low < -1e-4 or high > 1 + 1e-4:
                raise ValueError(f"{name} pixels must lie in [0, 1], got {low:.3g} to {high:.3g}")
        if self.mask.dtype != torch.bool:
            self.mask = self.mask > 0.5
        if self.clips is None:
            self.clips = torch.arange(b, device=self.source.device)
        if self.clips.shape != (b,):
            raise ValueError(f"clips must be ({b},), got {tuple(self.clips.shape)}")
        if self.truth is not None and (self.truth.shape != (b,) or self.truth.dtype != torch.bool):
            raise ValueError(f"truth must be ({b},) bool, got {tuple(self.truth.shape)} {self.truth.dtype}")

    def region(self, name: str) -> Tensor:
        """(B, T, 1, H, W) bool: the ``edited`` region is the mask, the ``kept`` one the rest."""
        if name not in ("edited", "kept"):
            raise ValueError(f"a region is edited or kept, not {name!r}")
        return self.mask if name == "edited" else ~self.mask

    def flow_of_source(self) -> SourceFlow:
        """The sources' optical flow, on the sources' device."""
        with self._once:
            if self.flow is None:
                self.flow = source_flow(self.source)
            flow = self.flow.result() if isinstance(self.flow, PendingFlow) else self.flow
            self.flow = flow.to(self.source.device)
            return self.flow

    def against_truth(self, values: Tensor) -> Tensor:
        """``values`` (B, ...) where a true edit is known, no value elsewhere."""
        if self.truth is None:
            return values
        known = self.truth.to(values.device).view(-1, *[1] * (values.ndim - 1))
        return torch.where(known, values, torch.nan)

    def shared(self, key: str, edited: Tensor, compute: Callable[[], Any]) -> Any:
        """``compute()`` for this very tensor ``edited``, kept under ``key`` until `release`."""
        if edited is self.source:  # which rows are compared with, and which may be a row itself
            return self.kept(f"source: {key}", compute)
        _, found = self._shared.setdefault(id(edited), (edited, {}))
        if key not in found:
            found[key] = compute()
        return found[key]

    def kept(self, key: str, compute: Callable[[], Any]) -> Any:
        """``compute()``, kept under ``key`` for this reference's life: what depends on no edit is found once.

        Rows that are measured in several threads wait for one another here.
        """
        with self._once:
            if key not in self._kept:
                self._kept[key] = compute()
            return self._kept[key]

    def release(self, edited: Tensor | None = None) -> None:
        """Forget what `shared` keeps of ``edited``; None: of every edit."""
        if edited is None:
            self._shared.clear()
        else:
            self._shared.pop(id(edited), None)


def frame_chunks(clips: Tensor, overlap: int = 0) -> Iterator[slice]:
    """Slices of the frames of ``clips`` (B, T, C, H, W), a few at a time; each reaches ``overlap`` frames back.

    With ``overlap`` 1 every pair of neighbouring frames lies in exactly one slice.
    """
    b, t, _, h, w = clips.shape
    size = max(1, _CHUNK_PIXELS // (b * h * w))
    for start in range(overlap, t, size):
        yield slice(start - overlap, min(start + size, t))


class ClipMetric(Metric):
    """One value (or one vector of values) per clip; a torchmetrics `Metric` whose states gather over ranks.

    A subclass writes `measure`. Batches may come in any order and on any rank; `per_clip` puts them in the order of
    their clip numbers, and a clip that a distributed sampler showed twice counts once.
    """

    is_differentiable = False
    full_state_update = False
    values: list[Tensor]
    clips: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("clips", default=[], dist_reduce_fx="cat")

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B, T, 3, H, W) in [0, 1] -> (B,) or (B, K); NaN where the metric has no value."""
        raise NotImplementedError(f"{type(self).__name__} must define measure()")

    def update(self, edited: Tensor, reference: Reference) -> None:
        """Measure a batch of edited clips (B, T, 3, H, W) in [0, 1].

        Raises:
            ValueError: ``edited`` has another shape than the reference or leaves [0, 1].
            IveditError: `measure` gave another number of values than there are clips.
        """
        if edited.shape != reference.source.shape:
            raise ValueError(
                f"edited clips are {tuple(edited.shape)} and their sources {tuple(reference.source.shape)}"
            )
        low, high = reference.shared("range", edited, lambda: [float(end) for end in edited.aminmax()])
        if not (low >= -1e-4 and high <= 1 + 1e-4):  # also refuses NaN pixels
            raise ValueError(f"edited pixels must lie in [0, 1], got {low:.3g} to {high:.3g}")
        assert reference.clips is not None
        values = self.measure(edited, reference)
        if values.ndim not in (1, 2) or len(values) != len(edited):
            raise IveditError(
                f"{type(self).__name__}.measure gave values of shape {tuple(values.shape)} for {len(edited)} clips; it "
                f"must give one value per clip, ({len(edited)},), or one row of values, ({len(edited)}, K)"
            )
        self.values.append(values.detach().to(self.device, torch.float32))
        self.clips.append(reference.clips.to(self.device))

    def per_clip(self) -> tuple[Tensor, Tensor]:
        """(clip numbers ascending (M,), values (M,) or (M, K)) of everything seen by this process."""
        if isinstance(self.clips, list) and not self.clips:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0)
        clips, values = dim_zero_cat(self.clips), dim_zero_cat(self.values)
        unique, inverse = torch.unique(clips, return_inverse=True)
        kept = torch.empty((len(unique), *values.shape[1:]), dtype=values.dtype, device=values.device)
        kept[inverse] = values
        return unique, kept

    def compute(self) -> Tensor:
        """Mean over the clips that have a value: a scalar, or (K,); NaN when none has."""
        _, values = self.per_clip()
        if not len(values):
            return torch.tensor(float("nan"))
        return torch.nanmean(values, dim=0)


METRICS: Registry[Callable[[Any], ClipMetric]] = Registry("metric")
"""name -> factory that takes the ``evaluation`` section of the configuration and returns a `ClipMetric`, or raises
`Unavailable`."""


class Unavailable(Exception):
    """A metric that cannot be computed as configured, with the reason: shown as ``skipped (reason)``, never as 0."""


def register_metric(
    name: str, *, label: str, meaning: str, range: str, better: str, source: str, digits: int = 2, needs: str = ""
) -> Callable[[Callable[[Any], ClipMetric]], Callable[[Any], ClipMetric]]:
    """Decorator for a metric's factory; a module named in ``plugins:`` may use it too.

    Args:
        name: Key in results.json and in MLflow.
        label: Column title in tables, short.
        meaning: What it says, one sentence.
        range: Values it can take, with the unit.
        better: ``higher``, ``lower`` or ``near 1``.
        source: Formula or paper.
        digits: Decimals shown.
        needs: Entry of ``evaluation.weights`` without which it is skipped; empty: nothing.
    """
    if better not in ("higher", "lower", "near 1"):
        raise ValueError(f"better is higher, lower or near 1, not {better!r}")
    return METRICS.register(
        name, label=label, meaning=meaning, range=range, better=better, source=source, digits=digits, needs=needs
    )


def build_metrics(evaluation: Any) -> dict[str, ClipMetric]:
    """Every registered metric that can be computed, new and empty, for one row of a table."""
    return {name: found for name, found in _built(evaluation) if not isinstance(found, str)}


def measure(metrics: Mapping[str, ClipMetric], edited: Tensor, reference: Reference) -> None:
    """Show a batch of edits (B, T, 3, H, W) in [0, 1] to every metric of a row."""
    for metric in metrics.values():
        metric.update(edited, reference)


def skipped_metrics(evaluation: Any) -> dict[str, str]:
    """{metric: ``skipped (reason)``} of those that cannot."""
    return {name: found for name, found in _built(evaluation) if isinstance(found, str)}


def _built(evaluation: Any) -> Iterator[tuple[str, ClipMetric | str]]:
    for name in METRICS.names():
        try:
            yield name, METRICS.get(name)(evaluation)
        except Unavailable as reason:
            yield name, f"skipped ({reason})"
