import logging
import os
from pathlib import Path

import pytest

from ivedit.data.folder import split_rows
from ivedit.data.table import read_table
from ivedit.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set [1]"  # a name that looks like a pattern
    root.mkdir()
    return root


def test_a_csv_is_read_as_text_with_a_column_map(folder):
    (folder / "t.csv").write_text(
        "nr,src_img,tgt_img,prompt,kind\n"
        '007,a.png,b.png,"make it ""red"", please",recolour\n'
        "008,ä/ö.png,b.png,none,\n",
        encoding="utf-8",
    )
    columns = {"id": "nr", "source": "src_img", "target": "tgt_img", "instruction": "prompt", "operation": "kind"}
    rows = read_table(folder, "t.csv", columns)
    assert [row.texts.id for row in rows] == ["007", "008"]
    assert rows[0].texts.instructions == ('make it "red", please',)
    assert rows[1].texts.instructions == ("none",)
    assert rows[1].texts.operation is None and rows[0].texts.operation == "recolour"
    assert rows[1].source == folder.resolve() / "ä/ö.png"


def test_a_byte_order_mark_and_line_breaks_in_cells_are_no_trouble(folder):
    (folder / "t.csv").write_bytes(
        b"\xef\xbb\xbfid,source,target,instruction\r\n1,a.png,b.png,\"two\r\nlines\"\r\n"
    )
    assert read_table(folder, "t.csv", {})[0].texts.instructions == ("two\r\nlines",)


def test_several_instructions_come_as_a_list_in_either_format(folder):
    (folder / "t.jsonl").write_text(
        '{"id": "1", "source": "a.png", "target": "b.png", "instruction": ["red", "", "make it red"]}\n'
        '{"id": "2", "source": "a.png", "target": "b.png", "instruction": ["blue"]}\n'
    )
    (folder / "t.csv").write_text(
        "id,source,target,instruction\n"
        '1,a.png,b.png,"[""red"", ""make it red""]"\n'
        "2,a.png,b.png,[sic] keep the bracket\n"
    )
    assert [row.texts.instructions for row in read_table(folder, "t.jsonl", {})] == [("red", "make it red"), ("blue",)]
    assert [row.texts.instructions for row in read_table(folder, "t.csv", {})] == [
        ("red", "make it red"), ("[sic] keep the bracket",),
    ]


