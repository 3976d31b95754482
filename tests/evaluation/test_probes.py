"""The probes against editors and readers that know the answer."""

import pytest
import torch

from ivedit.config.schema import SamplingConfig, TextConfig
from ivedit.editor import GateRecord
from ivedit.evaluation.clips import held_out_clips, held_out_frames
from ivedit.evaluation.gates import score_gate
from ivedit.evaluation.metrics import token_coverage
from ivedit.evaluation.probes import ceiling_scores, edit_text, mean_colour_error, one_step
from ivedit.evaluation.quick import region_scores
from ivedit.evaluation.readback import FACTS, ReadBackScore, find_reader, read_facts
from ivedit.sprites.reader import PRESENT_CELLS, ReadBack, SpriteReader
from ivedit.sprites.vocabulary import COLOURS, SHAPES
from tests.backbone.tiny import tiny_backbone


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


class Knowing:
    """An editor that knows the true edits, and whose gate is the true mask times a block's sign."""

    def __init__(self, backbone, clips, shift=0.0):
        whole = next(clips.batches(len(clips)))
        self.true = backbone.encode_pixels(whole.reference.target)
        self.mask, self.shift = whole.reference.mask, shift

    def prepare(self, backbone, latents, text):
        return latents

    def velocity(self, backbone, x, sigma, context, text, record: GateRecord | None = None):
        if record is not None:
            grid = backbone.grid(x)
            coverage = token_coverage(self.mask, grid.frames, grid.rows, grid.columns).unsqueeze(-1)
            record.add(0, coverage)
            record.add(2, -coverage)
        return (x - self.true) / sigma.view(-1, 1, 1, 1, 1) + self.shift


def test_the_one_step_estimate_of_an_editor_that_knows_is_the_vae_ceiling(backbone):
    clips = held_out_frames(held_out_clips("test", 9, size=32), 9)
    ceiling = region_scores(
        clips, lambda batch: backbone.decode_latents(backbone.encode_pixels(batch.reference.target)), batch_size=9
    )
    right = one_step(backbone, Knowing(backbone, clips), clips, text=TextConfig(), seed=0, batch_size=9)
    torch.testing.assert_close(right["edited_psnr"], ceiling["edited_psnr"], atol=1e-3, rtol=0, equal_nan=True)
    assert right["colour_error"].isnan().tolist() == [False] + [True] * 8  # one recolour among the nine
    wrong = one_step(backbone, Knowing(backbone, clips, shift=3.0), clips, text=TextConfig(), seed=0, batch_size=9)
    assert not torch.allclose(wrong["edited_psnr"], ceiling["edited_psnr"], atol=1e-2, equal_nan=True)


def test_a_gate_that_is_the_mask_reaches_the_ceiling_and_its_opposite_misses_as_much(backbone):
    clips = held_out_clips("test", 9, size=32, frames=5)
    found = score_gate(backbone, Knowing(backbone, clips), clips, text=TextConfig(), seed=0, batch_size=9)
    ceiling = found.ceiling.nanmean().item()
    assert found.blocks == [0, 2] and found.table.shape == (2, 3)
    torch.testing.assert_close(found.table, torch.tensor([[ceiling] * 3, [1 - ceiling] * 3]))
    assert torch.equal(found.ceiling.isnan(), found.per_clip.isnan())  # edits of the whole frame
    assert {sample.operation for sample in found.samples} == {"recolour", "reshape", "remove"}
    assert found.samples[0].maps.shape == (2, 3, 8, 8) and found.samples[0].mask.any()


def test_the_ceiling_falls_with_sigma_towards_the_vaes_own_from_below(backbone):
    clips = held_out_frames(held_out_clips("test", 9, size=32), 9)
    sampling = SamplingConfig(steps=4)

    def score(sigma):
        found = ceiling_scores(backbone, clips, sigma, sampling=sampling, batch_size=9, edited_db=16, kept_db=20)
        return found["kept_psnr"]

    whole = region_scores(
        clips, lambda batch: backbone.decode_latents(backbone.encode_pixels(batch.reference.target)), batch_size=9
    )["kept_psnr"]
    near, far = ((score(sigma) - whole).abs().nanmean() for sigma in (0.02, 0.9))
    assert near < 0.1 < far or near < far / 3


