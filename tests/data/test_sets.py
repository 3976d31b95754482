"""Sets in the formats people have: the same photographs as a folder gives, whatever they are wrapped in."""

import io
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from ivedit.data.datamodule import PairDataModule
from ivedit.data.pixels import load_replaced, read_chunks
from ivedit.data.record import BadRecord, build_reader
from ivedit.errors import ConfigError

from .setfiles import tar_members, write_csv, write_hub_layout, write_parquet, write_tar


def everything(reader):
    return [(words.id, words.instructions) for words in reader.texts(range(len(reader)))]


def pixels(reader):
    return reader.load_batch(range(len(reader)))


def write(kind, root, photos, set_rows):
    if kind == "parquet of structs":
        return write_parquet(root / "pairs.parquet", set_rows)
    if kind == "parquet of bytes":
        return write_parquet(root / "pairs.parquet", set_rows, raw=True)
    if kind == "parquet of paths":
        return write_parquet(photos.root / "p.parquet", photos.rows)
    if kind == "parquet of structs of paths":
        beside = [{**row, **{w: {"bytes": None, "path": row[w]} for w in ("source", "target")}} for row in photos.rows]
        beside[1]["target"] = {"bytes": set_rows[1]["target"], "path": "1.png"}
        return write_parquet(photos.root / "p.parquet", beside)
    if kind == "tar":
        return write_tar(root / "pairs.tar", tar_members(set_rows))
    if kind == "csv":
        return write_csv(photos.root / "t.csv", photos.rows)
    if kind == "jsonl":
        return photos.write("t.jsonl")
    first = root / "shards"
    write_tar(first / "a-000.tar", tar_members(set_rows[:7]))
    write_tar(first / "a-001.tar", tar_members(set_rows[7:]))
    return first


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize(
    "kind",
    [
        "parquet of structs", "parquet of bytes", "parquet of paths", "parquet of structs of paths", "tar",
        "csv", "jsonl", "a directory of shards",
    ],
)
def test_every_format_gives_the_pairs_that_the_folder_gives(tmp_path, photos, set_rows, set_config, kind, cache):
    cfg = set_config(write(kind, tmp_path, photos, set_rows), cache=cache)
    for split in ("train", "val"):
        folder = build_reader(photos.config(), split)
        reader = build_reader(cfg, split)
        assert everything(reader) == everything(folder)
        ours, theirs = pixels(reader), pixels(folder)
        assert ours.bad == theirs.bad == []
        assert torch.equal(ours.source, theirs.source) and torch.equal(ours.target, theirs.target)
        assert reader.sizes(range(len(reader))) == folder.sizes(range(len(folder))) == [(64, 96)] * len(reader)
        assert reader.load(0).instruction == folder.load(0).instruction
        assert len(set(reader.keys(range(len(reader))))) == len(reader)


def test_a_hubs_layout_is_read_by_its_splits(tmp_path, set_rows, set_config):
    for row in set_rows:
        del row["split"]
    root = write_hub_layout(tmp_path / "hub", set_rows, {"FreeForm": slice(0, 9), "dev": slice(9, 12)})
    cfg = set_config(root, split="FreeForm", validation_split="dev", validation_pairs=2)
    assert [name for name, _ in everything(build_reader(cfg, "train"))] == [f"p{i}" for i in range(9)]
    assert [name for name, _ in everything(build_reader(cfg, "val"))] == ["p9", "p10"]
    with pytest.raises(ConfigError, match=r"data\.split.*no split 'train'.*FreeForm"):
        build_reader(set_config(root), "train")
    with pytest.raises(ConfigError, match=r"^data\.validation_split: .*no split 'val'"):
        build_reader(set_config(root, split="FreeForm", validation_split="val"), "val")
    with pytest.raises(ConfigError, match="'other' not found"):
        build_reader(set_config(root, split="dev", subset="other"), "train")
    root.rename(tmp_path / "hub [1]")
    with pytest.raises(ConfigError, match="rename the directory"):
        build_reader(set_config(tmp_path / "hub [1]"), "train")


