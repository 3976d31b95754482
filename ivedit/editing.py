"""Edit a video, a folder of frames or a picture of any size and length with the one sampler, in bounded memory.

Frames are decoded as the windows come to them and written as soon as no later window can touch them, so memory depends
on the window and the picture, not on the length of the clip. `ivedit.pipeline.IVEditPipeline.edit_video` and
``python -m ivedit.edit`` are thin callers of `edit_file`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ivedit import media
from ivedit.backbone import Backbone
from ivedit.backbone.compiled import sampling_compiles
from ivedit.config.buckets import drawing_size, size_name
from ivedit.config.schema import TextConfig
from ivedit.editor import read_editor_header, resolve_editor_file
from ivedit.errors import ConfigError, IveditError
from ivedit.filetypes import PICTURES, frame_files, output_problems, writes_frames
from ivedit.runfolder import RunFolder
from ivedit.windows import Cut, Letterbox, Window, blend, padded_length, plan_windows, window_noise

__all__ = ["Clip", "EditOptions", "Edited", "edit_file", "editor_settings", "options_for"]

Progress = Callable[[Iterable[Any], int], Iterable[Any]]

SPRITES, SPRITE_SIZE, SPRITE_WINDOW = "wan-sprites", (64, 64), 17
COMPILED_FROM = 300  # steps of one size: compiling pays from some hundred on
FRAMES_RATE = 16  # per second, of a folder of frames: what Wan 2.1 draws
WAN_SIZE, WAN_WINDOW = (480, 832), 81
"""What the shipped backbone and Wan 2.1 draw, where the editor's own settings do not say."""


class Sampler(Protocol):
    """What of `ivedit.pipeline.IVEditPipeline` is needed here."""

    backbone: Backbone

    @property
    def edit_latents(self) -> Callable[..., Tensor]:
        """(B, Z, F, h, w) latents, B instructions, settings -> latents."""


@dataclass(frozen=True)
class EditOptions:
    """How to edit; `options_for` fills it from what an editor was trained with.

    Attributes:
        steps, guidance, scheduler, shift, scale, text: of `ivedit.pipeline.IVEditPipeline`.
        seed: of the noise; equal seeds give equal results.
        size: (H, W) in which the backbone draws; turned for a portrait.
        window: frames edited at once. overlap: frames that neighbouring windows share.
        fps: frames per second at which the clip is edited and written; None: every frame, at the clip's own rate. A
            folder of frames has none: this is its rate, or 16.
        caption: of the wanted result, for editors trained with ``text.target=target_caption``.
        side_by_side: also write source and result beside each other.
        compile: the backbone's blocks: on, off, or auto: a large one on a GPU, from 300 steps in all windows on.
    """

    steps: int = 25
    guidance: float = 1.0
    scheduler: str = "euler"
    shift: float | None = None
    seed: int = 0
    scale: float = 1.0
    size: tuple[int, int] = (64, 64)
    window: int = 17
    overlap: int = 5
    fps: Fraction | int | float | None = None
    caption: str | None = None
    text: TextConfig | None = None
    side_by_side: bool = True
    compile: str = "auto"


@dataclass(frozen=True)
class Edited:
    """What `edit_file` wrote, a file or a folder of frames (``side_by_side`` None: not asked for), and what it did to
    the clip, in words.
    """

    edited: Path
    side_by_side: Path | None
    notes: list[str]


def editor_settings(reference: str | Path) -> dict[str, Any]:
    """The configuration that an editor was trained with, as far as its file or its run folder tells it.

    Raises IveditError when there is no such editor.
    """
    path = resolve_editor_file(reference)
    stored = read_editor_header(path)["extra"].get("config")
    if stored is None and (path.parent.parent / "config.yaml").is_file():
        stored = RunFolder(path.parent.parent).config()
    return stored or {}


