"""Sets that cannot be read, or that mean harm: what is refused by name, and what is a broken pair only."""

import json
import tarfile

import pytest
from PIL import Image

from ivedit.data.record import build_reader
from ivedit.errors import ConfigError

from .setfiles import tar_members, write_hub_layout, write_parquet, write_tar


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("../0.source.png", b"x")], "leads out"),
        ([("/etc/0.source.png", b"x")], "leads out"),
        ([("a\\..\\..\\0.source.png", b"x")], "leads out"),
        ([("0.source.png", b"x"), ("0.source.png", b"y")], "twice"),
        ([("0.json", b"{")], "damaged"),
        ([("0.txt", b"x" * 2**21)], "bytes of text"),
        ([("0.source.pkl", b"x"), ("0.target.png", b"x"), ("0.txt", b"x")], "may be a pickle"),
        ([("0.before.png", b"x"), ("0.target.png", b"x"), ("0.txt", b"x")], r"columns\.source.*before\.png"),
    ],
)
def test_archives_with_what_must_not_be_in_them_are_refused_by_name(tmp_path, set_config, members, reason):
    columns = {"source": "source.pkl"} if members[0][0].endswith("pkl") else {}
    with pytest.raises(ConfigError, match=reason) as caught:
        build_reader(set_config(write_tar(tmp_path / "evil.tar", members), columns=columns), "train")
    assert "evil.tar" in str(caught.value)


def test_links_cut_and_compressed_archives_are_refused_by_name(tmp_path, set_rows, set_config):
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        entry = tarfile.TarInfo("0.source.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with pytest.raises(ConfigError, match="link or device"):
        build_reader(set_config(tmp_path / "link.tar"), "train")
    whole = write_tar(tmp_path / "cut.tar", tar_members(set_rows)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:-30000])
    with pytest.raises(ConfigError, match=r"cut\.tar' (is cut off|cannot be read)"):
        build_reader(set_config(tmp_path / "cut.tar"), "train")
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "cut.tar", "0.source.png")
    with pytest.raises(ConfigError, match="cannot be read as tar"):
        build_reader(set_config(tmp_path / "packed.tar"), "train")


def test_paths_that_lead_out_of_the_set_are_refused(tmp_path, set_rows, set_config):
    for row in set_rows:
        row["source"] = "../../etc/passwd"
    with pytest.raises(ConfigError, match=r"lead out of data\.path: p0"):
        build_reader(set_config(write_parquet(tmp_path / "p.parquet", set_rows)), "train")
    root = write_hub_layout(tmp_path / "hub", set_rows, {"train": slice(0, 12)})
    write_parquet(tmp_path / "secret" / "x.parquet", set_rows)
    header = (root / "README.md").read_text().replace("data/train-*", "../secret/*.parquet")
    (root / "README.md").write_text(header)
    with pytest.raises(ConfigError, match=r"outside itself|cannot be read as a set"):
        build_reader(set_config(root), "train")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nowhere", "no file or directory"), ("nobody/nothing", "neither a local file or directory nor a set"),
        ("notes.txt", "must end in"), ("broken.parquet", "cannot be read as parquet"),
        ("empty", "cannot be read as a set"), ("photos", "of the kind"),
    ],
)  # fmt: skip
def test_places_that_hold_no_set_are_plain_errors(tmp_path, photos, set_config, monkeypatch, place, reason):
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "broken.parquet"):
        (tmp_path / name).write_text("nothing of the kind")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    with pytest.raises(ConfigError, match=reason):
        build_reader(set_config(place), "train")


def test_an_oversized_member_is_a_broken_pair(tmp_path, set_rows, set_config, monkeypatch):
    from ivedit.data import tar

    path = write_tar(tmp_path / "p.tar", tar_members(set_rows))
    monkeypatch.setattr(tar, "_MEMBER_BYTES", 100)
    reader = build_reader(set_config(path), "train")
    assert "oversized" in str(reader.load_batch(range(len(reader))).bad[0][1])


def test_json_members_need_not_be_mappings(tmp_path, set_rows, set_config):
    members = tar_members(set_rows)
    members[2] = ("00000.json", json.dumps(["no", "mapping"]).encode())
    reader = build_reader(set_config(write_tar(tmp_path / "p.tar", members)), "train")
    assert len(reader) == 10 + 1  # the first sample has no split any more: training
    assert "has no instruction" in str(reader.load_batch(range(len(reader))).bad[0][1])