def test_files_named_after_splits_need_no_header(tmp_path, photos, set_rows, set_config, caplog):
    caplog.set_level("INFO", "ivedit")
    for row in set_rows:
        del row["split"]
    write_parquet(tmp_path / "set" / "train.parquet", set_rows[:9])
    write_parquet(tmp_path / "set" / "validation.parquet", set_rows[9:])
    cfg = set_config(tmp_path / "set", validation_split="validation")
    assert len(build_reader(cfg, "train")) == 9 and len(build_reader(cfg, "val")) == 2
    assert "not used" not in caplog.text
    # Tables without ids, in several files of a split.
    for part in (0, 1):
        half = photos.rows[6 * part : 6 * part + 6]
        bare = [{k: v for k, v in row.items() if k not in ("id", "split")} for row in half]
        write_csv(photos.root / f"train-{part}.csv", bare)
    names = [name for name, _ in everything(build_reader(set_config(photos.root, table="none.csv"), "train"))]
    assert len(set(names)) == len(names) == 11
    # Without naming it, pairs of the training split are held out, and never seen in training.
    held = {name for name, _ in everything(build_reader(set_config(tmp_path / "set", validation_pairs=1), "val"))}
    rest = {name for name, _ in everything(build_reader(set_config(tmp_path / "set", validation_pairs=1), "train"))}
    assert len(held) == 1 and len(rest) == 8 and not held & rest
    unused = [line for line in caplog.messages if "not used" in line]
    assert unused == [
        "validation.parquet is not used: some training pairs are held out for validation; "
        "data.validation_split=validation takes the validation pairs from there"
    ]