def options_for(settings: Mapping[str, Any], chosen: Mapping[str, Any] | None = None, **more: Any) -> EditOptions:
    """Options for an editor trained with ``settings``.

    Args:
        settings: from `editor_settings`.
        chosen: fields of `EditOptions` that win over them where they are not None, and ``backbone``: the folder that
            is used in place of the one that the editor was trained on.
        more: the same, by name.

    Raises:
        ConfigError: the editor reads a caption and none is given.
        TypeError: a name that `EditOptions` does not have.
    """
    given = {name: value for name, value in {**(chosen or {}), **more}.items() if value is not None}
    sampling, data, text = (settings.get(name) or {} for name in ("sampling", "data", "text"))
    sprites = given.pop("backbone", (settings.get("backbone") or {}).get("path", SPRITES)) == SPRITES
    defaults = {
        "steps": sampling.get("steps", 25 if sprites else 50),
        "guidance": sampling.get("guidance", 1.0),
        "scheduler": sampling.get("scheduler", "euler"),
        "shift": sampling.get("shift"),
        "size": SPRITE_SIZE if sprites else WAN_SIZE,
        "window": SPRITE_WINDOW if sprites else WAN_WINDOW,
        # Training a gate on other pairs' words is a control of the gate; there are no other pairs here.
        "text": TextConfig(**{**text, "gate": "instruction"}),
    }
    if data:
        defaults["size"] = drawing_size(data["height"], data["width"], data.get("buckets") or ())
    options = EditOptions(**{**defaults, **given})
    if options.text and options.text.target == "target_caption" and not options.caption:
        raise ConfigError("this editor reads a caption of the wanted result: give --caption 'a blue circle ...'")
    return options


def edit_file(
    pipeline: Sampler, clip: str | Path | Clip, instruction: str, out: str | Path,
    options: EditOptions | None = None, *, progress: Progress | None = None,
) -> Edited:  # fmt: skip
    """Edit a video or picture file, or a folder of frames.

    Args:
        pipeline: with a trained editor.
        clip: the source; a picture when its name ends in .png, .jpg, ... A `Clip` has chosen its frames already.
        instruction: what to change.
        out: the edited file; the side-by-side stands next to it. For a folder of frames also a folder, which gets the
            edited frames under their names.
        options: see `EditOptions`.
        progress: (iterable of all denoising steps, their number) -> iterable.

    Raises:
        IveditError: a clip that cannot be read, an output that cannot be written.
        ConfigError: an output that is no file for this source, or is the source; a size that the backbone cannot draw.
    """
    options, out = options or EditOptions(), Path(out)
    source = clip if isinstance(clip, Clip) else Clip(clip, options.fps)
    if problems := output_problems(source.path, out):
        raise ConfigError(problems)
    if (near := pipeline.backbone.spec.nearest_size(options.size)) != tuple(options.size):
        asked = size_name(options.size)
        raise ConfigError(f"--size {asked}: the nearest that the backbone can draw is {size_name(near)}")
    box = Letterbox.fit(source.size, options.size)
    result, notes = _edit(pipeline, source, box, instruction, options, progress)
    edited = (box.back(frame[None])[0] for frame in result)
    out = out if out.name else out.resolve()  # "." has no name
    end = f"{out.name}-side-by-side.mp4" if writes_frames(source.path, out) else f"{out.stem}-side-by-side{out.suffix}"
    beside = out.with_name(end) if options.side_by_side else None
    _write(source, out, beside, instruction, edited)
    return Edited(out, beside, [f"{source.path.name or source.path.resolve().name}: {box}", *source.notes, *notes])


