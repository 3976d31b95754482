"""Manifests of finished edits: what is read, and that every fault is told by name before anything is scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.errors import ConfigError
from ivedit.evaluation.files import ClipFacts
from ivedit.evaluation.manifest import NAME, read_manifest, write_manifest
from tests.evaluation.edits import finished, moving, write


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("edits") / "ours"
    finished(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "ours"))


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


def rewrite(folder: Path, change) -> None:
    lines = lines_of(folder)
    change(lines)
    (folder / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


def problems(*folders: Path, **options) -> str:
    with pytest.raises(ConfigError) as raised:
        read_manifest(list(folders), **options)
    return "\n".join(raised.value.problems)


def test_a_folder_is_one_method_called_by_its_name(made: Path):
    manifest = read_manifest([made])
    assert manifest.methods == ["ours"] and [clip.id for clip in manifest.clips] == ["clip-0", "clip-1", "clip-2"]
    first = manifest.clips[0]
    assert first.facts == ClipFacts(5, 32, 48) and first.instruction == "make the square blue" and not first.fitted
    assert first.edits == {"ours": made.resolve() / "edits" / "0.mp4"} and first.mask == made.resolve() / "masks" / "0"


def test_several_folders_stand_side_by_side_also_with_copies_of_the_sources(made: Path, tmp_path: Path):
    shutil.copytree(made, tmp_path / "theirs")
    manifest = read_manifest([made, tmp_path / "theirs"])
    assert manifest.methods == ["ours", "theirs"] and set(manifest.clips[0].edits) == {"ours", "theirs"}


def test_one_manifest_may_hold_several_methods(folder: Path):
    rewrite(folder, lambda lines: lines.extend({**line, "method": "again"} for line in list(lines)))
    assert read_manifest([folder]).methods == ["ours", "again"]


def test_sources_may_lie_elsewhere(folder: Path, tmp_path: Path):
    for part in ("sources", "truths", "masks"):
        shutil.move(folder / part, tmp_path / "set" / part)
    assert len(read_manifest([folder], sources=tmp_path / "set").clips) == 3
    assert "source 'sources/0.mp4' does not exist" in problems(folder)


def change(number: int, **fields):
    return lambda lines: lines[number].update(fields)


def drop(number: int, name: str):
    return lambda lines: lines[number].pop(name)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop(1, "instruction"), f"{NAME}:2: field 'instruction' is missing"),
        (change(0, sorce="x"), "field 'sorce' is not known; did you mean source?"),
        (change(0, edited="edits/9.mp4"), "edited 'edits/9.mp4' does not exist"),
        (change(0, edited="../ours/../../etc/passwd"), "leads out of"),
        (change(0, source="/etc/passwd"), "leads out of"),
        (change(0, instruction=" "), "not a text with something in it"),
        (change(0, id=7), "id is 7, not a text"),
        (change(1, id="clip-0"), "id 'clip-0' of method 'ours' is there twice"),
        (change(0, method="source_copy"), "cannot be called 'source_copy'"),
        (lambda lines: lines.pop(), "files that no line"),
        (lambda lines: lines.clear(), "has no lines"),
        (lambda lines: lines.extend({**line, "method": "b"} for line in lines[:2]), "'b' has no edit of clip-2"),
        (lambda lines: lines.append({**lines[0], "method": "b", "instruction": "other"}), "no edit of clip-1, clip-2"),
    ],
)
def test_a_faulty_line_is_told_by_name(folder: Path, damage, said: str):
    rewrite(folder, damage)
    assert said in problems(folder)


def test_all_faults_are_told_at_once(folder: Path):
    rewrite(folder, lambda lines: [lines[0].pop("id"), lines[1].update(edited="../x.mp4"), lines[2].update(x="1")])
    assert len(problems(folder).splitlines()) == 3


def test_an_extra_file_is_an_error_and_a_hidden_or_other_one_is_not(folder: Path):
    (folder / "notes.txt").write_text("as you like")
    (folder / ".cache").mkdir()
    write(folder / ".cache" / "x.mp4", moving())
    assert len(read_manifest([folder]).clips) == 3
    write(folder / "edits" / "forgotten.mp4", moving())
    assert "no line of manifest.jsonl names: edits/forgotten.mp4" in problems(folder)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "gone"])
def test_a_damaged_file_is_known_before_anything_is_scored(folder: Path, damage: str):
    path = folder / "edits" / "1.mp4"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"no video"}[damage])
    assert "1.mp4" in problems(folder)


def test_lengths_and_sizes_that_differ_are_refused_or_fitted(folder: Path):
    write(folder / "sources" / "0.mp4", moving(0, frames=7, size=(64, 96)))
    said = problems(folder)
    assert "source has 7 frames of 64x96, the edit 5 frames of 32x48 (height x width)" in said and "--fit" in said
    clip = read_manifest([folder], fit=True).clips[0]
    assert clip.fitted and clip.facts == ClipFacts(5, 32, 48)
    write(folder / "sources" / "0.mp4", moving(0, frames=4))
    assert "it is too short" in problems(folder, fit=True)


def test_methods_must_agree_on_length_size_and_what_was_asked(made: Path, folder: Path, tmp_path: Path):
    theirs = folder.rename(tmp_path / "theirs")
    write(theirs / "edits" / "0.mp4", moving(0, frames=4))
    write(theirs / "truths" / "2.mp4", moving(2, colour=(0.2, 0.2, 0.2)))
    rewrite(theirs, change(1, instruction="make the square green"))
    said = problems(made, theirs, fit=True)
    assert "clip 'clip-0': ours wrote 5 frames of 32x48, theirs 4 frames" in said
    assert "clip 'clip-1': instruction differs" in said and "clip 'clip-2': ours and theirs have another truth" in said


def test_a_picture_is_a_clip_of_one_frame_and_a_mask_for_all_frames(folder: Path):
    shutil.rmtree(folder / "masks" / "0")
    write(folder / "masks" / "0.png", moving()[:1])
    rewrite(folder, change(0, mask="masks/0.png"))
    assert read_manifest([folder]).clips[0].facts.frames == 5
    write(folder / "edits" / "0.png", moving())
    (folder / "edits" / "0.mp4").unlink()
    rewrite(folder, change(0, edited="edits/0.png"))
    assert "the edit 1 frames" in problems(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path):
    outside = tmp_path / "outside.mp4"
    shutil.move(folder / "edits" / "0.mp4", outside)
    (folder / "edits" / "0.mp4").symlink_to(outside)
    assert "leads out of" in problems(folder)


def test_a_folder_of_frames_with_something_else_in_it_is_refused(folder: Path):
    (folder / "masks" / "0" / "readme.txt").write_text("hello")
    assert "is no folder of frames: it has readme.txt" in problems(folder)


def test_tiny_frames_are_refused(folder: Path):
    for part in ("sources", "edits", "truths"):
        write(folder / part / "0.mp4", moving()[..., :12, :12])
    rewrite(folder, drop(0, "mask"))
    shutil.rmtree(folder / "masks" / "0")
    assert "12x12 (height x width); 16 pixels are the least" in problems(folder)


@given(
    st.lists(
        st.fixed_dictionaries({"id": st.text(min_size=1), "instruction": st.text(min_size=1)}), min_size=1, max_size=3
    )
)
@settings(max_examples=30, deadline=None)
def test_any_words_survive_writing_and_reading_or_are_refused_in_plain_words(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("words")
    write(folder / "a.png", moving()[..., :32, :32])
    write_manifest(folder, [{**line, "source": "a.png", "edited": "a.png"} for line in lines])
    try:
        read = read_manifest([folder]).clips
    except ConfigError as error:
        assert all(str(folder) in problem or "twice" in problem for problem in error.problems)
    else:
        assert [(clip.id, clip.instruction) for clip in read] == [(line["id"], line["instruction"]) for line in lines]


def test_a_writer_that_misspells_a_field_is_stopped(tmp_path: Path):
    with pytest.raises(ValueError, match="'edit' is no field"):
        write_manifest(tmp_path, [{"id": "a", "edit": "b"}])


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path):
    write(tmp_path / "a.png", moving()[..., :32, :32])
    words = "one\u2028two\x85three"
    write_manifest(tmp_path, [{"id": "a", "source": "a.png", "edited": "a.png", "instruction": words}])
    assert read_manifest([tmp_path]).clips[0].instruction == words
