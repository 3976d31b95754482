import numpy as np
import pytest
import torch
from PIL import Image

from ivedit.data.pixels import BadShare, load_replaced, read_chunks
from ivedit.data.record import BadRecord, build_reader
from ivedit.errors import ConfigError, IveditError


def _reader(photos, split="train", **data):
    return build_reader(photos.config(**data), split)


def test_real_photographs_become_pairs_of_the_configured_size(photos):
    reader = _reader(photos)
    assert len(reader) == 11 and len(build_reader(photos.config(), "val")) == 1
    record = reader.read(0)
    assert record.source.shape == record.target.shape == (3, 32, 48)
    assert record.source.min() >= 0 and record.source.max() <= 1
    assert torch.equal(record.source, (record.source * 255).round() / 255)
    assert torch.equal(record.target[0], record.target[2]) and not torch.equal(record.source[0], record.source[2])
    batch = reader.load_batch([3, 0])
    assert batch.indices == [3, 0] and batch.bad == []
    assert torch.equal(batch.source[1].float() / 255, record.source)


def test_one_of_several_instructions_is_drawn_per_epoch_and_stays_so(photos):
    photos.rows[0]["instruction"] = ["grey", "make it grey", "without colour"]
    reader = _reader(photos)
    index = [reader.texts([i])[0].id for i in range(len(reader))].index("p0")
    drawn = [reader.read(index, epoch).instruction for epoch in range(20)]
    assert set(drawn) == {"grey", "make it grey", "without colour"}
    assert drawn == [reader.read(index, epoch).instruction for epoch in range(20)]
    assert reader.read(index).alternatives == ("grey", "make it grey", "without colour")


def test_pairs_of_unequal_size_are_refused_or_resized_as_configured(photos):
    target = photos.root / photos.rows[4]["target"]
    Image.open(target).resize((48, 32)).save(target)
    reader = _reader(photos)
    index = [words.id for words in reader.texts(range(len(reader)))].index("p4")
    with pytest.raises(BadRecord, match=r"64x96 but target is 32x48 .height x width.*data\.unequal_size=resize"):
        reader.read(index)
    resized = _reader(photos, unequal_size="resize").read(index)
    assert (resized.source - resized.target).abs().mean() < 0.2


def test_a_mask_of_another_size_costs_training_nothing_and_is_refused_or_scaled_where_it_is_read(photos):
    Image.fromarray(np.full((10, 10), 255, np.uint8)).save(photos.root / "m.png")
    for row in photos.rows:
        row["mask"] = "m.png"
    reader = _reader(photos)
    assert not reader.load_batch(range(len(reader))).bad
    with pytest.raises(BadRecord, match=r"source is 64x96 but mask is 10x10 \(height x width\).*unequal_size=resize"):
        reader.read(0)
    assert _reader(photos, unequal_size="resize").read(0).mask.all()


def test_masks_follow_their_image(photos):
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 48:] = 255
    Image.fromarray(mask).save(photos.root / "m.png")
    for row in photos.rows:
        row["mask"] = "m.png"
    record = _reader(photos).read(0)
    assert record.mask.shape == (1, 32, 48)
    assert torch.equal(record.mask[0, 5], (torch.arange(48) >= 24).float())
    flipped = _reader(photos, flip=1.0).read(0)
    assert torch.equal(flipped.mask, record.mask.flip(-1)) and torch.equal(flipped.source, record.source.flip(-1))
    assert torch.equal(flipped.target, record.target.flip(-1))


def test_pairs_whose_words_name_a_side_are_never_mirrored(photos):
    for row in photos.rows:
        row["instruction"] = "make the left half grey"
    plain, flipping = _reader(photos), _reader(photos, flip=1.0)
    for epoch in range(5):
        assert torch.equal(plain.read(2, epoch).source, flipping.read(2, epoch).source)


def test_validation_pairs_are_not_mirrored(photos):
    assert build_reader(photos.config(flip=1.0), "val").flip == 0


