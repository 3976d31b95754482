"""Fit any clip to what the backbone draws, and back: letterboxing in space, overlapping blended windows in time.

A backbone is good at one picture size and one clip length. A clip of another size is scaled into that size with its
aspect kept and its borders repeated outwards, so that nothing of it is cut off and its edges come back. A longer clip
is cut into windows that overlap and are cross-faded in pixel space (as MultiDiffusion, arXiv 2302.08113, does in
latents). Windows start at multiples of the time factor, so that a latent frame stands for the same pixel frames in
every window, and its noise depends on its absolute place only: where windows meet they start from the same noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ivedit.config.buckets import size_name
from ivedit.flow import draw_noise
from ivedit.flow.draws import mix_seed
from ivedit.media import to_uint8


@dataclass(frozen=True)
class Window:
    """Frames [start, start + length) of a clip."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        """One behind the last frame."""
        return self.start + self.length


def padded_length(frames: int, factor: int) -> int:
    """The next length of the form 1 + n * factor, which a causal video VAE takes."""
    return 1 + -(-(frames - 1) // factor) * factor


def plan_windows(frames: int, window: int, overlap: int, factor: int) -> list[Window]:
    """Windows of ``window`` frames that cover a clip of ``frames`` (both 1 + n * factor).

    Neighbours share ``overlap`` frames (the last pair may share more), starts are multiples of ``factor``; a clip
    that fits one window is one window of its own length.

    Raises:
        ValueError: a length that is not 1 + n * factor, or an overlap that leaves no step.
    """
    for name, value in (("clip", frames), ("window", window), ("overlap", overlap)):
        if value < 1 or (value - 1) % factor:
            raise ValueError(f"the {name} has {value} frames, not 1 + a multiple of {factor}")
    if overlap >= window:
        raise ValueError(f"windows of {window} frames cannot overlap by {overlap}")
    if frames <= window:
        return [Window(0, frames)]
    starts = list(range(0, frames - window, window - overlap))
    return [Window(start, window) for start in [*starts, frames - window]]


def blend_weights(windows: Sequence[Window], overlap: int) -> list[Tensor]:
    """One weight per frame and window, (length,) each; over all windows they sum to 1 at every frame.

    A window fades in and out linearly over ``overlap`` frames, except at the clip's own ends.
    """
    stop = windows[-1].stop
    total, ramps = torch.zeros(stop, dtype=torch.float64), []
    for window in windows:
        place = torch.arange(window.length, dtype=torch.float64)
        ramp = torch.ones_like(place)
        if window.start > 0:
            ramp = torch.minimum(ramp, (place + 1) / (overlap + 1))
        if window.stop < stop:
            ramp = torch.minimum(ramp, (window.length - place) / (overlap + 1))
        ramps.append(ramp)
        total[window.start : window.stop] += ramp
    return [
        (ramp / total[window.start : window.stop]).float() for window, ramp in zip(windows, ramps, strict=True)
    ]


def blend(windows: Sequence[Window], clips: Iterable[Tensor], overlap: int) -> Iterator[Tensor]:
    """Cross-fade the windows' pixels (length, 3, H, W) in [0, 1]: yields (n, 3, H, W) pieces, in order, complete.

    Only what a later window can still touch is held while that window is made; float32 clips are changed in place.
    """
    weights = blend_weights(windows, overlap)
    pending: Tensor | None = None  # weighted sums of the frames from the current window's start on
    coming = iter(clips)  # not zipped: zip would keep the last clip alive while the next one is made
    for number, window in enumerate(windows):
        share = next(coming).float()
        share *= weights[number].to(share.device)[:, None, None, None]
        if pending is not None:
            share[: len(pending)] += pending
        done = windows[number + 1].start - window.start if number + 1 < len(windows) else window.length
        pending = share[done:].clone()  # a view would hold the whole window
        piece = share[:done]
        del share
        yield piece
        del piece


def window_noise(seed: int, window: Window, factor: int, shape: tuple[int, int, int]) -> Tensor:
    """Noise (1, Z, F, h, w) of a window's latents; ``shape`` is (Z, h, w).

    Latent frame i of a window that starts at frame s is the clip's latent frame s / factor + i, and its noise is a
    function of the seed and that number alone.
    """
    first = window.start // factor
    frames = 1 + (window.length - 1) // factor
    noise = draw_noise(shape, [mix_seed(seed, first + i) for i in range(frames)])
    return noise.transpose(0, 1)[None].contiguous()


@dataclass(frozen=True)
class Letterbox:
    """How pictures of ``source`` (H, W) lie in pictures of ``target``: scaled to ``inner``, ``top`` and ``left`` in."""

    source: tuple[int, int]
    target: tuple[int, int]
    inner: tuple[int, int]
    top: int
    left: int

    @classmethod
    def fit(cls, source: tuple[int, int], target: tuple[int, int]) -> Letterbox:
        """The largest picture of the source's aspect inside the target, in its middle.

        A portrait source turns a landscape target, and the other way round: a backbone that draws one draws both.
        """
        if target[0] != target[1] and (source[0] > source[1]) != (target[0] > target[1]):
            target = target[::-1]
        scale = min(target[0] / source[0], target[1] / source[1])
        inner = (max(1, round(source[0] * scale)), max(1, round(source[1] * scale)))
        return cls(source, target, inner, (target[0] - inner[0]) // 2, (target[1] - inner[1]) // 2)

    @property
    def padded(self) -> bool:
        """Whether borders are added."""
        return self.inner != self.target

    def into(self, frames: Tensor) -> Tensor:
        """(T, 3, *source) float in [0, 1] to (T, 3, *target); the outermost pixels are repeated outwards."""
        small = _resize(frames, self.inner)
        right, bottom = self.target[1] - self.inner[1] - self.left, self.target[0] - self.inner[0] - self.top
        return torch.nn.functional.pad(small, (self.left, right, self.top, bottom), mode="replicate")

    def back(self, frames: Tensor) -> Tensor:
        """(T, 3, *target) to (T, 3, *source): the borders are cut off again."""
        rows, columns = slice(self.top, self.top + self.inner[0]), slice(self.left, self.left + self.inner[1])
        return _resize(frames[..., rows, columns], self.source)

    def __str__(self) -> str:
        """What was done, in words; sizes as `--size` takes them."""
        border = f", borders to {size_name(self.target)}" if self.padded else ""
        if self.source == self.inner:
            return f"kept its size, {size_name(self.source)} (height x width){border}"
        return f"resized {size_name(self.source)} -> {size_name(self.inner)} (height x width){border}, and back"


class Cut:
    """Cuts a source into windows one after the other: (length, 3, h, w) uint8 at the backbone's size.

    The last frame fills what a window has more. Between two calls only the frames that the next window shares are held.
    """

    def __init__(self, source: Iterable[Tensor], box: Letterbox, windows: Sequence[Window]) -> None:
        self._frames, self._box = iter(source), box
        self._coming = iter([*windows[1:], Window(windows[-1].stop, 0)])
        self.shared = torch.empty(0, 3, *box.target, dtype=torch.uint8)

    def __call__(self, window: Window) -> Tensor:
        pixels = torch.empty(window.length, 3, *self._box.target, dtype=torch.uint8)
        known = len(self.shared)
        pixels[:known] = self.shared
        for place in range(known, window.length):
            frame = next(self._frames, None)
            small = None if frame is None else to_uint8(self._box.into(frame[None].float() / 255)[0])
            pixels[place] = pixels[place - 1] if small is None else small
        self.shared = pixels[next(self._coming).start - window.start :].clone()
        return pixels


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(frames.shape[-2:]) == size:
        return frames
    return torch.nn.functional.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 1)
