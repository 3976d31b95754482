"""The evaluation sets: balanced, the same for every run, and truly the pairs and scenes they claim to be."""

import pytest
import torch

from ivedit.data.sprites import SpritesReader
from ivedit.evaluation.clips import Latents, held_out_clips, held_out_frames, training_frames
from ivedit.evaluation.metrics import Reference
from ivedit.evaluation.rows import still
from ivedit.sprites import OPERATIONS


def test_clips_are_balanced_and_rounded_up_to_equal_numbers():
    clips = held_out_clips("test", 20)
    assert len(clips) == 27 and all(clips.operations.count(name) == 3 for name in OPERATIONS)
    few = held_out_clips("val", 5, operations=["remove", "add"])
    assert few.operations == ["remove", "add"] * 3
    assert len(held_out_clips("test", 4)) == 4  # fewer than operations: a smoke test


def test_batches_do_not_depend_on_their_size_and_masks_are_exact():
    clips = held_out_clips("test", 9, frames=5)
    whole = next(clips.batches(9))
    parts = list(clips.batches(4, flow=True))
    assert torch.equal(torch.cat([part.reference.source for part in parts]), whole.reference.source)
    assert [s for part in parts for s in part.seeds(3)] == whole.seeds(3) and len(set(whole.seeds(3))) == 9
    assert whole.seeds(3) != whole.seeds(4)
    reference = whole.reference
    assert torch.equal(reference.mask[:, :, 0], (reference.source != reference.target).any(dim=2))
    assert torch.equal(reference.source * 255, (reference.source * 255).round())
    assert whole.other_instructions == [*whole.instructions[1:], whole.instructions[0]]
    assert parts[0].reference.flow_of_source().backward.shape == (4, 4, 2, 64, 64)


def test_held_out_frames_are_frames_of_the_held_out_clips():
    clips = held_out_clips("test", 18)
    frames = held_out_frames(clips, 9)
    assert frames.pairs.instruction == clips.pairs.instruction[:9] and frames.frames.shape == (9, 1)
    one, many = next(frames.batches(9)), next(clips.batches(9))
    for i, number in enumerate(frames.frames.flatten().tolist()):
        assert torch.equal(one.reference.source[i, 0], many.reference.source[i, number])
    assert one.seeds(0) == many.seeds(0)


def test_training_frames_are_pairs_that_the_reader_serves_in_equal_numbers():
    chosen = training_frames(200, 18)
    assert all(chosen.operations.count(name) <= 2 for name in OPERATIONS) and len(chosen) >= 14
    reader = SpritesReader("train", 200)
    served = {reader.texts([i])[0].instructions[0]: i for i in range(72)}
    batch = next(chosen.batches(len(chosen)))
    for i in range(0, len(chosen), 5):
        record = reader.load(served[batch.instructions[i]])
        assert torch.allclose(record.source, batch.reference.source[i, 0])
        assert torch.allclose(record.target, batch.reference.target[i, 0])


def test_more_frames_than_a_clip_has_are_refused():
    with pytest.raises(ValueError, match="17 frames"):
        held_out_clips("test", 9, frames=21)


def test_a_still_clip_repeats_its_first_frame():
    batch = next(held_out_clips("test", 9, frames=5).batches(9))
    stopped = still(batch)
    assert torch.equal(stopped.reference.source[:, 4], batch.reference.source[:, 0])
    assert torch.equal(stopped.reference.mask[:, 2], batch.reference.mask[:, 0])
    assert not stopped.needs_motion.any() and stopped.seeds(0) == batch.seeds(0)
    assert stopped.frames.tolist() == [0] * 5


def test_latents_are_encoded_once_and_outlive_the_pixels():
    calls = []
    clip = torch.rand(1, 1, 3, 8, 8)

    def encode(pixels):
        calls.append(pixels)
        return pixels * 2

    latents = Latents(encode, Reference(clip, 1 - clip, torch.ones(1, 1, 1, 8, 8)))
    assert torch.equal(latents.source, clip * 2) and torch.equal(latents.source, clip * 2) and len(calls) == 1
    latents.keep_latents_only()
    assert torch.equal(latents.target, (1 - clip) * 2) and len(calls) == 2
    forgotten = Latents(encode, Reference(clip, clip, torch.ones(1, 1, 1, 8, 8)))
    forgotten._reference = None
    with pytest.raises(ValueError, match="forgotten"):
        _ = forgotten.source