def test_every_kind_of_broken_pair_is_skipped_by_name_and_replaced_by_the_next(photos):
    reader = _reader(photos)
    paths = [(row.source, row.target) for row in reader.rows]
    jpeg = paths[1][0].read_bytes()
    paths[1][0].write_bytes(jpeg[: len(jpeg) // 2])
    paths[2][1].unlink()
    paths[3][0].write_text("no image")
    batch = reader.load_batch(range(6))
    assert batch.indices == [0, 4, 5]
    assert [index for index, _ in batch.bad] == [1, 2, 3]
    text = "\n".join(str(problem) for _, problem in batch.bad)
    for part in ("damaged", "No such file", "not an image", paths[2][1].name):
        assert part in text
    replaced = load_replaced(reader, [1, 5, 3])
    assert replaced.indices == [4, 5, 4]
    assert torch.equal(replaced.source[0], batch.source[1])
    assert sorted(index for index, _ in replaced.bad) == [1, 2, 3]


def test_a_row_without_words_or_image_is_a_broken_pair(photos):
    photos.rows[0]["instruction"] = None
    photos.rows[1]["target"] = ""
    reader = _reader(photos)
    bad = dict(reader.load_batch(range(len(reader))).bad)
    assert {str(problem) for problem in bad.values()} == {
        "p0: has no instruction", "p1 (target): the table names no target image",
    }


def test_the_run_stops_when_too_many_pairs_are_broken(caplog):
    guard = BadShare(total=200, share=0.01, split="train")
    guard.note(range(10), [(3, BadRecord("p3 (a.png)", "is empty"))])
    guard.note(range(10), [(3, BadRecord("p3 (a.png)", "is empty"))])
    guard.note([11], [(12, BadRecord("p12 (b.png)", "is damaged"))])
    message = r"3 of 13 train pairs read \(200 in all\).*bad_share=0.01.*p3 \(a.png\): is empty.*to 0.02 or more"
    with pytest.raises(IveditError, match=message):
        guard.note([], [(13, BadRecord("p13 (c.png)", "is damaged"))])
    assert [record.message for record in caplog.records].count("skipped train pair p3 (a.png): is empty") == 1


@pytest.mark.parametrize(("total", "broken", "enough"), [(50, 1, 0.02), (50, 2, 0.04), (100, 29, 0.29), (7, 1, 0.15)])
def test_the_share_that_the_error_names_is_enough(total, broken, enough):
    bad = [(i, BadRecord(f"p{i}", "is empty")) for i in range(broken)]
    with pytest.raises(IveditError, match=rf"to {enough:g} or more"):
        BadShare(total, 0.01, "val").note(range(total), bad)
    BadShare(total, enough, "val").note(range(total), bad)


def test_a_share_of_one_bears_everything_but_nothing_readable(photos):
    reader = _reader(photos)
    for row in reader.rows:
        row.source.write_bytes(b"")
    BadShare(len(reader), 1.0, "train").note([], reader.load_batch(range(len(reader))).bad)
    with pytest.raises(IveditError, match="no readable pair"):
        load_replaced(reader, [0])


def test_loader_processes_give_the_same_pairs_in_the_same_order(photos):
    reader = _reader(photos)
    reader.rows[4].source.unlink()
    chunks = [[0, 1], [4, 2], [5, 6], [7, 3]]
    alone = list(read_chunks(reader, chunks, replace=True))
    together = list(read_chunks(reader, chunks, workers=2, replace=True))
    assert [batch.indices for batch in together] == [batch.indices for batch in alone]
    assert all(torch.equal(a.source, b.source) and torch.equal(a.target, b.target)
               for a, b in zip(alone, together, strict=True))
    assert str(together[1].bad[0][1]) == str(alone[1].bad[0][1])


def test_an_error_in_a_loader_process_arrives_as_one_plain_line(photos):
    reader = _reader(photos)
    for row in reader.rows:
        row.source.unlink()
    with pytest.raises(IveditError) as caught:
        list(read_chunks(reader, [[0], [1]], workers=1, replace=True))
    assert "Traceback" not in str(caught.value)


def test_the_fingerprint_follows_words_files_and_transform(photos):
    first = _reader(photos).fingerprint()
    assert first == _reader(photos).fingerprint()
    assert first != _reader(photos, height=64).fingerprint()
    assert first != _reader(photos, unequal_size="resize").fingerprint()
    photos.rows[0]["instruction"] = "make it greyer"
    changed = _reader(photos).fingerprint()
    assert changed != first
    path = photos.root / photos.rows[0]["source"]
    path.write_bytes(path.read_bytes())
    assert _reader(photos).fingerprint() != changed


def test_a_missing_path_is_a_plain_error(config):
    with pytest.raises(ConfigError, match=r"data\.path"):
        build_reader(config(reader="folder"), "train")


def test_an_unknown_reader_names_the_nearest(config):
    with pytest.raises(ConfigError, match="did you mean folder"):
        build_reader(config(reader="foldr"), "train")


def test_several_rows_may_show_one_pair_of_images(photos, encoders):
    from ivedit.data.datamodule import PairDataModule

    for row in photos.rows[1:6]:
        row["source"], row["target"] = photos.rows[0]["source"], photos.rows[0]["target"]
    cfg = photos.config()
    module = PairDataModule(cfg, encoders.encode_pixels, encoders.encode_text, "x")
    reader = module.reader("train")
    for batch in module.train_dataloader():
        for name, source in zip(batch["ids"], batch["source"], strict=True):
            index = [words.id for words in reader.texts(range(len(reader)))].index(name)
            expected = encoders.encode_pixels(reader.read(index).source[None, None])[0]
            assert torch.equal(source, expected)
