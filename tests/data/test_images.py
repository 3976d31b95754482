import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from ivedit.data import images
from ivedit.data.record import BadRecord, PairTexts

from .conftest import photograph


def test_a_photograph_keeps_its_pixels_at_its_own_size(tmp_path):
    photo = photograph("chelsea")
    photo.save(tmp_path / "katze.png")
    read = images.read_image(tmp_path / "katze.png", "k")
    assert images.fit(read, photo.height, photo.width) is read
    assert np.array_equal(images.to_tensor(read).permute(1, 2, 0).numpy(), np.asarray(photo))


def test_fitting_covers_and_cuts_the_centre():
    # A wide image of three vertical bands: only the middle one is left in a square.
    bands = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    wide = Image.fromarray(bands.repeat(20, 0).repeat(20, 1))
    square = np.asarray(images.fit(wide, 10, 10))
    assert square.shape == (10, 10, 3)
    assert (square[:, 2:-2] == [0, 255, 0]).all()  # the filter reaches over the edge by a pixel
    tall = images.fit(photograph("astronaut").crop((0, 0, 100, 300)), 32, 64)
    assert tall.size == (64, 32)


def test_a_mask_is_cut_like_its_image_and_stays_binary():
    mask = np.zeros((60, 120), np.uint8)
    mask[:, 60:] = 255
    fitted = images.fit_mask(Image.fromarray(mask), 30, 30)
    assert fitted.shape == (1, 30, 30)
    assert torch.equal(fitted[0, 0], (torch.arange(30) >= 15).float())


def test_exif_orientation_is_applied(tmp_path):
    photo = photograph("coffee").resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be shown turned by 90 degrees
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(images.read_image(tmp_path / "a.png", "a")), np.asarray(photo))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_colour_mode_becomes_three_channels_of_8_bits(tmp_path, mode):
    photo = photograph("rocket").resize((48, 32))
    if mode == "I;16":
        grey = np.asarray(photo.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(grey)
    else:
        image = photo.convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    image.save(tmp_path / f"a.{suffix}")
    read = images.read_image(tmp_path / f"a.{suffix}", "a")
    assert read.mode == "RGB" and read.size == (48, 32)
    if mode == "I;16":
        assert np.array_equal(np.asarray(read)[..., 0], np.asarray(photo.convert("L")))
    if mode in ("LA", "RGBA"):
        reference = photo.convert("L").convert("RGB") if mode == "LA" else photo
        assert np.array_equal(np.asarray(read), np.asarray(reference))


def test_transparency_is_shown_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "a.png")
    assert (np.asarray(images.read_image(tmp_path / "a.png", "a")) == 255).all()


def _truncated_jpeg() -> bytes:
    buffer = io.BytesIO()
    photograph("astronaut").save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def _truncated_png() -> bytes:
    buffer = io.BytesIO()
    photograph("astronaut").save(buffer, "PNG")
    return buffer.getvalue()[:5000]


def _animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _huge_header() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (9000, 8000)).save(buffer, "PNG")
    return buffer.getvalue()


def _bomb() -> bytes:
    # A real PNG whose header claims 60000 x 60000: opening it must not try to allocate that.
    data = bytearray(_truncated_png())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_truncated_jpeg, "damaged"),
        (_truncated_png, "damaged"),
        (lambda: b"id,source\n1,a.png\n", "not an image"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (lambda: b"", "empty"),
        (_animated, "animated"),
        (_huge_header, r"oversized: 8000x9000 \(height x width\)"),
        (_bomb, "oversized"),
    ],
    ids=["cut jpeg", "cut png", "text", "postscript", "empty", "animated", "oversized", "bomb"],
)
def test_files_that_are_no_usable_image_are_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "bild.jpg"
    path.write_bytes(content())
    with pytest.raises(BadRecord, match=reason) as caught:
        images.read_image(path, "p1 (bild.jpg)")
    assert caught.value.name == "p1 (bild.jpg)"


@pytest.mark.parametrize(("suffix", "orientation"), [("jpg", 1), ("jpg", 6), ("webp", 8), ("tiff", 3), ("png", 5)])
def test_a_headers_size_is_that_of_the_upright_image(tmp_path, suffix, orientation):
    path = tmp_path / f"bild.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 24), "teal").save(path, exif=exif)
    image = images.read_image(path, "n")
    assert images.image_size(path) == images.image_size(io.BytesIO(path.read_bytes())) == (image.height, image.width)


def test_a_size_that_cannot_be_told_is_none(tmp_path):
    (tmp_path / "text.png").write_text("id,source")
    os.mkfifo(tmp_path / "pipe")
    for name in ("text.png", "missing.png", "pipe", "."):
        assert images.image_size(tmp_path / name) is None
    (tmp_path / "cut.jpg").write_bytes(_truncated_jpeg())
    assert images.image_size(tmp_path / "cut.jpg") is not None  # the pixels are broken, the header is not


def test_missing_files_and_directories_are_refused_by_name(tmp_path):
    with pytest.raises(BadRecord, match="No such file"):
        images.read_image(tmp_path / "no.png", "n")
    with pytest.raises(BadRecord, match="not a file"):
        images.read_image(tmp_path, "n")
    os.mkfifo(tmp_path / "pipe")  # opening one would wait for ever
    with pytest.raises(BadRecord, match="not a file"):
        images.read_image(tmp_path / "pipe", "n")


@pytest.mark.parametrize(
    ("text", "sided"),
    [
        ("move it to the Left", True), ("the leftmost cat", True), ("a right-hand door", True),
        ("raise the left-hand side", True), ("make the brightest star red", False), ("leftover food", False),
        ("turn it upright", False),
    ],
)
def test_words_that_name_a_side_are_found(text, sided):
    assert images.names_a_side(PairTexts("a", ("nothing", text))) is sided
    assert images.names_a_side(PairTexts("a", ("nothing",), target_caption=text)) is sided


@pytest.mark.parametrize("size", [(48, 64), (100, 300), (31, 17), (600, 700)])
def test_scaling_gives_what_pillows_filter_gives(size):
    photo = photograph("astronaut").crop((3, 5, 450, 500))
    box = images._cover(photo.size, *size)
    expected = np.asarray(photo.crop(box).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    scaled = images.pixels(photo, *size)
    assert scaled.shape == (3, *size) and scaled.is_contiguous()
    assert np.abs(scaled.permute(1, 2, 0).numpy() - expected).max() <= 2
    assert np.array_equal(np.asarray(images.fit(photo, *size)), scaled.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_much_larger_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = photograph("astronaut").resize((512, 384))
    photo.save(tmp_path / "a.jpg", quality=95, exif=exif)
    whole = images.read_image(tmp_path / "a.jpg", "a")
    small = images.read_image(tmp_path / "a.jpg", "a", at_least=(96, 96))
    assert images.full_size(small) == images.full_size(whole) == whole.size
    assert small.size == (whole.width // 2, whole.height // 2)
    difference = images.pixels(small, 96, 96).float() - images.pixels(whole, 96, 96).float()
    assert difference.abs().mean() < 1 and 10 * torch.log10(255**2 / difference.square().mean()) > 45
    # Not far enough above the wanted size, or not a whole multiple: decoded whole.
    assert images.read_image(tmp_path / "a.jpg", "a", at_least=(97, 140)).size == whole.size
    photo.crop((0, 0, 511, 383)).save(tmp_path / "b.jpg")
    assert images.read_image(tmp_path / "b.jpg", "b", at_least=(96, 96)).size == (511, 383)