def test_texts_go_where_the_configuration_says(backbone):
    batch = next(held_out_clips("test", 3, frames=1).batches(3))
    plain = edit_text(backbone, batch, TextConfig())
    assert plain.gate is plain.target and not torch.equal(plain.source.states, plain.target.states)
    other = edit_text(backbone, batch, TextConfig(target="target_caption", gate="shuffled", source="instruction"))
    assert torch.equal(other.source.states, plain.target.states)
    assert torch.equal(other.gate.states[0], plain.target.states[1])
    assert torch.equal(other.target.states, backbone.encode_text(batch.target_captions).states)


def test_mean_colour_error_is_the_distance_of_the_regions_mean_colours():
    target, mask = torch.zeros(2, 1, 3, 8, 8), torch.zeros(2, 1, 1, 8, 8, dtype=torch.bool)
    mask[0, ..., :4] = True
    pixels = target.clone()
    pixels[0, :, 0, :, :2], pixels[0, :, 1, :, :4], pixels[0, :, 2, :, 4:] = 0.6, 0.4, 1.0  # mean 0.3, 0.4, 0 inside
    found = mean_colour_error(pixels, target, mask)
    assert found[0].item() == pytest.approx(0.5) and found[1].isnan()


class Oracle(SpriteReader):
    """Reads the true scene, moved by some pixels, with one colour mistaken for the next when asked."""

    def __init__(self, batch, off=0.0, mistake=False):
        super().__init__()
        self.batch, self.off, self.mistake = batch, off, mistake

    def read(self, pixels):
        scenes = self.batch.target_scenes
        b, t = pixels.shape[:2]
        cells = torch.zeros(b, t, len(SHAPES), len(COLOURS))
        centres = torch.full((b, t, len(SHAPES), len(COLOURS), 2), torch.nan)
        where = scenes.centres(self.batch.frames)
        for row, slot in scenes.present.nonzero().tolist():
            shape, colour = int(scenes.shape[row, slot]), int(scenes.colour[row, slot])
            colour = (colour + 1) % len(COLOURS) if self.mistake else colour
            cells[row, :, shape, colour] = PRESENT_CELLS
            centres[row, :, shape, colour] = where[row, slot] + self.off
        return ReadBack(cells, centres)


def test_read_back_compares_with_the_true_scene():
    batch = next(held_out_clips("test", 27, frames=5).batches(27))
    edited, scenes = batch.reference.target, batch.target_scenes
    styled = scenes.style != 0
    right = read_facts(Oracle(batch), edited, batch)
    assert right.shape == (27, len(FACTS)) and right[styled].isnan().all() and styled.any()
    assert (right[~styled][:, :3] == 1).all() and (right[~styled][:, 3].nan_to_num(1) == 1).all()
    moved = read_facts(Oracle(batch, off=5.0), edited, batch)[~styled]
    assert (moved[:, 2] == 1).all() and (moved[:, 3].nan_to_num(0) == 0).all()
    there = scenes.present.any(dim=1)[~styled]
    mistaken = read_facts(Oracle(batch, mistake=True), edited, batch)[~styled][there]
    assert (mistaken[:, 0] == 1).all() and (mistaken[:, 2] == 0).all()


def test_a_real_reader_is_scored_in_a_metric_whose_state_holds_no_weights(backbone):
    batch = next(held_out_clips("test", 9, frames=1).batches(9))
    metric = ReadBackScore(SpriteReader())
    metric.update(batch.reference.target, batch)
    assert metric.per_clip()[1].shape == (9, 4) and not list(metric.parameters())
    assert find_reader(backbone, "cpu") is None  # it lives in memory, without a folder
