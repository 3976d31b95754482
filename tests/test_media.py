"""Video and pictures in and out: sizes, colours, times, sound and rotation survive; bad files are named."""

import math
import os
from fractions import Fraction

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivedit.errors import IveditError
from ivedit.media import (
    VideoReader,
    VideoWriter,
    enlarge,
    film_strip,
    from_pil,
    read_image,
    read_video,
    side_by_side,
    to_pil,
    write_video,
)

av = pytest.importorskip("av")


def moving(frames=12, height=48, width=64):
    """(T, 3, H, W) uint8: four coloured quarters over which a white bar walks."""
    clip = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
    for i, colour in enumerate(([220, 10, 10], [10, 200, 30], [20, 30, 210], [240, 200, 20])):
        rows = slice(None, height // 2) if i < 2 else slice(height // 2, None)
        columns = slice(None, width // 2) if i % 2 else slice(width // 2, None)
        clip[:, :, rows, columns] = torch.tensor(colour, dtype=torch.uint8)[None, :, None, None]
    for t in range(frames):
        clip[t, :, :, 4 * t : 4 * t + 4] = 255
    return clip


def film_with_sound(path, codec="aac", frames=30, fps=15, seconds=2.0, size=(48, 64), lead=0.0):
    """A clip with a 440 Hz tone, made by PyAV; the sound starts ``lead`` seconds before the picture."""
    container = av.open(str(path), "w")
    video = container.add_stream("libx264", rate=fps)
    video.height, video.width, video.pix_fmt = *size, "yuv420p"
    sound = container.add_stream(codec, rate=44100, layout="mono")
    for i, frame in enumerate(moving(frames, *size)):
        picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        picture.pts, picture.time_base = round(i + lead * fps), Fraction(1, fps)
        container.mux(video.encode(picture))
    container.mux(video.encode())
    tone = (np.sin(np.arange(int(44100 * seconds)) * 2 * math.pi * 440 / 44100) * 9000).astype(np.int16)
    for start in range(0, len(tone), 1024):
        chunk = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="s16", layout="mono")
        chunk.sample_rate, chunk.pts, chunk.time_base = 44100, start, Fraction(1, 44100)
        container.mux(sound.encode(chunk))
    container.mux(sound.encode())
    container.close()
    return path


def sound_of(path):
    """(samples, start in seconds, codec name) of a file's sound."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(float)
        if frames[0].format.name.startswith("s16"):
            samples /= 32768
        return samples, float(frames[0].pts * frames[0].time_base), stream.codec_context.name


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 9), height=st.integers(16, 50), width=st.integers(16, 50),
    fps=st.sampled_from([Fraction(24), Fraction(30000, 1001), Fraction(25, 2), Fraction(1), Fraction(60)]),
)  # fmt: skip
def test_a_lossless_file_gives_back_every_pixel_whatever_the_size_and_rate(tmp_path, frames, height, width, fps):
    clip = torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8)
    video = read_video(write_video(tmp_path / "a.mp4", clip, fps, lossless=True))
    assert torch.equal(video.pixels, clip)
    assert video.fps == fps and not video.has_audio


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (720, 1280)])
def test_a_usual_file_keeps_size_and_colours(tmp_path, size):
    clip = enlarge(moving(4), 20)[..., : size[0], : size[1]] if size[0] > 100 else moving(4, *size)
    pixels = read_video(write_video(tmp_path / "a.mp4", clip, 10)).pixels
    assert pixels.shape == clip.shape
    for y, x in ((3, -3), (-3, -3), (-3, size[1] // 2 - 5)):  # flat places, far from chroma's coarser grid
        assert (pixels[2, :, y, x].int() - clip[2, :, y, x].int()).abs().max() <= 8


def test_equal_clips_give_equal_bytes(tmp_path):
    first, second = (write_video(tmp_path / name, moving(), 10).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert first == second


def test_float_pixels_are_clamped_and_rounded(tmp_path):
    clip = torch.tensor([-0.5, 0.5, 1.5]).reshape(1, 3, 1, 1).expand(2, 3, 16, 16)
    pixels = read_video(write_video(tmp_path / "a.mp4", clip, 10, lossless=True)).pixels
    assert pixels[1, :, 3, 3].tolist() == [0, 128, 255]


def test_sound_is_copied_bit_for_bit(tmp_path):
    source = film_with_sound(tmp_path / "source.mp4")
    assert read_video(source).has_audio
    write_video(tmp_path / "edited.mp4", read_video(source).pixels, 15, audio_from=source)
    (before, start_before, _), (after, start_after, codec) = sound_of(source), sound_of(tmp_path / "edited.mp4")
    assert codec == "aac" and np.array_equal(before, after)
    assert abs(start_before - start_after) < 0.03
    assert len(read_video(tmp_path / "edited.mp4").pixels) == 30


def test_a_rare_sound_codec_becomes_aac_of_the_same_length(tmp_path):
    source = film_with_sound(tmp_path / "source.mkv", codec="pcm_s16le")
    write_video(tmp_path / "edited.mp4", read_video(source).pixels, 15, audio_from=source)
    (before, *_), (after, _, codec) = sound_of(source), sound_of(tmp_path / "edited.mp4")
    assert codec == "aac" and abs(len(before) - len(after)) < 4096
    assert abs(float(np.std(after)) - float(np.std(before))) < 0.02


def test_sound_that_starts_before_the_picture_still_does(tmp_path):
    source = film_with_sound(tmp_path / "source.mp4", lead=0.4)
    write_video(tmp_path / "edited.mp4", read_video(source).pixels, 15, audio_from=source)
    with av.open(str(tmp_path / "edited.mp4")) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        lag = picture.start_time * picture.time_base - sound.start_time * sound.time_base
    assert abs(float(lag) - 0.4) < 0.05


def test_sound_stands_beside_its_pictures_in_the_file(tmp_path):
    source = film_with_sound(tmp_path / "source.mp4", frames=60, fps=15, seconds=4)
    write_video(tmp_path / "edited.mp4", read_video(source).pixels, 15, audio_from=source)
    with av.open(str(tmp_path / "edited.mp4")) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.dts is not None]
    assert len(kinds) > 100 and "audio" in kinds[:20] and "video" in kinds[-40:]


def test_a_phone_clip_comes_upright(tmp_path):
    upright = moving(3, 48, 64)
    lying = torch.rot90(upright, 1, (-2, -1))
    path = write_video(tmp_path / "a.mp4", lying, 10, lossless=True)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # the track header's display matrix: 3 x 3 numbers of 32 bits
    turned = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # a quarter turn clockwise on display
    data[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in turned)
    path.write_bytes(data)
    assert torch.equal(read_video(path).pixels, upright)


def test_frames_of_a_variable_rate_keep_their_times(tmp_path):
    times = [Fraction(0), Fraction(1, 10), Fraction(1, 2), Fraction(11, 20), Fraction(1)]
    with VideoWriter(tmp_path / "a.mp4", (48, 64), 10) as writer:
        for frame, time in zip(moving(5), times, strict=True):
            writer.write(frame, time)
    with VideoReader(tmp_path / "a.mp4") as reader:
        read = [time for time, _ in reader]
    assert all(abs(a - b) < 0.002 for a, b in zip(read, times, strict=True))


def test_reading_can_stop_early(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving(9), 10)
    assert len(read_video(path, max_frames=4).pixels) == 4


def test_bad_files_are_refused_by_name(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", moving(), 10).read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is no film " * 50)
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    film_with_sound(tmp_path / "both.mkv")
    with av.open(str(tmp_path / "both.mkv")) as source, av.open(str(tmp_path / "sound.m4a"), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    for name, reason in [
        ("missing.mp4", "does not exist"), ("empty.mp4", "is an empty file"), ("text.mp4", "cannot be read"),
        ("cut.mp4", "cannot be read"), ("sound.m4a", "has no picture"), (".", "is not a file"),
    ]:  # fmt: skip
        with pytest.raises(IveditError, match=reason) as error:
            read_video(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def test_a_clip_that_breaks_off_is_refused_and_says_where(tmp_path):
    write_video(tmp_path / "a.mp4", torch.randint(0, 256, (20, 3, 48, 64), dtype=torch.uint8), 10)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    middle = start + (len(data) - start) // 2
    data[middle : middle + 4000] = bytes(4000)
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(IveditError, match=r"is damaged after frame \d+"):
        read_video(tmp_path / "a.mp4")


def test_an_unwritable_place_is_named_and_a_failed_write_leaves_no_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IveditError, match="cannot write"):
        write_video(tmp_path / "file" / "a.mp4", moving(), 10)
    with pytest.raises(ValueError, match="does not fit"), VideoWriter(tmp_path / "b.mp4", (48, 64), 10) as writer:
        writer.write(moving()[0])
        writer.write(moving(1, 20, 20)[0])
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_fills_up_while_a_clip_is_written_is_told_in_plain_words(tmp_path):
    (tmp_path / "a.mp4").symlink_to("/dev/full")
    with pytest.raises(IveditError, match=r"cannot write .*a\.mp4: No space left on device"):
        write_video(tmp_path / "a.mp4", moving(), 10)
    assert not (tmp_path / "a.mp4").is_symlink()


def test_pictures_come_upright_and_on_white(tmp_path):
    picture = PIL.Image.fromarray(moving(1)[0].permute(1, 2, 0).numpy())
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "turned.png"), torch.rot90(moving(1)[0], -1, (-2, -1)))
    PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").min() == 255
    deep = torch.arange(256, dtype=torch.int32).reshape(16, 16) * 257 + 100  # of 65535
    PIL.Image.fromarray(deep.clamp_max(65535).numpy().astype("uint16")).save(tmp_path / "deep.png")
    assert torch.equal(read_image(tmp_path / "deep.png"), (deep // 257).to(torch.uint8).expand(3, 16, 16))
    assert torch.equal(from_pil(to_pil(moving()[0])), moving()[0])
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    for name in ("bad.png", "missing.png"):
        with pytest.raises(IveditError, match=name):
            read_image(tmp_path / name)


def test_a_film_strip_shows_first_and_last_frame_of_every_row():
    clip = moving(17, 64, 64)
    strip = from_pil(film_strip({"source": clip, "edited": 255 - clip}, frames=5, title="make it negative"))
    last, first, gap = slice(-68, -4), slice(-5 * 68, -4 * 68 - 4), 68
    assert torch.equal(strip[:, last, last], 255 - clip[16])
    assert torch.equal(strip[:, last, first], 255 - clip[0])
    assert torch.equal(strip[:, -68 - gap : -4 - gap, last], clip[16])
    assert film_strip({"gate": torch.rand(1, 1, 8, 8)}).size[1] >= 96
    with pytest.raises(ValueError, match="one shape"):
        film_strip({"a": clip, "b": clip[:3]})


def test_side_by_side_puts_labels_above_equal_clips_and_has_even_sides():
    clip = moving(3, 47, 63)
    panel = side_by_side({"source": clip, "a label far too long for so small a picture": 255 - clip})
    assert panel.shape[0] == 3 and panel.shape[2] % 2 == 0 and panel.shape[3] % 2 == 0
    zoom = 256 // 47
    assert torch.equal(panel[1, :, 26 : 26 + 47 * zoom, : 63 * zoom], enlarge(clip[1], zoom))
    assert panel[:, :, :26].min() < 100  # the label's letters
