"""Scenes to pixels: anti-aliased drawing from signed distances, vectorised over scenes and frames on any device.

Each shape's signed distance is tabulated once per device on a fine grid; an object then costs one bilinear
look-up per pixel instead of eight formulas and a selection. Distances are in units of the object's radius;
the edge is one output pixel soft.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import vocabulary as v
from .scene import SceneBatch

_REACH = 1.6  # the table covers [-_REACH, _REACH]; every shape ends at 1.1
_RESOLUTION = 256
_STROKE = 0.9  # half the width of an outline, in pixels of the 64 x 64 canvas
_LUMA = (0.299, 0.587, 0.114)
# Pixels drawn at once: small pieces stay in a CPU's cache, large ones fill a GPU.
_PIECE = {"cpu": 1 << 19, "cuda": 1 << 25}


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    dx, dy = x.abs() - width, y.abs() - height
    return torch.hypot(dx.clamp_min(0), dy.clamp_min(0)) + torch.maximum(dx, dy).clamp_max(0)


def _polygon(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Exact signed distance to a simple polygon: nearest edge, sign by counting crossings."""
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, torch.hypot(x - ax - along * ex, y - ay - along * ey))
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ex * (y - ay) / ey + ax)
    return torch.where(inside, -nearest, nearest)


def _on_circle(count: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """`count` corners around the origin, the first at the top, radii in turn."""
    angles = [2 * math.pi * k / count for k in range(count)]
    return [(radii[k % len(radii)] * math.sin(a), -radii[k % len(radii)] * math.cos(a)) for k, a in enumerate(angles)]


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Exact signed distance of two arcs and a corner (Quilez, 2D distance functions), scaled to fill the unit
    circle.
    """
    scale = 1.62
    x, y = x.abs() / scale, -y / scale + 0.57
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    half = 0.5 * (x + y).clamp_min(0)
    tip = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - half, y - half)) * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, tip) * scale


def shape_distance(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance, negative inside, of the shape `name` at x, y in units of its radius (y down)."""
    if name == "circle":
        return torch.hypot(x, y) - 1.0
    if name == "ring":
        return (torch.hypot(x, y) - 0.77).abs() - 0.25
    if name == "square":
        return _box(x, y, 0.775, 0.775)
    if name == "cross":
        return torch.minimum(_box(x, y, 1.02, 0.34), _box(x, y, 0.34, 1.02))
    if name == "triangle":
        return _polygon(x, y, _on_circle(3, (1.1,)))
    if name == "star":
        return _polygon(x, y, _on_circle(10, (1.1, 0.46)))
    if name == "diamond":
        return _polygon(x, y, [(0.0, -1.1), (0.62, 0.0), (0.0, 1.1), (-0.62, 0.0)])
    if name == "heart":
        return _heart(x, y)
    raise ValueError(f"unknown shape {name!r}")


@cache
def _atlas(device: torch.device) -> Tensor:
    """(1, 1, 8 * resolution, resolution): the distance tables of all shapes, one below the other."""
    with torch.inference_mode(False):
        line = torch.linspace(-_REACH, _REACH, _RESOLUTION, dtype=torch.float64)
        y, x = torch.meshgrid(line, line, indexing="ij")
        tables = [shape_distance(name, x, y) for name in v.SHAPES]
        return torch.cat(tables).to(torch.float32)[None, None].to(device)


def _frames(scenes: SceneBatch, frames: Tensor | None) -> Tensor:
    """(B, T) int64."""
    if frames is None:
        frames = torch.arange(v.FRAMES, device=scenes.device)
    frames = frames.to(scenes.device)
    return frames.expand(len(scenes), -1) if frames.ndim == 1 else frames


def _pixels(size: int, device: torch.device) -> Tensor:
    """(size,) pixel centres in canvas coordinates."""
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (v.CANVAS / size)


def _distances(scenes: SceneBatch, slot: int, centres: Tensor, radians: Tensor, size: int) -> Tensor:
    """(B, T, size, size) signed distance in canvas pixels of the objects in `slot`."""
    batch, times = centres.shape[0], centres.shape[2]
    line = _pixels(size, scenes.device)
    radius = v.table(v.RADII, scenes.device)[scenes.size[:, slot]][:, None]
    dx = line - centres[:, slot, :, 0, None]
    dy = line - centres[:, slot, :, 1, None]
    cosine = (torch.cos(radians[:, slot]) / (radius * _REACH))[..., None]
    sine = (torch.sin(radians[:, slot]) / (radius * _REACH))[..., None]
    across = (cosine * dx)[..., None, :] + (sine * dy)[..., None]
    down = ((cosine * dy)[..., None] - (sine * dx)[..., None, :]).clamp_(-1, 1)
    # Rows of the stacked tables, in the [-1, 1] coordinates of grid_sample with align_corners.
    rows = len(v.SHAPES) * _RESOLUTION - 1
    offset = (2 * scenes.shape[:, slot] * _RESOLUTION + _RESOLUTION - 1).to(torch.float32) / rows - 1
    down = down.mul_((_RESOLUTION - 1) / rows).add_(offset[:, None, None, None])
    grid = torch.stack((across, down), -1).view(batch, times * size, size, 2)
    atlas = _atlas(scenes.device).expand(batch, -1, -1, -1)
    found = F.grid_sample(atlas, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return found.view(batch, times, size, size).mul_(radius[..., None, None])


def _coverage(distance: Tensor, present: Tensor, size: int) -> Tensor:
    """Alpha in [0, 1] from signed distances (B, T, H, W) in canvas pixels; consumes `distance`. Empty slots
    give 0.
    """
    alpha = distance.mul_(-size / v.CANVAS).add_(0.5).clamp_(0, 1)
    return alpha.mul_(present.to(torch.float32)[:, None, None, None])


def _background(scenes: SceneBatch, size: int) -> Tensor:
    """(B, 1, 3, size, size): plain; gradient from the first colour at the top to the second; stripes;
    checkers from the top left.
    """
    line = _pixels(size, scenes.device)
    odd = torch.floor(line / v.TILE) % 2
    nothing = torch.zeros(size, size, device=scenes.device)
    stripes = odd.expand(size, size)
    share = torch.stack(
        (nothing, (line / v.CANVAS)[:, None].expand(size, size), stripes, (stripes - odd[:, None]).abs())
    )
    share = share[scenes.background][:, None, None]
    palette = v.table(v.BACKGROUND_RGB, scenes.device)
    first, second = palette[scenes.first], palette[scenes.second]
    return torch.lerp(first[:, None, :, None, None], second[:, None, :, None, None], share)


def _draw(scenes: SceneBatch, frames: Tensor, size: int) -> Tensor:
    centres, radians = scenes.centres(frames), torch.deg2rad(scenes.angles(frames))
    palette = v.table(v.COLOUR_RGB, scenes.device)
    canvas = _background(scenes, size).expand(-1, frames.shape[1], -1, -1, -1)
    ink = torch.zeros((*frames.shape, size, size), device=scenes.device)
    for slot in range(scenes.present.shape[1]):
        distance = _distances(scenes, slot, centres, radians, size)
        present = scenes.present[:, slot]
        stroke = (distance + _STROKE).abs_().sub_(_STROKE)
        ink = torch.maximum(ink, _coverage(stroke, present, size))
        alpha = _coverage(distance, present, size)[:, :, None]
        colour = palette[scenes.colour[:, slot]][:, None, :, None, None]
        canvas = torch.lerp(canvas, colour, alpha)  # alpha 0 leaves the canvas bit for bit
    style = scenes.style[:, None, None, None, None]
    luma = torch.stack([weight * canvas[:, :, c] for c, weight in enumerate(_LUMA)]).sum(0)
    canvas = torch.where(style == 1, luma[:, :, None], canvas)
    canvas = torch.where(style == 2, 1 - canvas, canvas)
    return torch.where(style == 3, 1 - ink[:, :, None], canvas).clamp_(0, 1)


def _pieces(scenes: SceneBatch, frames: Tensor, size: int) -> int:
    limit = _PIECE.get(scenes.device.type, 1 << 22)
    return max(1, limit // max(1, frames.shape[1] * size * size))


@torch.no_grad()
def render(scenes: SceneBatch, frames: Tensor | None = None, size: int = 64) -> Tensor:
    """(B, T, 3, size, size) float32 in [0, 1].

    frames: (T,) or (B, T) int64 in 0..16, the same or different ones per scene; all 17 when None. Styles act
    on the finished picture: grey is its luma, inverted its negative, outline black contours on white paper.
    """
    frames = _frames(scenes, frames)
    step = _pieces(scenes, frames, size)
    parts = [_draw(scenes[i : i + step], frames[i : i + step], size) for i in range(0, len(scenes), step)]
    if not parts:
        return torch.zeros((0, frames.shape[1], 3, size, size), device=scenes.device)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.no_grad()
def object_masks(scenes: SceneBatch, frames: Tensor | None = None, size: int = 64) -> Tensor:
    """(B, K, T, size, size) float32 in [0, 1]: how much of each pixel each object covers, styles left aside."""
    frames = _frames(scenes, frames)
    step = _pieces(scenes, frames, size)
    result = torch.zeros((len(scenes), scenes.present.shape[1], frames.shape[1], size, size), device=scenes.device)
    for begin in range(0, len(scenes), step):
        part, times = scenes[begin : begin + step], frames[begin : begin + step]
        centres, radians = part.centres(times), torch.deg2rad(part.angles(times))
        for slot in range(part.present.shape[1]):
            distance = _distances(part, slot, centres, radians, size)
            result[begin : begin + step, slot] = _coverage(distance, part.present[:, slot], size)
    return result
