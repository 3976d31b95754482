"""A whole evaluation with a tiny random backbone: what is written, and that it is true."""

import json

import pytest
import torch

from ivedit.config.schema import Config, EditorConfig, SamplingConfig
from ivedit.editor import build_editor
from ivedit.errors import ConfigError
from ivedit.evaluation import evaluate, format_table, quick_scores
from ivedit.evaluation.clips import held_out_clips
from ivedit.evaluation.finished import score_finished
from ivedit.evaluation.manifest import read_manifest
from ivedit.evaluation.metrics import METRICS
from ivedit.recording import Tracker, read_images
from ivedit.runfolder import RunFolder
from ivedit.sprites import OPERATIONS
from tests.backbone.tiny import tiny_backbone


def config(tmp_path, **evaluation):
    cfg = Config(name="tiny", output_dir=str(tmp_path))
    cfg.data.height = cfg.data.width = 32
    cfg.data.pairs = 60
    cfg.sampling.steps = 1
    cfg.evaluation.clips, cfg.evaluation.frames, cfg.evaluation.triage_pairs = 9, 5, 9
    cfg.evaluation.strips, cfg.evaluation.batch_size, cfg.evaluation.bootstrap = 2, 4, 200
    for name, value in evaluation.items():
        setattr(cfg.evaluation, name, value)
    return cfg


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def editors(backbone):
    editor = build_editor(EditorConfig(), backbone)
    torch.manual_seed(0)
    for module in editor.modules_of:  # a gate that differs from token to token, and edits that show
        torch.nn.init.normal_(module.gate.to_gate.weight)
        torch.nn.init.normal_(module.path.update.out.weight, std=0.1)
    return {"tiny": editor, "open": build_editor(EditorConfig(gate="none"), backbone)}


@pytest.fixture(scope="module")
def done(backbone, editors, tmp_path_factory):
    """(configuration, run folder, results) of one evaluation with every control."""
    cfg = config(
        tmp_path_factory.mktemp("runs"), controls=["source_copy", "frozen", "vae_ceiling", "still_clip"], batch_size=5
    )
    run = RunFolder.create(cfg)
    return cfg, run, evaluate(cfg, backbone, editors, run, Tracker(run))


