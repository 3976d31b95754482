"""Finished edits are scored as a run's own are; without truth or mask nothing is made up."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ivedit.config.schema import EvaluationConfig
from ivedit.errors import IveditError
from ivedit.evaluation.clips import held_out_clips
from ivedit.evaluation.finished import load_clip, score_finished
from ivedit.evaluation.finished_table import clip_rows, clips_csv, format_evaluation
from ivedit.evaluation.manifest import read_manifest
from ivedit.evaluation.masks import agreed_mask, estimate_mask
from ivedit.evaluation.metrics import METRICS
from ivedit.evaluation.saving import EditWriter
from ivedit.media import to_uint8
from tests.evaluation.edits import finished, mask_of, moving, write

QUICK = EvaluationConfig(bootstrap=100)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(folder, results) of two methods."""
    place = tmp_path_factory.mktemp("finished")
    finished(place / "ours"), finished(place / "theirs")
    for i in range(3):
        write(place / "theirs" / "edits" / f"{i}.mp4", moving(i))  # does nothing
    return place, score_finished(read_manifest([place / "ours", place / "theirs"]), QUICK)


def test_every_method_and_the_source_copy_have_every_value_of_every_clip(scored):
    _, results = scored
    assert list(results["rows"]) == ["ours", "theirs", "source_copy"]
    assert [row["kind"] for row in results["rows"].values()] == ["method", "method", "control"]
    for row in results["rows"].values():
        assert set(row["per_clip"]) == set(results["columns"]) == set(METRICS.names()) - set(results["skipped"])
        assert all(len(values) == 3 for values in row["per_clip"].values())
    assert results == json.loads(json.dumps(results, allow_nan=False))


def test_values_are_what_they_must_be(scored):
    _, results = scored
    ours, theirs, copy = results["rows"].values()
    for i in range(3):  # green is off by 20, 30, 40 of 255 everywhere
        expected = -10 * math.log10(((20 + 10 * i) / 255) ** 2 / 3)
        for name in ("edited_psnr", "kept_psnr"):
            assert ours["per_clip"][name][i] == pytest.approx(expected, abs=1e-3)
    assert theirs["per_clip"] == copy["per_clip"]
    assert theirs["metrics"]["success"]["mean"] == 0 and theirs["metrics"]["kept_psnr"]["mean"] == 60
    assert ours["metrics"]["motion_agreement"]["mean"] > 0.99 and not ours["moves_otherwise"]
    difference = results["paired"]["ours"]["theirs"]["edited_psnr"]
    values = [a - b for a, b in zip(*(r["per_clip"]["edited_psnr"] for r in (ours, theirs)), strict=True)]
    assert difference["mean"] == pytest.approx(np.mean(values)) and difference["low"] is None
    assert set(results["paired"]) == {"ours", "theirs"} and set(results["paired"]["theirs"]) == {"source_copy"}


def test_without_a_true_edit_only_what_needs_none_has_a_value(tmp_path: Path):
    finished(tmp_path / "ours", 2, truth=False)
    results = score_finished(read_manifest([tmp_path / "ours"]), QUICK)
    metrics = results["rows"]["ours"]["metrics"]
    none = {name for name, found in metrics.items() if found["n"] == 0}
    assert none == {"edited_psnr", "edited_ssim", "edit_progress", "success"}
    assert metrics["kept_psnr"]["mean"] < 26  # against the source
    assert results["rows"]["source_copy"]["metrics"]["sharpness_ratio"]["mean"] == 1
    assert "2 of 2 clips have no true edit" in format_evaluation(results)


def test_a_missing_mask_is_taken_from_the_true_edit_or_estimated_and_labelled_so(tmp_path: Path):
    finished(tmp_path / "a", 1, mask=False)
    finished(tmp_path / "b", 1, mask=False, truth=False)
    for name, label in (("a", "from the true edit"), ("b", "estimated")):
        manifest = read_manifest([tmp_path / name])
        results = score_finished(manifest, QUICK)
        assert results["clips"][0]["mask"] == label and f"Masks: 1 {label}" in format_evaluation(results)
        loaded = load_clip(manifest.clips[0])
        true = mask_of(moving(), moving(colour=(0.1, 0.1, 0.9)))
        assert float((loaded.mask & true).sum() / (loaded.mask | true).sum()) > 0.7


