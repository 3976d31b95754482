"""The measuring instrument: its labels are the scene's facts, and the shipped one reads true frames without error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ivedit.pretrain.reader import ReaderModule, frame_labels
from ivedit.sprites import SceneBatch, object_masks, render, sample_scenes
from ivedit.sprites.reader import PRESENT_CELLS, SpriteReader, load_reader
from ivedit.sprites.vocabulary import COLOURS, FRAMES, SHAPES
from tests.pretrain.small import reader_module
from tests.pretrain.test_shipped import SHIPPED


def scenes(count: int, split: str = "pretrain", seed: int = 5) -> SceneBatch:
    """Unstyled scenes: the reader knows no styles."""
    drawn = sample_scenes(seed, torch.arange(2 * count), split)
    return drawn[(drawn.style == 0).nonzero().flatten()[:count]]


def test_labels_name_the_object_that_covers_most_of_a_cell_and_nothing_elsewhere():
    batch = scenes(40)
    frames = torch.arange(40) % FRAMES
    shape, colour = frame_labels(batch, frames)
    assert shape.shape == colour.shape == (40, 32, 32)
    masks = object_masks(batch, frames[:, None])[:, :, 0]
    cover = masks.unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5))  # (B, K, 32, 32)
    for slot in range(3):
        rows, y, x = (cover[:, slot] > 0.5).nonzero(as_tuple=True)
        assert batch.present[rows, slot].all()
        assert (shape[rows, y, x] == batch.shape[rows, slot]).all()
        assert (colour[rows, y, x] == batch.colour[rows, slot]).all()
    nothing = (cover <= 0.5).all(1)
    assert nothing.any()
    assert (shape[nothing] == len(SHAPES)).all() and (colour[nothing] == len(COLOURS)).all()


def test_labels_lie_around_the_centre_of_the_object():
    batch = scenes(60, "test")
    frames = torch.full((60,), 8)
    shape, _ = frame_labels(batch, frames)
    grid = (torch.arange(32) + 0.5) * 2
    for row in range(60):
        slots = batch.present[row].nonzero().flatten().tolist()
        shapes = [int(batch.shape[row, slot]) for slot in slots]
        for slot, kind in zip(slots, shapes, strict=True):
            if shapes.count(kind) == 1:
                y, x = (shape[row] == kind).nonzero(as_tuple=True)
                centre = torch.stack((grid[x].mean(), grid[y].mean()))
                assert (centre - batch.centres(frames[:1])[row, slot, 0]).norm() < 3


def test_training_shows_scenes_without_their_style():
    module = reader_module()
    assert isinstance(module, ReaderModule)
    assert (module.scenes.style == 0).all()


def test_an_empty_scene_has_no_labels():
    batch = scenes(4)
    batch = replace(batch, present=torch.zeros_like(batch.present)).canonical()
    shape, colour = frame_labels(batch, torch.zeros(4, dtype=torch.long))
    assert (shape == len(SHAPES)).all() and (colour == len(COLOURS)).all()


def test_a_folder_without_a_reader_gives_none(tmp_path):
    assert load_reader(tmp_path) is None


# -- the shipped reader --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> SpriteReader:
    found = load_reader(SHIPPED)
    assert found is not None
    return found


@pytest.mark.parametrize("split", ["pretrain", "test", "test_combination", "test_three"])
def test_it_finds_what_is_in_true_frames_and_reports_nothing_else(reader: SpriteReader, split: str):
    batch = scenes(250, split)
    frames = torch.arange(len(batch))[:, None] % FRAMES
    seen = reader.read(render(batch, frames)).cells[:, 0] >= PRESENT_CELLS  # (B, S, C)
    truth = torch.zeros_like(seen)
    for slot in range(3):
        rows = batch.present[:, slot].nonzero().flatten()
        truth[rows, batch.shape[rows, slot], batch.colour[rows, slot]] = True
    assert (seen & truth).sum() >= 0.99 * truth.sum()
    assert (seen & ~truth).flatten(1).any(1).float().mean() <= 0.01  # frames with an object too many


def test_it_finds_objects_where_they_are(reader: SpriteReader):
    batch, frames = scenes(60, "test"), torch.tensor([0, 16])
    found = reader.read(render(batch, frames))
    kind = batch.shape * len(COLOURS) + batch.colour
    for slot in range(2):
        twins = (batch.present & (kind == kind[:, slot, None])).sum(1)  # seen as one object, between the two
        alone = batch.present[:, slot] & (twins == 1)
        place = found.place(batch.shape[:, slot], batch.colour[:, slot])
        distance = (place - batch.centres(frames)[:, slot]).norm(dim=-1)
        assert (distance[alone] < 2.5).all()  # pixels; the middle of a heart lies 2 below its centre


def test_it_reads_pictures_of_other_sizes(reader: SpriteReader):
    batch = scenes(20, "test")
    small = reader.read(render(batch, torch.tensor([3])))
    large = reader.read(render(batch, torch.tensor([3]), size=128))
    assert ((small.cells >= PRESENT_CELLS) == (large.cells >= PRESENT_CELLS)).all()


def test_places_are_nan_where_there_is_nothing(reader: SpriteReader):
    batch = replace(scenes(2), present=torch.zeros(2, 3, dtype=torch.bool)).canonical()
    found = reader.read(render(batch, torch.tensor([0])))
    assert (found.cells == 0).all() and found.centres.isnan().all()
    assert not found.present(torch.tensor([0, 1]), torch.tensor([2, 3])).any()