def test_every_value_of_every_clip_is_in_results_json_and_the_table_can_be_made_from_it(done):
    _, run, results = done
    stored = json.loads((run.path / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert [clip["operation"] for clip in stored["clips"]] == list(OPERATIONS)
    assert len({clip["id"] for clip in stored["clips"]}) == 9 and all(clip["instruction"] for clip in stored["clips"])
    assert list(stored["rows"]) == ["tiny", "open", "source_copy", "frozen", "vae_ceiling", "still_clip"]
    for row in stored["rows"].values():
        assert set(row["per_clip"]) == set(row["metrics"]) == set(METRICS.names()) - set(stored["skipped"])
        assert all(len(values) == 9 for values in row["per_clip"].values())
        assert len(row["per_frame"]) == 5 and len(row["per_latent"]) == 2
    assert format_table(stored) + "\n" == (run.path / "results.md").read_text()


def test_controls_score_what_they_must(done):
    _, _, results = done
    rows = results["rows"]
    copy = rows["source_copy"]["metrics"]
    assert copy["kept_psnr"]["mean"] == 60 and copy["success"]["mean"] == 0 and copy["motion_ratio"]["mean"] == 1
    assert copy["kept_ssim"]["mean"] == pytest.approx(1)
    assert rows["frozen"]["per_clip"]["edited_psnr"] != rows["tiny"]["per_clip"]["edited_psnr"]
    assert rows["still_clip"]["metrics"]["motion_ratio"] == {
        "mean": None,
        "low": None,
        "high": None,
        "n": 0,
        "total": 9,
    }


def test_differences_are_paired_with_the_controls_that_are_there(done):
    _, _, results = done
    ours, control = (results["rows"][n]["per_clip"]["edited_psnr"] for n in ("tiny", "frozen"))
    found = results["paired"]["tiny"]["frozen"]["edited_psnr"]
    assert found["mean"] == pytest.approx(sum(a - b for a, b in zip(ours, control, strict=True)) / 9, abs=1e-5)
    assert found["low"] <= found["mean"] <= found["high"]
    assert set(results["paired"]["frozen"]) == {"source_copy", "vae_ceiling"}


def test_the_suite_and_the_quick_scores_are_the_same_numbers_whatever_the_batch(done, backbone, editors):
    _, _, results = done
    clips = held_out_clips("test", 9)
    for name, editor in (("tiny", editors["tiny"]), ("frozen", None)):
        quick = quick_scores(
            backbone,
            editor,
            clips.pairs,
            frames=torch.arange(5),
            sampling=SamplingConfig(steps=1),
            size=32,
            batch_size=2,
        )
        metrics = results["rows"][name]["metrics"]
        for metric in ("edited_psnr", "kept_psnr", "success"):
            assert quick[metric] == pytest.approx(metrics[metric]["mean"], abs=1e-3)
        group = results["rows"][name]["groups"]["remove"]
        assert quick["operation"]["remove"]["edited_psnr"] == pytest.approx(group["edited_psnr"]["mean"], abs=1e-3)


def test_the_triage_table_has_its_three_sets_the_ceiling_and_the_one_step_estimate(done):
    _, _, results = done
    triage = results["triage"]
    assert set(triage["ceiling"]) == {"0.5", "0.7"} and set(triage["editors"]) == {"tiny", "open"}
    entry = triage["editors"]["tiny"]
    for name in ("training_pairs", "held_out_pairs", "held_out_clips"):
        assert entry[name]["all"]["success"]["total"] == entry[name]["n"] > 0
    assert entry["held_out_clips"]["all"] == {
        name: results["rows"]["tiny"]["metrics"][name] for name in ("success", "edited_psnr", "kept_psnr")
    }
    assert entry["one_step"]["recolour_colour_error"]["n"] == 1
    assert entry["image_minus_video"]["n"] == 9


def test_the_frames_of_the_runs_own_edit_lie_apart_at_their_own_size(done):
    """A sweep's page puts many runs' edits of one clip under one source."""
    import PIL.Image

    _, run, _ = done
    frames = run.media / "frames"
    own = {path.name for path in frames.glob("00-*")}
    assert own == {f"00-recolour-{kind}.png" for kind in ("source", "edit", "truth")}
    sizes = {PIL.Image.open(frames / name).size for name in own}
    assert len(sizes) == 1 and (size := sizes.pop())[0] == 5 * size[1]  # all 5 frames of a square clip


def test_gates_are_scored_per_block_and_sigma_and_a_variant_without_gate_is_skipped(done):
    _, run, results = done
    gate = results["gate"]["tiny"]
    assert len(gate["table"]) == len(gate["blocks"]) == 3 and len(gate["table"][0]) == len(gate["sigmas"]) == 3
    assert 0 < gate["auc"]["mean"] < gate["ceiling"]["mean"] <= 1
    assert "skipped" in results["gate"]["open"]
    assert "Gate of open: skipped (this variant has no gate)" in (run.path / "results.md").read_text()


def test_pictures_and_videos_are_written_and_logged(done):
    from ivedit.media import read_video

    _, run, results = done
    names = {path.name for path in run.media.iterdir() if path.is_file()}
    strips = {"strip-00-recolour.png", "strip-01-reshape.png"}
    assert strips | {"clip-00-recolour.mp4", "success.png", "edits.gif"} <= names
    assert any(name.startswith("gate-tiny-") for name in names) and not any("gate-open" in name for name in names)
    assert {f"media/{name}" for name in names} == set(results["media"])
    assert len(read_video(run.media / "clip-00-recolour.mp4").pixels) == 5
    assert {entry["path"] for entry in read_images(run)} >= {"media/strip-00-recolour.png", "media/success.png"}


def test_pictures_of_two_runs_line_up_by_key_whatever_the_runs_are_called(done):
    _, run, _ = done
    logged = {entry["key"]: entry["path"] for entry in read_images(run)}
    gates = {key: path for key, path in logged.items() if "gate" in key}
    assert gates and not any("tiny" in key for key in logged)
    assert all(path == f"media/gate-tiny-{key.removeprefix('evaluation/gate-')}.png" for key, path in gates.items())


def test_gates_of_a_second_editor_keep_its_name_in_their_keys(backbone, editors, tmp_path):
    cfg = config(tmp_path, triage=False, strips=1, clips=2, controls=[])
    cfg.data.operations = ["recolour", "remove"]
    run = RunFolder.create(cfg)
    evaluate(cfg, backbone, {"own": editors["tiny"], "other": editors["tiny"]}, run, Tracker(run))
    keys = {entry["key"] for entry in read_images(run)}
    own = {key for key in keys if key.startswith("evaluation/gate-")}
    assert own and {key.replace("/gate", "/other-gate") for key in own} == {key for key in keys if "other" in key}


def test_the_tracker_gets_the_own_editors_numbers_and_the_table(done):
    _, run, results = done
    logged = run.read_metrics()[-1]
    metrics = results["rows"]["tiny"]["metrics"]
    assert logged["eval/edited_psnr"] == pytest.approx(metrics["edited_psnr"]["mean"])
    assert (
        logged["eval/source_copy/kept_psnr"] == 60 and "eval/success_recolour" in logged and "eval/gate_auc" in logged
    )
    table = json.loads((run.path / "tables" / "evaluation.json").read_text())
    assert [row[0] for row in table["data"]] == ["this run", *list(results["rows"])[1:]]
    assert table["columns"][:2] == ["row", "success"] and "tiny" not in str(table)
    assert table["data"][0][1] == metrics["success"]["mean"]


def test_the_table_says_what_it_is_of_and_how_sure_it_is(done):
    _, _, results = done
    text = format_table(results)
    for part in (
        "9 held-out clips",
        "above 16 dB",
        "95% interval",
        "tiny - source_copy",
        "skipped (no reader in folder)",
    ):
        assert part in text
    assert all(len(line) <= 130 for line in text.splitlines())


def test_an_evaluation_without_editors_triage_and_gate_is_the_controls_only(backbone, tmp_path):
    cfg = config(tmp_path, triage=False, gate_maps=False, strips=1, clips=2, controls=["frozen"])
    cfg.data.operations = ["recolour", "remove"]
    run = RunFolder.create(cfg)
    results = evaluate(cfg, backbone, {}, run, Tracker(run))
    assert list(results["rows"]) == ["frozen"] and "triage" not in results
    assert {clip["operation"] for clip in results["clips"]} == {"recolour", "remove"}
    assert (run.media / "strip-00-recolour.png").is_file()
    assert "frozen" in format_table(results)


def test_training_pairs_of_another_reader_are_said_to_be_skipped(backbone, editors, tmp_path):
    cfg = config(tmp_path, gate_maps=False, strips=0, clips=2, triage_pairs=2, controls=[])
    cfg.data.reader, cfg.data.operations, cfg.text.gate = "folder", ["recolour", "remove"], "shuffled"
    run = RunFolder.create(cfg)
    results = evaluate(cfg, backbone, {"tiny": editors["tiny"]}, run, Tracker(run))
    assert results["triage"]["editors"]["tiny"]["training_pairs"] == {"skipped": "data.reader is folder, not sprites"}
    assert "Not scored: training pairs: data.reader is folder" in format_table(results)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"controls": ["frozn"]}, "did you mean frozen"),
        ({"controls": ["still_clip"]}, "there is none"),
        ({"frames": 6}, "use 5"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_fix(backbone, tmp_path, change, words):
    cfg = config(tmp_path, **change)
    with pytest.raises(ConfigError, match=words):
        evaluate(cfg, backbone, {}, RunFolder(tmp_path), Tracker(RunFolder(tmp_path)))


def test_an_editor_cannot_take_a_controls_name(backbone, editors, tmp_path):
    with pytest.raises(ConfigError, match="'frozen', a control's name"):
        evaluate(
            config(tmp_path), backbone, {"frozen": editors["tiny"]}, RunFolder(tmp_path), Tracker(RunFolder(tmp_path))
        )


def test_edits_that_a_run_keeps_score_the_same_as_a_folder_of_finished_edits(backbone, editors, tmp_path):
    cfg = config(
        tmp_path, controls=["source_copy", "vae_ceiling", "still_clip"], save_edits=True, triage=False, gate_maps=False
    )
    run = RunFolder.create(cfg)
    results = evaluate(cfg, backbone, {"tiny": editors["tiny"]}, run, Tracker(run))
    manifest = read_manifest([run.path / "edits"])
    assert manifest.methods == ["tiny", "vae_ceiling"]  # the still clip is another clip; the source is in every table
    again = score_finished(manifest, cfg.evaluation)
    assert [clip["instruction"] for clip in again["clips"]] == [clip["instruction"] for clip in results["clips"]]
    for row in ("tiny", "vae_ceiling", "source_copy"):
        ours, theirs = (found["rows"][row]["per_clip"] for found in (results, again))
        assert set(ours) == set(theirs)
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], abs=2e-5, nan_ok=True), (row, name)