def test_every_fault_of_the_columns_is_named_at_once(folder):
    (folder / "t.csv").write_text("id,before,after,prompt\n1,a,b,c\n")
    with pytest.raises(ConfigError) as caught:
        read_table(folder, "t.csv", {"sorce": "before", "target": "aftr"})
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "did you mean source" in text
    for part in ("'aftr'", "data.columns.source", "data.columns.instruction", "id, before, after, prompt"):
        assert part in text


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_that_is_cut_by_another_mark_than_the_comma_is_told_so(folder, mark):
    rows = (("id", "source", "target", "instruction"), ("1", "a.png", "b.png", "make it red"))
    (folder / "t.csv").write_text("".join(mark.join(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="save it with commas") as caught:
        read_table(folder, "t.csv", {})
    assert repr(mark) in str(caught.value)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../x.png", "link/x.png", "loop", "a\u0000b"])
def test_paths_that_lead_out_of_the_folder_are_refused_by_name(folder, path):
    import json

    (folder / "link").symlink_to(folder.parent)
    (folder / "loop").symlink_to(folder / "loop")
    row = {"id": "evil", "source": path, "target": "b.png", "instruction": "x"}
    (folder / "t.jsonl").write_text(json.dumps(row) + "\n")
    if path == "loop":
        # A loop of links leads nowhere: depending on the Python version that shows here or when the file is opened.
        try:
            assert read_table(folder, "t.jsonl", {})
        except ConfigError as problem:
            assert "evil" in str(problem)
        return
    with pytest.raises(ConfigError, match=r"lead out of data\.path: evil"):
        read_table(folder, "t.jsonl", {})


def test_an_absolute_path_inside_the_folder_is_fine(folder):
    (folder / "t.csv").write_text(f"source,target,instruction\n{folder}/a.png,b.png,x\n")
    rows = read_table(folder, "t.csv", {})
    assert rows[0].source == folder.resolve() / "a.png" and rows[0].texts.id == "row-000000"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "is empty"),
        ("t.jsonl", "", "is empty"),
        ("t.csv", "id,source,target,instruction\n", "no rows"),
        ("t.csv", "id,id,source,target,instruction\n1,1,a,b,c\n", "repeats the column id"),
        ("t.csv", "id,source,target,instruction\n1,a,b,c\n1,a,b,d\n", "repeats the id 1"),
        ("t.csv", "id,source,target,instruction\n1,a,b,c,d,e\n2,a,b,c\n\n3,a,b\n", "4 columns.*in line 2, 5"),
        ("t.csv", 'id,source,target,instruction\n1,a,b,"c\n', "cannot be read"),
        ("t.csv", b"id,source,target,instruction\n1,a,b,\xff\xfe\n", "save it as UTF-8"),
        ("t.jsonl", '{"id": 1, "source": \n', "cannot be read"),
        ("t.jsonl", '{"id": 1}\n\n{"id": 2}\n{no\n', r"cannot be read: .* \(line 4\)"),
        ("t.txt", "x", "must end in"),
        ("../t.csv", "x", "leads out"),
        ("none.csv", None, "there is no file"),
    ],
)
def test_a_table_that_cannot_be_used_says_why_and_only_that(folder, name, content, message, caplog):
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    parser = logging.getLogger("datasets.packaged_modules.json.json")
    parser.addHandler(caplog.handler)
    try:
        with pytest.raises(ConfigError, match=message):
            read_table(folder, name, {})
    finally:
        parser.removeHandler(caplog.handler)
    assert not caplog.records


def test_a_path_that_is_no_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path"):
        read_table(tmp_path / "nothing", "t.csv", {})


def test_unreadable_tables_are_plain_errors(folder):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = folder / "t.csv"
    path.write_text("id,source,target,instruction\n1,a,b,c\n")
    path.chmod(0)
    with pytest.raises(ConfigError):
        read_table(folder, "t.csv", {})


def _rows(folder: Path, sources: list[str], split: list[str] | None = None):
    lines = ["id,source,target,instruction" + (",split" if split else "")]
    for i, source in enumerate(sources):
        lines.append(f"{i},{source},t.png,x" + (f",{split[i]}" if split else ""))
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return read_table(folder, "t.csv", {})


def test_validation_rows_are_held_out_by_source_image_whatever_their_order(folder):
    rows = _rows(folder, [f"{i // 3}.png" for i in range(60)])
    train, val = split_rows(rows, "train", 6), split_rows(rows, "val", 6)
    assert len(val) == 6 and len(train) >= 48
    assert not {row.source for row in train} & {row.source for row in val}
    shuffled = list(reversed(rows))
    assert {row.texts.id for row in split_rows(shuffled, "val", 6)} <= {
        row.texts.id for row in rows if row.group in {held.group for held in val}
    }
    # Never more than a tenth unless the table says so.
    assert len(split_rows(rows, "val", 500)) == 6


def test_a_split_column_decides(folder):
    rows = _rows(folder, [f"{i}.png" for i in range(6)], ["train", "val", "", "test", "validation", "train"])
    assert [row.texts.id for row in split_rows(rows, "train", 9)] == ["0", "2", "5"]
    assert [row.texts.id for row in split_rows(rows, "val", 9)] == ["1", "4"]
    assert [row.texts.id for row in split_rows(rows, "val", 1)] == ["1"]
    with pytest.raises(ConfigError, match="split"):
        split_rows(_rows(folder, ["a.png", "b.png"], ["train", "train"]), "train", 1)


def test_a_table_that_cannot_be_divided_says_so(folder):
    with pytest.raises(ConfigError, match="cannot be divided"):
        split_rows(_rows(folder, ["a.png", "a.png"]), "train", 1)
