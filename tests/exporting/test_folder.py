"""An exported folder: the same editor comes back, the card says what the record says, nothing private is in it."""

import json
import re

import pytest
import torch
import yaml

from ivedit.editor import load_editor, read_editor_header, read_editor_weights
from ivedit.errors import ConfigError, IveditError
from ivedit.exporting import Wishes, export_editor
from ivedit.exporting.difference import velocity_difference
from ivedit.exporting.record import read_run
from ivedit.exporting.scrub import leaks
from ivedit.pipeline import IVEditPipeline
from tests.exporting.made import WORDS, make_run, trained

PRIVATE = ("anna", "/home", "/data", "/scratch", "secret", "10.0.0", "earlier runs", "postgresql")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export_editor(read_run(run), tmp_path_factory.mktemp("out") / "blue", Wishes(license="mit"))


def card_of(exported):
    text = (exported.folder / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_editor_in_it_is_the_one_that_was_trained(exported, run, wan):
    file = run / "checkpoints" / "editor.safetensors"
    assert set(exported.files) == {"README.md", "config.yaml", "editor.safetensors", "samples/strip-00-recolour.png"}
    stored, own = read_editor_weights(exported.folder / "editor.safetensors"), read_editor_weights(file)
    assert all(torch.equal(stored[name], value) for name, value in own.items()) and stored.keys() == own.keys()
    pipes = [IVEditPipeline.from_pretrained(wan[0], editor=place) for place in (exported.folder, run)]
    clip = torch.rand(1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = (pipe(clip, WORDS, steps=1) for pipe in pipes)
    assert torch.equal(first, second)
    assert pipes[0].settings["sampling"]["steps"] == 2


def test_nothing_of_the_machine_or_its_user_is_in_any_file(exported):
    texts = {name: (exported.folder / name).read_text() for name in ("README.md", "config.yaml")}
    texts["header"] = json.dumps(read_editor_header(exported.folder / "editor.safetensors"))
    for name, text in texts.items():
        assert not list(leaks(text)), name
        assert not [word for word in PRIVATE if word in text.replace("for anna", "")], name
    stored = yaml.safe_load(texts["config.yaml"])
    assert stored["data"]["path"] == ".../films" and stored["init_from"] == ".../editor.safetensors"
    assert not {"tracking", "judge", "output_dir", "evaluation", "resume"} & stored.keys()


def test_the_card_says_what_the_record_says(exported, wan):
    header, body = card_of(exported)
    assert header["license"] == "mit" and header["pipeline_tag"] == "video-to-video" and "base_model" not in header
    for part in (
        "| **this editor** ", "75% [65, 85]", "25.9 [25.8, 26.0]", "the frozen backbone alone",
        "another editor, `other`",
        "9 held-out clips (split `val`)", "| 1,234 ", "(samples/strip-00-recolour.png)", "arXiv 2604.07958",
        wan[1].fingerprint(), "a Wan text-to-video pipeline that was a local folder", 'editor="blue"', WORDS,
    ):  # fmt: skip
        assert part in body, part
    assert "Not evaluated" not in body and "bfloat16" not in body


def test_the_code_on_the_card_edits_a_file(exported, wan, tmp_path, monkeypatch, capsys):
    pytest.importorskip("av")
    from ivedit.media import read_video, write_video

    code = re.search(r"```python\n(.*?)```", card_of(exported)[1], re.S)[1]
    assert len([line for line in code.splitlines() if line]) <= 5
    write_video(tmp_path / "clip.mp4", torch.rand(5, 3, 16, 32, generator=torch.Generator().manual_seed(0)), 10)
    monkeypatch.chdir(tmp_path)
    for word, stands_for in (("PATH_OF_THE_BACKBONE", wan[0]), ("blue", exported.folder), ("cuda", "cpu")):
        code = code.replace(f'"{word}"', repr(str(stands_for)))
    exec(code)
    assert read_video("edited.mp4").pixels.shape == (5, 3, 16, 32)
    assert "clip.mp4: resized 16x32 ->" in capsys.readouterr().out


def test_an_editor_that_was_not_evaluated_says_so_and_real_data_get_no_licence_and_no_pictures(wan, tmp_path):
    run = make_run(tmp_path, *wan, evaluated=False, reader="folder", pairs=36, buckets=["auto:32x48"])
    exported = export_editor(read_run(run), tmp_path / "out", Wishes(base_model="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"))
    header, body = card_of(exported)
    assert "**Not evaluated.**" in body and "not given: ask the owner" in body
    told = " ".join(body.split())
    assert "| data | `folder`, 36 pairs |" in told and "| height x width of an image | auto:32x48 |" in told
    assert header["base_model"] == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" and "license" not in header
    assert exported.license is None and not any(name.startswith("samples") for name in exported.files)
    # `ivedit.edit` without --backbone then loads it
    stored = read_editor_header(exported.folder / "editor.safetensors")["extra"]
    assert stored["config"]["backbone"]["path"] == stored["export"]["base_model"] == header["base_model"]


def test_results_on_sprites_are_not_taken_for_results_on_the_training_data(wan, tmp_path):
    run = make_run(tmp_path, *wan, reader="folder")
    _, body = card_of(export_editor(read_run(run), tmp_path / "out", Wishes()))
    assert "clips (split `val` of the procedural sprite world, not of its training data)" in " ".join(body.split())


def test_a_short_name_becomes_the_hubs_name(wan, tmp_path):
    record = read_run(make_run(tmp_path, "wan2.1_1.3b", wan[1]))
    assert record.base_model() == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def test_weights_larger_than_a_file_may_be_lie_in_parts_and_come_back(run, wan, tmp_path):
    exported = export_editor(read_run(run), tmp_path / "out", Wishes(max_bytes=100_000))
    parts = sorted(name for name in exported.files if name.startswith("editor-"))
    assert len(parts) > 2 and all(exported.files[name] <= 110_000 for name in parts)
    assert "editor.safetensors.index.json" in exported.files and "editor.safetensors" not in exported.files
    expected = load_editor(run, wan[1]).state_dict()
    for place in (exported.folder, exported.folder / parts[1]):  # one part stands for all
        loaded = load_editor(place, wan[1]).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    assert f"{len(parts)} files" in (exported.folder / "README.md").read_text()
    (exported.folder / parts[0]).unlink()
    with pytest.raises(IveditError, match=f"incomplete: {parts[0]} is missing"):
        load_editor(exported.folder, wan[1])


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("no json", "not an index"),
        ('{"weight_map": {"a": "editor.safetensors"}}', "not an index"),
        ('{"metadata": {}, "weight_map": {"a": "../../x.safetensors"}}', "does not lie beside it"),
        ('{"metadata": {}, "weight_map": {}}', "holds no ivedit editor"),
    ],
)
def test_an_index_that_is_none_is_refused_by_name(wan, tmp_path, index, words):
    (tmp_path / "editor.safetensors.index.json").write_text(index)
    with pytest.raises(IveditError, match=words):
        load_editor(tmp_path, wan[1])


