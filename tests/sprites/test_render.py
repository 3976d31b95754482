"""Rendering: recognisable shapes of the named colours, the same pixels however they are asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ivedit.sprites import object_masks, render, sample_scenes
from ivedit.sprites import vocabulary as v
from ivedit.sprites.render import shape_distance


def test_frames_asked_for_alone_are_those_of_the_clip():
    scenes = sample_scenes(0, torch.arange(6), "pretrain")
    clip = render(scenes)
    assert clip.shape == (6, v.FRAMES, 3, 64, 64) and clip.dtype == torch.float32
    assert clip.min() >= 0 and clip.max() <= 1
    assert torch.equal(render(scenes, torch.tensor([0, 7, 16])), clip[:, [0, 7, 16]])
    frames = torch.tensor([[3], [0], [16], [1], [2], [9]])
    assert torch.equal(render(scenes, frames), clip[torch.arange(6)[:, None], frames])


def test_a_scene_looks_the_same_in_any_batch():
    scenes = sample_scenes(1, torch.arange(200), "pretrain")
    frames = torch.tensor([4])
    assert torch.equal(render(scenes, frames)[150:153], render(scenes[150:153], frames))
    assert render(scenes[:0], frames).shape == (0, 1, 3, 64, 64)


def test_masks_show_where_objects_are_drawn():
    scenes = sample_scenes(2, torch.arange(40), "train")
    clip, masks = render(scenes, torch.tensor([0, 16])), object_masks(scenes, torch.tensor([0, 16]))
    empty = render(replace(scenes, present=torch.zeros_like(scenes.present)), torch.tensor([0, 16]))
    changed = (clip != empty).any(2)
    assert torch.equal(changed, (masks > 0).any(1))
    palette = torch.tensor(v.COLOUR_RGB)
    solid = masks == 1
    for slot in range(v.MAX_OBJECTS):
        expected = palette[scenes.colour[:, slot]][:, None, :, None, None].expand_as(clip)
        inside = solid[:, slot, :, None].expand_as(clip)
        assert torch.equal(clip[inside], expected[inside])
    assert (masks[~scenes.present] == 0).all() and (masks.sum(1) <= 1).all()


def test_shapes_stay_inside_their_bounding_circle_at_every_angle():
    scenes = sample_scenes(3, torch.arange(60), "pretrain")
    masks, centres = object_masks(scenes), scenes.centres()
    line = torch.arange(64) + 0.5
    dx, dy = line - centres[..., 0, None], line - centres[..., 1, None]
    distance = torch.hypot(dx[..., None, :], dy[..., None])
    outside = distance > scenes.bounds[..., None, None, None] + 0.5**0.5  # the pixel's own half diagonal
    assert (masks[outside] == 0).all()


def test_every_two_shapes_differ_clearly_at_every_size():
    for size in range(len(v.SIZES)):
        scenes = sample_scenes(0, torch.arange(len(v.SHAPES)), "pretrain")
        one = torch.zeros_like(scenes.present)
        one[:, 0] = True
        scenes = replace(
            scenes,
            present=one,
            shape=torch.arange(len(v.SHAPES))[:, None].expand(-1, v.MAX_OBJECTS),
            size=torch.full_like(scenes.size, size),
            speed=torch.zeros_like(scenes.speed),
            start=torch.full_like(scenes.start, 32.0),
            low=torch.zeros_like(scenes.low),
            high=torch.full_like(scenes.high, 64.0),
            angle=torch.zeros_like(scenes.angle),
            spin=torch.zeros_like(scenes.spin),
        )
        masks = object_masks(scenes, torch.tensor([0]))[:, 0, 0].flatten(1)
        shared = torch.minimum(masks[:, None], masks[None]).sum(-1)
        either = torch.maximum(masks[:, None], masks[None]).sum(-1)
        likeness = (shared / either).fill_diagonal_(0)
        assert likeness.max() < 0.8, likeness


def test_colours_are_far_apart_and_unlike_every_background():
    colours, grounds = torch.tensor(v.COLOUR_RGB), torch.tensor(v.BACKGROUND_RGB)
    assert torch.cdist(colours, colours).fill_diagonal_(9).min() > 0.45
    assert torch.cdist(colours, grounds).min() > 0.4
    assert torch.cdist(grounds, grounds).fill_diagonal_(9).min() > 0.3
    assert not set(v.COLOURS) & set(v.BACKGROUND_COLOURS)


def test_distances_are_negative_inside_and_about_one_per_unit():
    line = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    for name in v.SHAPES:
        distance = shape_distance(name, x, y)
        slope = torch.hypot(*torch.gradient(distance, spacing=(line, line)))
        edge = distance.abs() < 0.05
        assert (slope[edge] - 1).abs().median() < 0.02, name
        assert torch.hypot(x, y)[distance < 0].max() <= 1.1, name
    with pytest.raises(ValueError, match="unknown shape 'egg'"):
        shape_distance("egg", x, y)


def test_styles_act_on_the_finished_picture():
    scenes = sample_scenes(4, torch.arange(10), "train")
    plain = render(scenes)
    styled = [render(replace(scenes, style=torch.full_like(scenes.style, style))) for style in (1, 2, 3)]
    assert (styled[0].amax(2) - styled[0].amin(2)).max() == 0
    assert torch.equal(styled[1], 1 - plain)
    assert (styled[2].mean((1, 2, 3, 4)) > 0.7).all()  # mostly paper
    assert (styled[2].amin((1, 2, 3, 4)) < 0.2).all()  # and some ink


def test_other_sizes_show_the_same_scene():
    scenes = sample_scenes(0, torch.arange(8), "train")
    frames = torch.tensor([8])
    fine = render(scenes, frames, size=128)
    coarse = torch.nn.functional.avg_pool2d(fine.flatten(0, 1), 2).unflatten(0, (8, 1))
    assert (coarse - render(scenes, frames)).abs().mean() < 0.01
