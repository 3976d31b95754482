"""Videos and pictures in and out: decode, encode with the source's sound, film strips, side-by-side panels.

Video goes through PyAV, imported where it is needed: machines that only train do without it. Frames are upright
(a phone's rotation is applied), colours are converted with the matrix that the file names, and what is written names
its own, because players guess differently for small and large pictures. One encoder thread makes equal input give
byte-identical files.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ivedit.errors import IveditError

if TYPE_CHECKING:
    import PIL.Image

_BT601, _BT709 = 5, 1  # ffmpeg's numbers of the two RGB-to-YUV matrices, as PyAV's reformatter takes them
_COPIED_AUDIO = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")
"""Codecs that players expect inside mp4; any other sound is encoded anew as AAC."""
_CAPTION = 26  # pixels of a panel's label


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    import av

    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise IveditError(f"{what}: {error.strerror}") from error


class Video(NamedTuple):
    """A decoded clip: pixels (T, 3, H, W) uint8, frames per second, and whether the file has sound."""

    pixels: Tensor
    fps: Fraction
    has_audio: bool


def can_write_video() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def read_video(path: str | Path, max_frames: int | None = None) -> Video:
    """Decode a whole clip, or its first ``max_frames`` frames.

    Raises IveditError, with the file's name, when it is missing, is no video, is empty or is damaged.
    """
    with VideoReader(path) as reader:
        frames = [frame for _, frame in itertools.islice(reader, max_frames)]
        return Video(torch.stack(frames), reader.fps, reader.has_audio)


class VideoReader:
    """Iterate over a clip's frames without holding them: (time in seconds from the first frame, (3, H, W) uint8)."""

    def __init__(self, path: str | Path) -> None:
        import av

        self.path = Path(path)
        if not self.path.is_file():
            raise IveditError(f"{path} does not exist" if not self.path.exists() else f"{path} is not a file")
        if self.path.stat().st_size == 0:
            raise IveditError(f"{path} is an empty file")
        with _told(f"{path} cannot be read as a video"):
            self._container = av.open(str(self.path))
        if not self._container.streams.video:
            self._container.close()
            raise IveditError(f"{path} has no picture, only sound or text")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.fps = Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.has_audio = bool(self._container.streams.audio)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[tuple[Fraction, Tensor]]:
        import av

        count, first = 0, None
        try:
            self._container.seek(0)
            for frame in self._container.decode(self._stream):
                if frame.pts is None or frame.time_base is None:
                    time = count / self.fps
                else:
                    time = Fraction(frame.pts * frame.time_base)
                first = time if first is None else first
                count += 1
                yield time - first, _upright(frame)
        except av.error.FFmpegError as error:
            raise IveditError(f"{self.path} is damaged after frame {count}: {error.strerror}") from error
        if count == 0:
            raise IveditError(f"{self.path} has no frames")


def _upright(frame: Any) -> Tensor:
    """(3, H, W) uint8 RGB of a decoded frame, turned as its display matrix says."""
    named = int(frame.colorspace)
    matrix = named if named in (1, 4, 5, 7, 9) else (_BT709 if frame.height >= 720 else _BT601)
    array = frame.to_ndarray(format="rgb24", src_colorspace=matrix, dst_colorspace=matrix)
    turned = torch.from_numpy(array)
    if frame.rotation:  # counterclockwise degrees, as torch.rot90 turns too
        turned = torch.rot90(turned, round(frame.rotation / 90), (0, 1))
    return turned.permute(2, 0, 1).contiguous()