def test_bfloat16_halves_the_file_and_the_card_has_what_was_measured(run, wan, tmp_path, exported):
    record, weights = read_run(run), read_editor_weights(run / "checkpoints" / "editor.safetensors")
    rounded = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    found = velocity_difference(wan[1], record.header["config"], weights, rounded, (16, 16))
    assert 0 < found["relative"] < 0.02 and found["relative"] < found["of_edit"] < 0.2
    same = velocity_difference(wan[1], record.header["config"], weights, weights, (16, 16))
    assert same["relative"] == same["of_edit"] == 0
    small = export_editor(record, tmp_path / "out", Wishes(dtype="bfloat16"), difference=found)
    assert small.files["editor.safetensors"] < 0.6 * exported.files["editor.safetensors"]
    body = card_of(small)[1]
    assert f"moves by {found['relative']:.3%}" in " ".join(body.split()) and f"{found['of_edit']:.2%} of what" in body
    loaded, own = load_editor(small.folder, wan[1]).state_dict(), trained(wan[1]).state_dict()
    assert all(torch.equal(loaded[name], value.to(torch.bfloat16).float()) for name, value in own.items())


def test_an_earlier_export_is_replaced_whole_and_anything_else_is_left_alone(run, tmp_path):
    out = tmp_path / "out"
    export_editor(read_run(run), out, Wishes(max_bytes=100_000))
    again = export_editor(read_run(run), out)
    assert set(again.files) == {"README.md", "config.yaml", "editor.safetensors", "samples/strip-00-recolour.png"}
    (out / "mine.txt").write_text("notes")
    for place, what in ((out, "mine.txt"), (run, "checkpoints"), (run / "config.yaml", "is a file")):
        with pytest.raises(ConfigError, match=what):
            export_editor(read_run(run), place)
    assert (out / "mine.txt").read_text() == "notes" and sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    with pytest.raises(ConfigError, match="exported folder already"):
        read_run(out)
