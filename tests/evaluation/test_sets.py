"""Published evaluation sets, in small folders of their own layouts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ivedit.errors import ConfigError
from ivedit.evaluation.sets import read_outputs, read_set
from tests.evaluation.edits import mask_of, moving, write

MASK = mask_of(moving(), moving(colour=(0, 0, 1))).expand(-1, 3, -1, -1).byte() * 255


def openve(folder: Path) -> None:
    rows = [("OpenVE-Bench/videos/cat.mp4", "make it night", "global_style"),
            ("OpenVE-Bench/videos/cat.mp4", "remove the cat", "local_remove"),
            ("videos/dog.mp4", "add a hat, please", "local_add")]  # fmt: skip
    for name in ("cat", "dog"):
        write(folder / "videos" / f"{name}.mp4", moving())
    with (folder / "benchmark_videos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("edited_type", "original_video", "prompt"), *[(c, a, b) for a, b, c in rows]])


def ivebench(folder: Path, subset: str = "short") -> None:
    """IVEBench as its own evaluation reads it; the second video has been taken apart into frames, as that asks for."""
    videos = folder / f"ivebenchdb_mp4_{subset}"
    write(videos / "0001.mp4", moving())
    write(videos / "0002", moving())
    rows = [
        {"id": 1, "src_video_name": "0001.mp4", "category": "style", "subcategory": "oil", "source_prompt": "a street",
         "edit_prompt": "make it a painting", "target_prompt": "a painted street", "target_phrase": "painting",
         "target_span": [1, 2]},
        {"id": 2, "src_video_name": "0002.mp4", "category": "attribute", "subcategory": "colour",
         "edit_prompt": "make the car red"},
    ]  # fmt: skip
    (folder / f"ivebenchdb_prompt_{subset}.json").write_text(json.dumps(rows))


def five(folder: Path) -> None:
    write(folder / "images" / "0001_bus", moving())
    write(folder / "videos" / "0001_bus.mp4", moving(frames=4))  # the masks are of the frames, not of this
    write(folder / "bmasks" / "0001_bus", MASK)
    (folder / "edit_prompt").mkdir()
    entry = {"video_name": "0001_bus", "save_dir": "1_red", "source_prompt": "a [blue] bus", "editing_type_id": 1,
             "target_prompt": "a [red] bus", "multiple_choice_question": "?"}  # fmt: skip
    (folder / "edit_prompt" / "edit1_FiVE.json").write_text(json.dumps([entry, {**entry, "save_dir": "1_green"}]))
    (folder / "edit_prompt" / "edit3_FiVE.json").write_text(json.dumps([{**entry, "instruction": "paint it"}]))


def davis(folder: Path) -> None:
    for name in ("bear", "dog-agility"):
        write(folder / "JPEGImages" / "480p" / name, moving())
        write(folder / "Annotations" / "480p" / name, MASK)
    (folder / "ImageSets" / "2017").mkdir(parents=True)
    (folder / "instructions.json").write_text(json.dumps({"bear": "make the bear white", "dog-agility": "add snow"}))


LAYOUTS = {
    "openve": (openve, ["cat", "cat-2", "dog"], "make it night"),
    "ivebench": (ivebench, ["0001", "0002"], "make it a painting"),
    "five": (five, ["edit1-0001_bus", "edit1-0001_bus-2", "edit3-0001_bus"], "a red bus"),
    "davis": (davis, ["bear", "dog-agility"], "make the bear white"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_set_is_read_in_its_own_layout_and_outputs_are_found_by_id(name: str, tmp_path: Path):
    make, ids, first = LAYOUTS[name]
    make(tmp_path / "set")
    clips = read_set(f"{name}={tmp_path / 'set'}")
    assert [clip.id for clip in clips] == ids and clips[0].instruction == first
    assert all(clip.source.exists() for clip in clips)
    for i, id in enumerate(ids):
        write(tmp_path / "ours" / (f"{id}.mp4" if i else id), moving())
    manifest = read_outputs(f"{name}={tmp_path / 'set'}", [tmp_path / "ours"])
    assert manifest.methods == ["ours"] and [clip.id for clip in manifest.clips] == ids


def test_what_else_a_set_knows_is_kept(tmp_path: Path):
    five(tmp_path / "five"), ivebench(tmp_path / "ive"), davis(tmp_path / "davis"), openve(tmp_path / "openve")
    first = read_set(f"five={tmp_path / 'five'}")[0]
    assert (first.source_caption, first.target_caption, first.operation) == ("a blue bus", "a red bus", "edit1")
    assert first.mask == (tmp_path / "five" / "bmasks" / "0001_bus").resolve() and first.source.is_dir()
    assert read_set(f"five={tmp_path / 'five'}")[2].instruction == "paint it"
    one = read_set(f"ivebench={tmp_path / 'ive' / 'ivebenchdb_prompt_short.json'}")[0]
    assert (one.source_caption, one.target_caption, one.operation) == ("a street", "a painted street", "style")
    bear = read_set(f"davis={tmp_path / 'davis'}")[0]
    assert bear.object == "the bear" and bear.mask is not None
    assert read_set(f"openve={tmp_path / 'openve'}")[1].operation == "local_remove"


def test_ivebench_may_also_be_grouped_by_category_or_by_video(tmp_path: Path):
    ivebench(tmp_path)
    table = tmp_path / "ivebenchdb_prompt_short.json"
    rows = json.loads(table.read_text())
    table.write_text(json.dumps({"styles": rows[:1], "more": rows[1:]}))
    assert [clip.id for clip in read_set(f"ivebench={tmp_path}")] == ["0001", "0002"]
    table.write_text(json.dumps({row.pop("src_video_name"): row for row in rows}))
    assert [clip.instruction for clip in read_set(f"ivebench={tmp_path}")] == ["make it a painting", "make the car red"]


def test_the_two_subsets_of_ivebench_are_two_sets_whose_videos_may_have_the_same_names(tmp_path: Path):
    ivebench(tmp_path), ivebench(tmp_path, "long")
    assert "name one" in said(f"ivebench={tmp_path}")
    for subset in ("short", "long"):
        clips = read_set(f"ivebench={tmp_path / f'ivebenchdb_prompt_{subset}.json'}")
        assert [clip.source.parent.name for clip in clips] == [f"ivebenchdb_mp4_{subset}"] * 2


def test_openve_may_lie_below_its_table(tmp_path: Path):
    openve(tmp_path / "OpenVE-Bench")
    (tmp_path / "OpenVE-Bench" / "benchmark_videos.csv").rename(tmp_path / "benchmark_videos.csv")
    assert [clip.id for clip in read_set(f"openve={tmp_path}")] == ["cat", "cat-2", "dog"]


def said(where: str, folders: list[Path] | None = None) -> str:
    with pytest.raises(ConfigError) as raised:
        read_outputs(where, folders or [])
    return "\n".join(raised.value.problems)


def test_missing_and_extra_outputs_are_told_before_anything_is_scored(tmp_path: Path):
    davis(tmp_path / "set")
    write(tmp_path / "ours" / "bear.mp4", moving())
    write(tmp_path / "ours" / "beer.mp4", moving())
    told = said(f"davis={tmp_path / 'set'}", [tmp_path / "ours"])
    assert "has no output for dog-agility" in told and "not in the set: beer" in told


def test_clips_without_instructions_cannot_be_evaluated_but_can_be_anchors(tmp_path: Path):
    davis(tmp_path / "set")
    (tmp_path / "set" / "instructions.json").unlink()
    assert len(read_set(f"davis={tmp_path / 'set'}")) == 2
    assert "clip 'bear' has no instruction" in said(f"davis={tmp_path / 'set'}", [tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("openve", "write NAME=PATH"),
        ("opnve=.", "did you mean openve"),
        ("davis=nowhere", "nowhere does not exist"),
        ("openve={}", "has no *.csv"),
        ("ivebench={}", "has no *.json"),
        ("five={}", "no edit_prompt/*.json"),
        ("davis={}", "no JPEGImages"),
    ],
)
def test_a_folder_of_another_layout_is_refused_in_plain_words(where: str, told: str, tmp_path: Path):
    assert told in said(where.format(tmp_path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("edited_type,original_video\na,b\n", "has no column prompt"),
        ("original_video,prompt\nnone.mp4,x\n", "video 'none.mp4' is not in"),
        ("original_video,prompt\n../../x.mp4,x\n", "leads out of"),
    ],
)
def test_a_table_that_names_what_is_not_there_is_refused(text: str, told: str, tmp_path: Path):
    (tmp_path / "set.csv").write_text(text)
    assert told in said(f"openve={tmp_path}")


def test_json_of_another_shape_is_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text('[{"video": "x.mp4"}]')
    assert "entry 0 has no one of edit_prompt" in said(f"ivebench={tmp_path}")
    (tmp_path / "a.json").write_text("[1]")
    assert "entry 0 is not an object" in said(f"ivebench={tmp_path}")
    (tmp_path / "a.json").write_text("[")
    assert "cannot be read" in said(f"ivebench={tmp_path}")