class Clip:
    """A video, folder of frames or picture on disk, decoded once to know its times and size, then again for its frames.

    Making one tells whether it can be used, before a large backbone is loaded.

    Args:
        path: a video, a folder of numbered pictures, or a picture.
        fps: frames per second that are used; None: every frame. Of a folder: the rate of its frames, all of which are
            used.

    Attributes:
        times: seconds from the first frame, of the frames that are used. size: (H, W). fps: of what is written.
        steady: whether the times are those of a constant rate. notes: what was left out or taken for granted, in words.
        frames: the pictures of a folder, in order, or the one picture; of a video none.

    Raises:
        IveditError: a file that is missing, damaged, empty, or no picture; frames of several sizes.
        ConfigError: a rate above the clip's own, or none above 0.
    """

    def __init__(self, path: str | Path, fps: Fraction | int | float | None = None) -> None:
        if fps is not None and not fps > 0:
            raise ConfigError(f"--fps {fps}: frames per second are above 0, e.g. 16")
        self.path = path = Path(path)
        self.picture = path.suffix.lower() in PICTURES and not path.is_dir()
        self.frames = [path] if self.picture else frame_files(path) if path.is_dir() else []
        self.notes: list[str] = []
        self.has_audio, self.fps = False, Fraction(1)
        self.times: list[Fraction] = []
        self._chosen: list[int] | None = None  # None: every frame
        if self.frames:
            self._measure(fps)
            return
        with media.VideoReader(path) as reader:
            self.fps, self.has_audio = reader.fps, reader.has_audio
            for moment, frame in reader:
                if not self.times:
                    self.size = (frame.shape[-2], frame.shape[-1])
                self.times.append(moment)
        # A steady clip gets exact times; a clip of variable rate keeps each frame's own.
        self.steady = all(abs(moment - i / self.fps) < 1 / (2 * self.fps) for i, moment in enumerate(self.times))
        if fps is not None:
            self._choose(Fraction(fps).limit_denominator(1001))

    def _measure(self, fps: Fraction | int | float | None) -> None:
        """Size and times of pictures, which have no times of their own."""
        self.steady, self.fps = True, Fraction(FRAMES_RATE if fps is None else fps).limit_denominator(1001)
        for number, file in enumerate(self.frames):
            frame = media.read_image(file)
            size = (frame.shape[-2], frame.shape[-1])
            if number == 0:
                self.size = size
            elif size != self.size:
                raise IveditError(
                    f"{file} is {size_name(size)} (height x width), but {self.frames[0].name} is "
                    f"{size_name(self.size)}: the frames of a clip have one size"
                )
            self.times.append(number / self.fps)
        if fps is None and len(self.frames) > 1:
            rate = f"{FRAMES_RATE} per second, as Wan 2.1 draws; --fps gives another"
            self.notes.append(f"{len(self.frames)} frames without a rate of their own, taken as {rate}")

    def _choose(self, fps: Fraction) -> None:
        """Take the frame that is shown at each multiple of 1 / fps."""
        if fps > self.fps * Fraction(1001, 1000):
            raise ConfigError(
                f"--fps {float(fps):g}: {self.path.name} has {float(self.fps):g} frames per second, and frames are "
                "left out, not made; give a lower rate or none"
            )
        end, slack = self.times[-1] + 1 / self.fps, Fraction(1, 2000)  # files round times to a clock of their own
        chosen: list[int] = []
        frame = 0
        while not chosen or len(chosen) / fps < end - slack:
            while frame + 1 < len(self.times) and self.times[frame + 1] - slack <= len(chosen) / fps:
                frame += 1
            chosen.append(frame)
        before, rate = len(self.times), self.fps
        self._chosen, self.fps, self.steady = chosen, fps, True
        self.times = [Fraction(count) / fps for count in range(len(chosen))]
        if len(chosen) != before:
            self.notes.append(
                f"{len(chosen)} of {before} frames: {float(rate):g} frames per second became {float(fps):g}"
            )

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[Tensor]:
        """The frames that are used, (3, H, W) uint8, one at a time."""
        if self.frames:
            yield from map(media.read_image, self.frames)
            return
        chosen = iter(range(len(self.times)) if self._chosen is None else self._chosen)
        wanted = next(chosen, None)
        with media.VideoReader(self.path) as reader:
            for number, (_, frame) in enumerate(reader):
                while number == wanted:
                    yield frame
                    wanted = next(chosen, None)