def test_an_estimated_mask_is_the_same_for_all_methods_and_ignores_what_a_decoder_does():
    source, edit = moving(), moving(colour=(0.1, 0.1, 0.9))
    noise = torch.randint(-9, 10, source.shape, generator=torch.Generator().manual_seed(0))
    noisy = (source.int() + noise).clamp(0, 255).to(torch.uint8)
    assert not estimate_mask(source, noisy).any() and not estimate_mask(source, source).any()
    ruined = 255 - source
    votes = agreed_mask(source, [edit, edit, ruined])
    assert torch.equal(votes, estimate_mask(source, edit))
    assert torch.equal(agreed_mask(source, [edit, ruined]), estimate_mask(source, edit) | estimate_mask(source, ruined))


def test_estimated_masks_find_the_true_ones_of_sprites():
    overlaps = []
    for batch in held_out_clips("test", 18, frames=5).batches(18):
        known = batch.reference
        for source, edit, mask in zip(known.source, known.target, known.mask, strict=True):
            found = estimate_mask(to_uint8(source), to_uint8(edit))
            overlaps.append(float((found & mask).sum() / (found | mask).sum()))
    assert min(overlaps) > 0.65 and sum(overlaps) / len(overlaps) > 0.8


def test_a_file_that_changes_after_the_check_is_noticed(tmp_path: Path):
    finished(tmp_path / "ours", 1)
    manifest = read_manifest([tmp_path / "ours"])
    write(tmp_path / "ours" / "edits" / "0.mp4", moving(frames=3))
    with pytest.raises(IveditError, match="ours changed on disk"):
        score_finished(manifest, QUICK)


def test_frozen_edits_are_flagged_and_so_are_clips_whose_true_edit_moves_otherwise(tmp_path: Path):
    finished(tmp_path / "ours", 2)
    write(tmp_path / "ours" / "edits" / "0.mp4", moving(0)[:1].expand(5, -1, -1, -1))
    still = moving(1, colour=(0.1, 0.1, 0.9))[:1].expand(5, -1, -1, -1)
    for part in ("edits", "truths"):
        write(tmp_path / "ours" / part / "1.mp4", still)
    results = score_finished(read_manifest([tmp_path / "ours"]), QUICK)
    assert results["rows"]["ours"]["moves_otherwise"] == [0, 1]
    assert [clip["truth_moves_otherwise"] for clip in results["clips"]] == [False, True]
    assert "Flagged: ours moves otherwise than the source in 2 clips" in format_evaluation(results)
    assert "the true edit does so in 1 of 2 clips that have one" in format_evaluation(results)
    for clip in results["clips"]:
        clip["truth"] = False
    assert "the true edit does so" not in format_evaluation(results)


def test_saved_edits_come_back_to_the_bit_with_masks_truths_and_words(tmp_path: Path):
    clips = held_out_clips("test", 9, frames=5)
    writer = EditWriter(tmp_path / "edits", clips.ids)
    for batch in clips.batches(4):
        for row in ("two", "one", "source_copy"):
            writer.add(batch, row, batch.reference.target)
    writer.close(["one", "two"])
    manifest = read_manifest([tmp_path / "edits"])
    assert manifest.methods == ["one", "two"]
    whole = next(clips.batches(9))
    for i, clip in enumerate(manifest.clips):
        loaded = load_clip(clip)
        assert torch.equal(loaded.source, to_uint8(whole.reference.source[i]))
        assert torch.equal(loaded.edits["two"], to_uint8(whole.reference.target[i])) and loaded.truth is not None
        assert torch.equal(loaded.mask, whole.reference.mask[i])
        words = (clip.id, clip.instruction, clip.operation, clip.target_caption)
        assert words == (clips.ids[i], whole.instructions[i], whole.operations[i], whole.target_captions[i])


def test_the_table_shows_every_method_differences_and_what_was_skipped(scored):
    _, results = scored
    text = format_evaluation(results)
    assert "3 clips, 2 methods" in text and "| ours " in text and "| ours - theirs" in text
    assert "5 frames of 32x48" in text and "skipped (no evaluation.weights.clip)" in text
    assert "Smallest difference of ours and theirs" in text and "recolour" in text
    assert all(len(line.split("|")) == 6 for line in text.split("\n\n")[2].splitlines())


def test_every_value_stands_in_the_rows_of_clips_and_no_value_is_an_empty_cell(scored):
    _, results = scored
    rows = clip_rows(results)
    assert len(rows) == 9 and rows[0]["clip"] == "clip-0" and rows[0]["row"] == "ours"
    assert rows[4]["edited_psnr"] == results["rows"]["theirs"]["per_clip"]["edited_psnr"][1]
    lines = clips_csv({**results, "rows": {"a": {**results["rows"]["ours"], "per_clip": {
        name: [None] * 3 for name in results["columns"]}}}}).splitlines()  # fmt: skip
    assert len(lines) == 4 and lines[1].endswith("," * len(results["columns"]))