def test_pairs_of_one_group_are_never_divided(tmp_path, set_rows, set_config):
    for number, row in enumerate(set_rows):
        del row["split"]
        row["img_id"] = number // 3
    path = write_parquet(tmp_path / "p.parquet", set_rows)
    cfg = set_config(path, columns={"group": "img_id"}, validation_pairs=1)
    held = {int(name[1:]) // 3 for name, _ in everything(build_reader(cfg, "val"))}
    assert not held & {int(name[1:]) // 3 for name, _ in everything(build_reader(cfg, "train"))}


def test_only_the_files_that_are_needed_are_opened(tmp_path, set_rows, set_config):
    for row in set_rows:
        del row["split"]
    root = write_hub_layout(tmp_path / "hub", set_rows, {"train": slice(0, 12)}, shards=3)
    (root / "data" / "train-00002-of-00003.parquet").write_bytes(b"not fetched yet")
    cfg = set_config(root, pairs=6, validation_pairs=1)
    assert len(build_reader(cfg, "train")) == 6
    with pytest.raises(ConfigError, match=r"train-00002-of-00003\.parquet' cannot be read as parquet"):
        build_reader(set_config(root, pairs=9), "train")


def test_scores_filter_rows_and_rows_without_one_are_left_out(tmp_path, set_rows, set_config, caplog):
    path = write_parquet(tmp_path / "p.parquet", set_rows)
    with caplog.at_level("INFO", "ivedit"):
        reader = build_reader(set_config(path, min_scores={"score": 1.0}), "train")
    assert [name for name, _ in everything(reader)] == ["p2", "p4", *(f"p{i}" for i in range(6, 12))]
    assert "score >= 1 keeps 9 of 12 rows of p.parquet (1 have no such score)" in caplog.text
    for reason, least in (("no column 'o_score'", {"o_score": 1}), ("keeps 0 of 12", {"score": 99})):
        with pytest.raises(ConfigError, match=reason):
            build_reader(set_config(path, min_scores=least), "train")
    tar = write_tar(tmp_path / "p.tar", tar_members(set_rows))
    assert len(build_reader(set_config(tar, min_scores={"score": 1.0}), "train")) == 8


def test_instructions_may_be_lists_structs_or_the_text_beside_the_images(tmp_path, set_rows, set_config):
    for i, row in enumerate(set_rows):
        row["instruction"] = [f"one {i}", f"two {i}"]
        row["words"] = {"short": f"a{i}", "long": None if i % 2 else f"b{i}"}
    path = write_parquet(tmp_path / "p.parquet", set_rows)
    texts = build_reader(set_config(path), "train").texts([0])[0]
    assert texts.instructions == ("one 1", "two 1")
    reader = build_reader(set_config(path), "train")
    assert {reader.read(0, epoch).instruction for epoch in range(20)} == {"one 1", "two 1"}
    both = build_reader(set_config(path, columns={"instruction": "words"}), "train").texts([0, 1])
    assert [t.instructions for t in both] == [("a1",), ("a2", "b2")]
    inner = build_reader(set_config(path, columns={"instruction": "words.short"}), "train").texts([0])
    assert inner[0].instructions == ("a1",)
    members = [(f"{i}.source.png", row["source"]) for i, row in enumerate(set_rows)]
    members += [(f"{i}.target.png", row["target"]) for i, row in enumerate(set_rows)]
    members += [(f"{i}.txt", f"words {i}".encode()) for i in range(len(set_rows))]
    tar = write_tar(tmp_path / "p.tar", members)
    assert build_reader(set_config(tar), "train").texts([0])[0].instructions[0].startswith("words ")


def test_broken_images_are_skipped_by_the_name_of_their_row(tmp_path, set_rows, set_config):
    for row in set_rows:
        del row["id"]
    set_rows[3]["source"] = set_rows[3]["source"][:300]
    set_rows[4]["target"] = b""
    set_rows[6]["target"] = None
    path = write_parquet(tmp_path / "data.parquet", set_rows)
    tar = write_tar(tmp_path / "data.tar", tar_members(set_rows[:5]))
    reader = build_reader(set_config(path), "train")
    said = "\n".join(str(problem) for _, problem in pixels(reader).bad)
    for part in ("data.parquet row 3 (source): is damaged", "row 4 (target): is empty", "row 6 (target): is empty"):
        assert part in said
    names = [name for name, _ in everything(reader)]
    assert names[0].startswith("data.parquet row ")
    broken = names.index("data.parquet row 3")
    after = names.index("data.parquet row 7")
    assert load_replaced(reader, [broken]).indices == [after]
    said = "\n".join(str(p) for _, p in pixels(build_reader(set_config(tar), "train")).bad)
    assert "data.tar 00003 (source): is damaged" in said and "data.tar 00004 (target): is empty" in said


def test_a_null_mask_is_no_mask(tmp_path, set_rows, set_config):
    mask = io.BytesIO()
    Image.fromarray(np.full((64, 96), 255, np.uint8)).save(mask, "PNG")
    for number, row in enumerate(set_rows):
        row["mask"] = mask.getvalue() if number % 2 else None
    reader = build_reader(set_config(write_parquet(tmp_path / "p.parquet", set_rows)), "train")
    assert reader.load(0).mask.all() and reader.load(1).mask is None


def test_a_file_that_stands_beside_a_parquet_counts_for_the_key(tmp_path, photos, set_rows, set_config):
    reader = build_reader(set_config(write("parquet of structs of paths", tmp_path, photos, set_rows)), "train")
    before = reader.keys(range(10))
    path = photos.root / photos.rows[2]["source"]
    path.write_bytes(path.read_bytes())
    changed = [i for i, (a, b) in enumerate(zip(before, reader.keys(range(10)), strict=True)) if a != b]
    assert [reader.texts([i])[0].id for i in changed] == ["p2"]


@settings(
    max_examples=4, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shards=st.integers(1, 5), group=st.integers(1, 12), batch=st.integers(1, 2), world=st.integers(1, 2),
       seed=st.integers(0, 3), data=st.data())  # fmt: skip
def test_files_row_groups_ranks_and_resuming_change_nothing(
    tmp_path, set_rows, set_config, encoders, shards, group, batch, world, seed, data
):
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    size = -(-len(set_rows) // shards)
    for shard in range(shards):
        if part := set_rows[shard * size : (shard + 1) * size]:
            write_parquet(root / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet", part, group=group)
    one = write_parquet(tmp_path / "one.parquet", set_rows)

    def module(place, batch, rank=0, world=1):
        cfg = set_config(place, cache="none")
        cfg.train.batch_size, cfg.seed = batch, seed
        return PairDataModule(cfg, encoders.encode_pixels, encoders.encode_text, "x", rank=rank, world=world)

    def ids(pairs):
        return [batch["ids"] for batch in pairs.train_dataloader()]

    whole = ids(module(one, batch * world))
    ranks = [module(root, batch, rank, world) for rank in range(world)]
    together = [[name for part in parts for name in part] for parts in zip(*map(ids, ranks), strict=True)]
    assert together == whole
    assert len({name for one in whole for name in one}) == len(whole) * batch * world
    position = data.draw(st.integers(0, len(whole) - 1))
    resumed = module(root, batch * world)
    resumed.load_state_dict({**resumed.state_dict(), "epoch": 0, "batch": position})
    assert ids(resumed) == whole[position:]


def test_repeated_ids_are_told_apart_by_their_row(tmp_path, set_rows, set_config):
    for row in set_rows:
        row["id"] = "same"
        del row["split"]
    reader = build_reader(set_config(write_parquet(tmp_path / "p.parquet", set_rows), validation_pairs=1), "train")
    assert len({name for name, _ in everything(reader)}) == len(reader)


def test_loader_processes_and_pickling_give_the_same_pixels_in_any_order(tmp_path, set_rows, set_config):
    reader = build_reader(set_config(write_parquet(tmp_path / "p.parquet", set_rows), cache="none"), "train")
    chunks = [[7, 0], [3, 9], [1, 4]]
    alone = list(read_chunks(reader, chunks))
    together = list(read_chunks(reader, chunks, workers=2))
    copy = list(read_chunks(pickle.loads(pickle.dumps(reader)), chunks))
    for a, b, c in zip(alone, together, copy, strict=True):
        assert torch.equal(a.source, b.source) and torch.equal(a.target, c.target)
    assert len(list((tmp_path / "cache" / "unpacked").glob("*.arrow"))) == 6  # three row groups of two columns


def test_a_large_row_group_is_unpacked_instead_of_held(tmp_path, set_rows, set_config, monkeypatch):
    from ivedit.data import parquet

    path = write_parquet(tmp_path / "p.parquet", set_rows, group=12)
    held = pixels(build_reader(set_config(path), "train"))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(parquet, "_HELD_BYTES", 1000)
    monkeypatch.setattr(parquet, "_PIECE", 5)
    unpacked = pixels(build_reader(set_config(path), "train"))
    assert torch.equal(held.source, unpacked.source) and torch.equal(held.target, unpacked.target)
    assert len(list((tmp_path / "cache" / "unpacked").iterdir())) == 2


def test_keys_follow_the_file_and_the_row(tmp_path, set_rows, set_config):
    path = write_parquet(tmp_path / "p.parquet", set_rows)
    first = build_reader(set_config(path), "train")
    assert first.fingerprint() == build_reader(set_config(path), "train").fingerprint()
    assert len(set(first.keys(range(10)))) == 10
    assert not set(first.keys([0])) & set(build_reader(set_config(path, height=64), "train").keys([0]))
    before = first.keys(range(10))
    write_parquet(tmp_path / "p.parquet", set_rows)
    assert not set(before) & set(build_reader(set_config(path), "train").keys(range(10)))


def test_training_batches_from_parquet_are_those_from_the_folder(tmp_path, photos, set_rows, set_config, encoders):
    path = write_parquet(tmp_path / "p.parquet", set_rows)
    seen = []
    for cfg in (photos.config(), set_config(path), set_config(path, cache="none"), set_config(path, cache="disk")):
        module = PairDataModule(cfg, encoders.encode_pixels, encoders.encode_text, "x")
        seen.append([(batch["ids"], batch["source"], batch["target"]) for batch in module.train_dataloader()])
        assert len(seen[-1]) == 2
        for mine, first in zip(seen[-1], seen[0], strict=True):
            assert mine[0] == first[0]
            assert torch.equal(mine[1], first[1]) and torch.equal(mine[2], first[2])


def test_captions_of_a_preset_reach_the_text(tmp_path, photos, set_config):
    for row in photos.rows:
        row.update(vife_edit_video=row.pop("source"), video=row.pop("target"), prompt=f"caption of {row['id']}")
        del row["instruction"]
    path = write_csv(photos.root / "pairs.csv", photos.rows)
    cfg = set_config(path, preset="vifeedit")
    words = build_reader(cfg, "train").texts([0])[0]
    assert words.instructions == (words.target_caption,) and words.target_caption.startswith("caption of")


def test_a_user_brings_a_preset_and_columns_stand_above_it(tmp_path, set_rows, set_config):
    words = {"prompt": "from the preset", "other": "from the run"}
    renamed = [{**row, "before": row["source"], **words} for row in set_rows]
    path = write_parquet(tmp_path / "p.parquet", [{k: v for k, v in r.items() if k != "source"} for r in renamed])
    preset = tmp_path / "mine.yaml"
    preset.write_text("columns: {source: before, instruction: prompt}\nscores: [score]\n")
    reader = build_reader(set_config(path, preset=str(preset)), "train")
    assert reader.texts([0])[0].instructions == ("from the preset",) and pixels(reader).bad == []
    reader = build_reader(set_config(path, preset=str(preset), columns={"instruction": "other"}), "train")
    assert reader.texts([0])[0].instructions == ("from the run",)


def test_pairs_of_videos_give_one_frame_of_each_if_asked(tmp_path, set_config, photos):
    from ivedit.media import write_video

    ramp = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 32, 48) * 20
    lines = []
    for number in range(3):
        write_video(photos.root / f"{number}.mp4", ramp.contiguous(), 8, lossless=True)
        write_video(photos.root / f"{number} edited.mp4", (ramp[:9] + 10).contiguous(), 8, lossless=True)
        lines.append({"src_video": f"{number}.mp4", "tgt_video": f"{number} edited.mp4", "prompt": "brighter",
                      "split": "val" if number == 0 else "train"})  # fmt: skip
    path = write_csv(photos.root / "t.csv", lines)
    with pytest.raises(ConfigError, match=r"data\.frame: 2 of 2 pairs are videos"):
        build_reader(set_config(path, preset="kiwi"), "train")

    def values(which, seed=0):
        cfg = set_config(path, preset="kiwi", frame=which)
        cfg.seed = seed
        reader = build_reader(cfg, "train")
        batch = pixels(reader)
        assert batch.bad == [] and reader.sizes([0]) == [(32, 48)]
        frames = (batch.source[:, 0, 0, 0] / 20).tolist()
        assert (batch.target[:, 0, 0, 0] - 10).tolist() == [20 * f for f in frames]  # the same frame of both
        return frames, reader.keys([0, 1])

    assert values("first")[0] == [0, 0] and values("middle")[0] == [4, 4]
    assert values("random") == values("random")
    drawn = [values("random", seed) for seed in range(6)]
    assert len({tuple(frames) for frames, _ in drawn}) > 1 and len({tuple(keys) for _, keys in drawn}) == 6
    assert all(0 <= frame < 9 for frames, _ in drawn for frame in frames)
    (photos.root / "1 edited.mp4").write_bytes(b"no video")
    reader = build_reader(set_config(path, preset="kiwi", frame="middle"), "train")
    assert next(str(p) for _, p in pixels(reader).bad).startswith("row-000001 (1 edited.mp4, target)")
    with pytest.raises(BadRecord):
        reader.load(0)