def _edit(
    pipeline: Sampler, source: Clip, box: Letterbox, instruction: str, options: EditOptions,
    progress: Progress | None,
) -> tuple[Iterator[Tensor], list[str]]:  # fmt: skip
    """Edited frames (3, h, w) in [0, 1], and what was padded or windowed."""
    backbone, count = pipeline.backbone, len(source)
    factor = max(backbone.spec.time_factor, 4)  # the encoder reads chunks of four frames
    length = padded_length(count, factor)
    try:
        windows = plan_windows(length, options.window, options.overlap, factor)
    except ValueError as error:
        raise ConfigError(f"--window {options.window} --overlap {options.overlap}: {error}") from error
    total = len(windows) * options.steps
    steps = _Steps(progress, total)
    compile = options.compile == "on" or (total >= COMPILED_FROM and sampling_compiles(options.compile, backbone))

    cut = Cut(source, box, windows)

    def edit(window: Window) -> Tensor:
        latents = backbone.encode_pixels(cut(window)[None].to(backbone.device).float().div_(255))
        noise = window_noise(options.seed, window, factor, (latents.shape[1], *latents.shape[3:]))
        edited = pipeline.edit_latents(
            latents, [instruction], steps=options.steps, guidance=options.guidance, scheduler=options.scheduler,
            shift=options.shift, scale=options.scale, text=options.text, noise=noise, progress=steps,
            compile=compile, notes=None if window.start else notes,  # the windows are alike: the first one tells
            target_captions=[options.caption] if options.caption else None,
        )  # fmt: skip
        return backbone.decode_latents(edited)[0].cpu()

    def frames() -> Iterator[Tensor]:
        left = count
        for piece in blend(windows, map(edit, windows), options.overlap):
            piece = piece[:left]
            left -= len(piece)
            yield from (frame.clone() for frame in piece)  # a view would hold the window while the next is edited
            del piece
        steps.close()

    notes: list[str] = []
    if len(windows) > 1:
        notes.append(
            f"{count} frames in {len(windows)} windows of {options.window}, neighbours cross-faded over at least "
            f"{options.overlap} frames"
        )
    if length != count:
        notes.append(f"{count} frames, padded to {length} with the last one as the VAE needs, and cut back")
    return frames(), notes


class _Steps:
    """One count of denoising steps over all windows, for one progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._all = iter(progress(range(total), total)) if progress else iter(range(total))

    def __call__(self, steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            yield step
            next(self._all, None)

    def close(self) -> None:
        """Let the bar see its end."""
        next(self._all, None)


def _write(source: Clip, out: Path, beside: Path | None, instruction: str, edited: Iterator[Tensor]) -> None:
    """The films or pictures, frame by frame; the source is decoded once more for the side-by-side."""
    originals: Iterable[Tensor | None] = source if beside else [None] * len(source)
    writers: list[media.VideoWriter | _Pictures] = []
    with contextlib.ExitStack() as stack:
        for moment, original, frame in zip(source.times, originals, edited, strict=True):
            pictures = [frame]
            if original is not None:
                pictures.append(media.side_by_side_frame({"source": original, instruction: frame}))
            if not writers:
                for path, picture in zip([out, *([beside] if beside else [])], pictures, strict=True):
                    writer = _writer(source, path, (picture.shape[-2], picture.shape[-1]))
                    stack.enter_context(writer)
                    writers.append(writer)
            for writer, picture in zip(writers, pictures, strict=True):
                writer.write(picture, None if source.steady else moment)


def _writer(source: Clip, path: Path, size: tuple[int, int]) -> media.VideoWriter | _Pictures:
    if source.picture:
        return _Pictures([path])
    if writes_frames(source.path, path):
        return _Pictures([path / frame.name for frame in source.frames])
    return media.VideoWriter(path, size, source.fps, audio_from=source.path if source.has_audio else None)


class _Pictures:
    """Writes frames as pictures of one folder, one after the other; all of them appear at the end, or none."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, self._made = list(paths), list[Path]()

    def __enter__(self) -> _Pictures:
        folder = self._paths[0].parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._hidden = tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder)
        except OSError as error:
            raise self._failed(error) from error
        return self

    def write(self, frame: Tensor, time: Fraction | None = None) -> None:
        """The next picture, (3, H, W) uint8 or float in [0, 1]."""
        path = Path(self._hidden.name, self._paths[len(self._made)].name)
        try:
            media.to_pil(frame).save(path, quality=95, subsampling=0)  # of JPEG and WebP; the others are lossless
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        self._made.append(path)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._hidden:
            for made, path in zip(self._made, self._paths, strict=True) if kind is None else ():
                made.replace(path)

    def _failed(self, error: Exception) -> IveditError:
        return IveditError(f"cannot write {self._paths[len(self._made)]}: {error}")