class VideoWriter:
    """Write frames one by one to an mp4 (H.264), with the sound of ``audio_from`` beside them.

    Args:
        path: The file; its folder is made.
        size: (H, W). Even sizes become yuv420p, which every player knows; odd ones yuv444p, which keeps the size.
        fps: Frames per second, for frames without a time of their own.
        audio_from: A file whose first sound track is copied (or, in rare codecs, encoded as AAC).
        lossless: RGB without loss (libx264rgb, qp 0), for tests and further processing; few players show it.
        quality: x264's crf: lower is better and larger; 14 is visually clean.
    """

    def __init__(
        self, path: str | Path, size: tuple[int, int], fps: Fraction | int | float, *,
        audio_from: str | Path | None = None, lossless: bool = False, quality: int = 14,
    ) -> None:  # fmt: skip
        import av

        self.path, self.size = Path(path), size
        rate = Fraction(fps).limit_denominator(100000)
        if rate <= 0:
            raise ValueError(f"frames per second must be above 0, not {fps}")
        with _told(f"cannot write {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self.path), "w", format="mp4")
        stream: Any = self._container.add_stream("libx264rgb" if lossless else "libx264", rate=rate)
        stream.height, stream.width = size
        even = size[0] % 2 == 0 and size[1] % 2 == 0
        stream.pix_fmt = "rgb24" if lossless else "yuv420p" if even else "yuv444p"
        # x264's macroblock tree gives one file in a few hundred other bytes than its equals: left out.
        stream.options = {"qp": "0"} if lossless else {"crf": str(quality), "x264-params": "mbtree=0"}
        context = stream.codec_context
        context.thread_count = 1  # more threads cut the picture differently: files would differ in their bytes
        if not lossless:
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = 1
        # A fine clock, so that frames of a variable rate keep their times.
        context.time_base = Fraction(1, rate.numerator * max(1, 10000 // rate.numerator))
        self._stream, self._rate, self._lossless, self._count = stream, rate, lossless, 0
        self._last = -1
        self._sound = _Sound(audio_from, self._container) if audio_from is not None else None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.path.unlink, missing_ok=True)  # half a file would be taken for a result
            with contextlib.closing(self._sound or contextlib.ExitStack()), _told(f"cannot write {self.path}"):
                if kind is None:
                    self._container.mux(self._stream.encode())
                    if self._sound is not None:
                        self._sound.up_to(None)
                self._container.close()  # writes the index: a full disk may show only here
            if kind is None:
                stack.pop_all()

    def write(self, frame: Tensor, time: Fraction | None = None) -> None:
        """Append (3, H, W) uint8, or float in [0, 1]; ``time`` in seconds, null: the next one at ``fps``."""
        import av

        if tuple(frame.shape) != (3, *self.size):
            raise ValueError(f"a frame of shape {tuple(frame.shape)} does not fit a video of size {self.size}")
        array = to_uint8(frame).permute(1, 2, 0).contiguous().cpu().numpy()
        picture: Any = av.VideoFrame.from_ndarray(array, format="rgb24")
        if not self._lossless:
            picture = picture.reformat(format=self._stream.pix_fmt, dst_colorspace=_BT709)
        time = self._count / self._rate if time is None else time
        time += self._sound.lead if self._sound is not None else 0
        self._last = max(self._last + 1, round(time / self._stream.codec_context.time_base))
        picture.pts, picture.time_base = self._last, self._stream.codec_context.time_base
        self._count += 1
        with _told(f"cannot write {self.path}"):
            self._container.mux(self._stream.encode(picture))
            if self._sound is not None:
                self._sound.up_to(time)


class _Sound:
    """The first sound track of a file, put beside the pictures as they come (a far-away track stalls players)."""

    def __init__(self, path: str | Path, output: Any) -> None:
        import av

        self._input = av.open(str(path))
        source = self._input.streams.audio[0]
        self._copied = source.codec_context.name in _COPIED_AUDIO
        self._output = output
        if self._copied:
            self._stream = output.add_stream_from_template(source)
        else:
            layout = "mono" if source.codec_context.layout.nb_channels == 1 else "stereo"
            self._stream = output.add_stream("aac", rate=source.codec_context.sample_rate, layout=layout)
        # Sound keeps its lead or lag; the few milliseconds before 0 that codecs need to warm up are no lead.
        pictures, sound = (_start(streams) for streams in (self._input.streams.video, [source]))
        self.lead = pictures - sound if pictures - sound > Fraction(1, 20) else Fraction(0)
        self._start = pictures - self.lead
        self._items = self._input.demux(source) if self._copied else self._input.decode(source)
        self._next = next(self._items, None)

    def up_to(self, time: Fraction | None) -> None:
        """Write the sound that starts before ``time`` (null: all that is left)."""
        while self._next is not None:
            item: Any = self._next
            if item.pts is not None:
                moment = item.pts * item.time_base - self._start
                if time is not None and moment > time:
                    return
                self._put(item)
            self._next = next(self._items, None)
        if time is None and not self._copied:
            self._output.mux(self._stream.encode(None))

    def _put(self, item: Any) -> None:
        shift = round(self._start / item.time_base)
        item.pts -= shift
        if self._copied:
            if item.dts is not None:
                item.dts -= shift
            item.stream = self._stream
            self._output.mux(item)
        else:
            self._output.mux(self._stream.encode(item))

    def close(self) -> None:
        self._input.close()


def _start(streams: Any) -> Fraction:
    """When the first of these streams starts, in seconds."""
    return Fraction((streams[0].start_time or 0) * streams[0].time_base) if streams else Fraction(0)


def write_video(
    path: str | Path, pixels: Tensor, fps: Fraction | int | float, audio_from: str | Path | None = None, *,
    lossless: bool = False, quality: int = 14,
) -> Path:  # fmt: skip
    """Write (T, 3, H, W) uint8, or float in [0, 1], as `VideoWriter` does. Returns the path."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
        raise ValueError(f"a video has shape (T, 3, H, W) with T > 0, not {tuple(pixels.shape)}")
    height, width = pixels.shape[-2:]
    with VideoWriter(path, (height, width), fps, audio_from=audio_from, lossless=lossless, quality=quality) as writer:
        for frame in pixels:
            writer.write(frame)
    return Path(path)


def read_image(path: str | Path) -> Tensor:
    """A picture as (3, H, W) uint8 RGB, upright, transparency on white. IveditError names a bad file."""
    import PIL.Image
    import PIL.ImageOps

    try:
        with PIL.Image.open(path) as opened:
            upright = PIL.ImageOps.exif_transpose(opened)
            if upright.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
                upright = upright.convert("I").point(lambda level: level * (1 / 257) + 0.5).convert("L")
            if upright.mode in ("RGBA", "LA", "P"):
                layer = upright.convert("RGBA")
                upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", layer.size, "white"), layer)
            return from_pil(upright.convert("RGB"))
    except FileNotFoundError:
        raise IveditError(f"{path} does not exist") from None
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise IveditError(f"{path} cannot be read as a picture: {error}") from error


def from_pil(image: PIL.Image.Image) -> Tensor:
    """(3, H, W) uint8 of an RGB picture."""
    import numpy as np

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def to_pil(frame: Tensor) -> PIL.Image.Image:
    """A PIL picture of (3, H, W) uint8, or float in [0, 1]."""
    import PIL.Image

    return PIL.Image.fromarray(to_uint8(frame).permute(1, 2, 0).contiguous().cpu().numpy())


def to_uint8(pixels: Tensor) -> Tensor:
    """Float in [0, 1] rounded to uint8 (values outside are clamped); uint8 as it is."""
    return pixels if pixels.dtype == torch.uint8 else (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)


def film_strip(
    rows: Mapping[str, Tensor], frames: int = 8, *, title: str | None = None, cell: int = 96
) -> PIL.Image.Image:
    """Rows of frames over time, each row a labelled clip, e.g. source | edit | truth from top to bottom.

    Args:
        rows: {label: (T, 3, H, W), or (T, 1, H, W) for maps}, uint8 or float in [0, 1], all of one T, H, W.
        frames: Frames to show, spread evenly from the first to the last; their numbers stand above.
        title: A line above all, such as the instruction.
        cell: Small frames are enlarged by a whole factor to about this height, without smoothing.
    """
    import PIL.Image
    import PIL.ImageDraw

    clips = {label: pixels.expand(-1, 3, -1, -1) for label, pixels in rows.items()}
    shapes = {tuple(pixels.shape) for pixels in clips.values()}
    if len(shapes) != 1 or not next(iter(shapes))[0]:
        raise ValueError(f"the rows of a film strip have one shape (T, 3, H, W), not {sorted(shapes)}")
    length, _, height, width = next(iter(shapes))
    shown = sorted({round(i * (length - 1) / max(1, frames - 1)) for i in range(min(frames, length))})
    zoom, gap, font, bold = max(1, cell // height), 4, _font(13), _font(15)
    left = max(int(font.getlength(label)) for label in clips) + 3 * gap
    top = 22 + (26 if title else 0)
    size = (
        max(left + len(shown) * (width * zoom + gap), int(bold.getlength(title or "")) + 2 * gap),
        top + len(clips) * (height * zoom + gap),
    )
    sheet = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    if title:
        draw.text((gap, gap), title, fill="black", font=bold)
    for column, number in enumerate(shown):
        x = left + column * (width * zoom + gap)
        draw.text((x + width * zoom / 2, top - 4), str(number), fill="#666666", font=font, anchor="ms")
        for row, pixels in enumerate(clips.values()):
            sheet.paste(to_pil(enlarge(pixels[number], zoom)), (x, top + row * (height * zoom + gap)))
    for row, label in enumerate(clips):
        middle = top + row * (height * zoom + gap) + height * zoom / 2
        draw.text((left - 2 * gap, middle), label, fill="black", font=font, anchor="rm")
    return sheet


def side_by_side(clips: Mapping[str, Tensor]) -> Tensor:
    """Clips {label: (T, 3, H, W)} of equal shape beside each other under their labels: (T, 3, H', W') uint8."""
    lengths = {len(pixels) for pixels in clips.values()}
    if len(lengths) != 1:
        raise ValueError(f"clips side by side have one length, not {sorted(lengths)}")
    frames = ({label: pixels[t] for label, pixels in clips.items()} for t in range(lengths.pop()))
    return torch.stack([side_by_side_frame(frame) for frame in frames])


def side_by_side_frame(frames: Mapping[str, Tensor]) -> Tensor:
    """One frame of `side_by_side`: {label: (3, H, W)} to (3, H', W') uint8, H' and W' even."""
    height = next(iter(frames.values())).shape[-2]
    zoom, gap = max(1, 256 // height), 4
    columns: list[Tensor] = []
    for label, frame in frames.items():
        picture = enlarge(to_uint8(frame).cpu(), zoom)
        columns += [torch.cat([_caption(label, picture.shape[-1]), picture], dim=1)]
        columns += [torch.full((3, picture.shape[-2] + _CAPTION, gap), 255, dtype=torch.uint8)]
    whole = torch.cat(columns[:-1], dim=2)
    pad = (0, whole.shape[2] % 2, 0, whole.shape[1] % 2)
    return torch.nn.functional.pad(whole, pad, value=255)


def enlarge(frame: Tensor, factor: int) -> Tensor:
    """(..., H, W) with every pixel repeated ``factor`` times both ways."""
    return frame.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


@functools.lru_cache(maxsize=16)
def _caption(text: str, width: int) -> Tensor:
    """(3, 26, width) uint8: a white bar with the text, cut short with dots where it does not fit."""
    import PIL.Image
    import PIL.ImageDraw

    font, shown = _font(15), text
    while shown and font.getlength(shown) > width - 8:
        shown = shown.rstrip(".")[:-1].rstrip() + "..." if len(shown) > 4 else ""
    bar = PIL.Image.new("RGB", (width, _CAPTION), "white")
    PIL.ImageDraw.Draw(bar).text((4, _CAPTION / 2), shown, fill="black", font=font, anchor="lm")
    return from_pil(bar)


def _font(size: int) -> Any:
    import PIL.ImageFont

    return PIL.ImageFont.load_default(size)
