"""``python -m ivedit.edit clip.mp4 "make the red circle blue"``: edit a video (or a picture) with a trained editor.

Writes the edited clip and a side-by-side, at the source's size, frame rate and length, with its sound. What the
backbone needs done to the clip (another size, windows) is done, undone and said. Heavy imports happen after the
arguments are checked, so that a mistake is answered at once. Exit codes: 0 done, 1 it failed, 2 the arguments cannot
be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivedit.errors import ConfigError, IveditError

if TYPE_CHECKING:
    from torch import Tensor

    from ivedit.config.schema import TextConfig
    from ivedit.pipeline import IVEditPipeline
    from ivedit.windows import Window

Progress = Callable[[Iterable[Any], int], Iterable[Any]]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPRITES, SPRITE_SIZE, SPRITE_WINDOW = "wan-sprites", (64, 64), 17
WAN_SIZE, WAN_WINDOW = (480, 832), 81
"""What the shipped backbone and Wan 2.1 draw, where the editor's own settings do not say."""

EXAMPLES = """\
examples:
  python -m ivedit.edit clip.mp4 "make the red circle blue"
      with the shipped editor; writes clip-edited.mp4 and clip-edited-side-by-side.mp4 here
  python -m ivedit.edit clip.mp4 "remove the star" --editor runs/quickstart-20260101-120000-1a2b --out new/star.mp4
      with the editor that a run of `python -m ivedit.run` has trained
  python -m ivedit.edit photo.png "turn the square into a ring"
      a picture is a clip of one frame
  python -m ivedit.edit clip.mp4 "make the background grey" --guidance 2 --seed 1
      follow the words more closely; try another seed
  python -m ivedit.edit clip.mp4 "..." --editor editor.safetensors --backbone ./Wan2.1-T2V-1.3B-Diffusers --steps 50
      on a Wan checkpoint, with an editor trained on it

The backbone draws one size (64x64 for the shipped one): a clip is scaled into it with its aspect kept and scaled back,
so fine detail of large clips is lost. Clips longer than a window are edited in windows that overlap and are
cross-faded. With equal arguments the result is the same, whatever was edited before."""


@dataclass(frozen=True)
class EditOptions:
    """How to edit; `options_for` fills it from what an editor was trained with.

    Attributes:
        steps, guidance, scheduler, shift, scale, text: of `ivedit.pipeline.IVEditPipeline`.
        seed: of the noise; equal seeds give equal results.
        size: (H, W) in which the backbone draws; turned for a portrait.
        window: frames edited at once. overlap: frames that neighbouring windows share.
        caption: of the wanted result, for editors trained with ``text.target=target_caption``.
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
    caption: str | None = None
    text: TextConfig | None = None


@dataclass(frozen=True)
class Edited:
    """What `edit_file` wrote, and what had to be done to the clip, in words."""

    edited: Path
    side_by_side: Path
    notes: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks and return the exit code."""
    given = _parser().parse_args(arguments)
    started = time.monotonic()
    try:
        out = _check(given)
        settings = editor_settings(given.editor)
        options = options_for(settings, given)
        pipeline = _load(given, settings)
        done = edit_file(pipeline, given.clip, given.instruction, out, options, progress=_bar)
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except IveditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; no file was finished", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started
    print(*done.notes, f"edited in {seconds:.0f} s: {done.edited}", f"side by side: {done.side_by_side}", sep="\n")
    return 0


def edit_file(
    pipeline: IVEditPipeline, clip: str | Path, instruction: str, out: str | Path,
    options: EditOptions | None = None, *, progress: Progress | None = None,
) -> Edited:  # fmt: skip
    """Edit a video or picture file.

    Args:
        pipeline: with a trained editor.
        clip: the source; a picture when its name ends in .png, .jpg, ...
        instruction: what to change.
        out: the edited file; the side-by-side stands next to it.
        options: see `EditOptions`.
        progress: (iterable of all denoising steps, their number) -> iterable.

    Raises:
        IveditError: a clip that cannot be read, an output that cannot be written, sizes that do not fit.
    """
    from ivedit import media
    from ivedit.windows import Letterbox

    options, clip, out = options or EditOptions(), Path(clip), Path(out)
    picture = clip.suffix.lower() in PICTURES
    times: list[Fraction] = []
    small: list[Tensor] = []  # at the backbone's size; large frames are decoded again for writing, not held
    box: Letterbox | None = None
    frames = [(Fraction(0), media.read_image(clip))] if picture else media.VideoReader(clip)
    for moment, frame in frames:
        box = box or Letterbox.fit((frame.shape[-2], frame.shape[-1]), options.size)
        times.append(moment)
        small.append(media.to_uint8(box.into(frame[None].float() / 255)[0]))
    assert box is not None  # the reader refuses a clip without frames
    result, notes = _edit(pipeline, small, instruction, options, progress)
    edited = (box.back(frame[None])[0] for piece in result for frame in piece)
    beside = out.with_name(f"{out.stem}-side-by-side{out.suffix}")
    if picture:
        _write_picture(clip, out, beside, instruction, next(edited))
    else:
        _write_video(clip, out, beside, instruction, edited, times)
    return Edited(out, beside, [f"{clip.name}: {box}", *notes])


def editor_settings(reference: str) -> dict[str, Any]:
    """The configuration that an editor was trained with, as far as its file or its run folder tells it.

    Raises IveditError when there is no such editor.
    """
    from ivedit.editor import read_editor_header, resolve_editor_file

    path = resolve_editor_file(reference)
    stored = read_editor_header(path)["extra"].get("config")
    if stored is None and (path.parent.parent / "config.yaml").is_file():
        from ivedit.runfolder import RunFolder

        stored = RunFolder(path.parent.parent).config()
    return stored or {}


def options_for(settings: Mapping[str, Any], given: argparse.Namespace | None = None) -> EditOptions:
    """Options for an editor trained with ``settings``; what the command line gives wins."""
    from ivedit.config.schema import TextConfig

    sampling, data, text = (settings.get(name) or {} for name in ("sampling", "data", "text"))
    sprites = (settings.get("backbone") or {}).get("path", SPRITES) == SPRITES
    if given is not None and given.backbone:
        sprites = given.backbone == SPRITES
    defaults = {
        "steps": sampling.get("steps", 25 if sprites else 50),
        "guidance": sampling.get("guidance", 1.0),
        "scheduler": sampling.get("scheduler", "euler"),
        "shift": sampling.get("shift"),
        "size": (data["height"], data["width"]) if data else (SPRITE_SIZE if sprites else WAN_SIZE),
        "window": SPRITE_WINDOW if sprites else WAN_WINDOW,
        # Training a gate on other pairs' words is a control of the gate; there are no other pairs here.
        "text": TextConfig(**{**text, "gate": "instruction"}),
    }
    chosen = {f.name: value for f in fields(EditOptions) if (value := getattr(given, f.name, None)) is not None}
    options = EditOptions(**{**defaults, **chosen})
    if options.text and options.text.target == "target_caption" and not options.caption:
        raise ConfigError("this editor reads a caption of the wanted result: give --caption 'a blue circle ...'")
    return options


def _edit(
    pipeline: IVEditPipeline, small: list[Tensor], instruction: str, options: EditOptions, progress: Progress | None
) -> tuple[Iterator[Tensor], list[str]]:
    """Edited frames in pieces (n, 3, h, w) in [0, 1], and what was padded or windowed."""
    import torch

    from ivedit.windows import blend, padded_length, plan_windows, window_noise

    backbone, count = pipeline.backbone, len(small)
    factor = max(backbone.spec.time_factor, 4)  # the encoder reads chunks of four frames
    length = padded_length(count, factor)
    try:
        windows = plan_windows(length, options.window, options.overlap, factor)
    except ValueError as error:
        raise ConfigError(f"--window {options.window} --overlap {options.overlap}: {error}") from error
    steps = _Steps(progress, len(windows) * options.steps)

    def edit(window: Window) -> Tensor:
        frames = torch.stack([small[min(t, count - 1)] for t in range(window.start, window.stop)])
        latents = backbone.encode_pixels((frames.float() / 255)[None].to(backbone.device))
        noise = window_noise(options.seed, window, factor, (latents.shape[1], *latents.shape[3:]))
        edited = pipeline.edit_latents(
            latents, [instruction], steps=options.steps, guidance=options.guidance, scheduler=options.scheduler,
            shift=options.shift, scale=options.scale, text=options.text, noise=noise, progress=steps,
            target_captions=[options.caption] if options.caption else None,
        )  # fmt: skip
        return backbone.decode_latents(edited)[0].cpu()

    def pieces() -> Iterator[Tensor]:
        left = count
        for piece in blend(windows, map(edit, windows), options.overlap):
            yield piece[:left]
            left -= len(piece[:left])
        steps.close()

    notes = []
    if len(windows) > 1:
        notes.append(
            f"{count} frames in {len(windows)} windows of {options.window}, neighbours cross-faded over at least "
            f"{options.overlap} frames"
        )
    if length != count:
        notes.append(f"{count} frames, padded to {length} with the last one as the VAE needs, and cut back")
    return pieces(), notes


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


def _write_video(
    clip: Path, out: Path, beside: Path, instruction: str, edited: Iterator[Tensor], times: list[Fraction]
) -> None:
    """Both films, frame by frame, while the source is decoded a second time."""
    from ivedit import media

    with media.VideoReader(clip) as reader:
        sound = clip if reader.has_audio else None
        # A steady clip gets exact times; a clip of variable rate keeps each frame's own.
        steady = all(abs(moment - i / reader.fps) < 1 / (2 * reader.fps) for i, moment in enumerate(times))
        films: list[media.VideoWriter] = []
        with contextlib.ExitStack() as stack:
            for (moment, source), frame in zip(reader, edited, strict=True):
                pictures = (frame, media.side_by_side_frame({"source": source, instruction: frame}))
                if not films:
                    for path, picture in zip((out, beside), pictures, strict=True):
                        size = (picture.shape[-2], picture.shape[-1])
                        film = media.VideoWriter(path, size, reader.fps, audio_from=sound)
                        films.append(stack.enter_context(film))
                for film, picture in zip(films, pictures, strict=True):
                    film.write(picture, None if steady else moment)


def _write_picture(clip: Path, out: Path, beside: Path, instruction: str, edited: Tensor) -> None:
    from ivedit import media

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        media.to_pil(edited).save(out)
        media.to_pil(media.side_by_side_frame({"source": media.read_image(clip), instruction: edited})).save(beside)
    except (OSError, ValueError) as error:
        raise IveditError(f"cannot write {out}: {error}") from error


# -- the command line ----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ivedit.edit", description="Edit a video, or a picture, as an instruction says.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("clip", type=Path, help="video (mp4, mov, mkv, webm, gif, ...) or picture (png, jpg, webp, bmp)")
    add("instruction", help='what to change, e.g. "make the red circle blue"')
    add("--editor", default="shipped", metavar="WHERE",
        help="a run folder, a .safetensors file, or `shipped` (default): the one that comes with the package")
    add("--backbone", metavar="PATH",
        help="Wan folder or hub name (default: the one that the editor was trained on, wan-sprites for `shipped`)")
    add("--out", type=Path, metavar="FILE", help="edited file (default: <clip>-edited.mp4 in the current folder)")
    add("--steps", type=_number(int, 1), metavar="N", help="denoising steps (default: as the editor was evaluated)")
    add("--guidance", type=_number(float, 0), metavar="W",
        help="how strongly the words lead; 1: as trained and twice as fast (default: as the editor was evaluated)")
    add("--scheduler", choices=("euler", "unipc"), help="solver (default: as the editor was evaluated)")
    add("--scale", type=_number(float, 0), default=1.0, metavar="S",
        help="multiplies what the edit modules add; 0: the frozen backbone alone (default: 1)")
    add("--seed", type=_number(int, 0), default=0, metavar="N", help="of the noise (default: 0)")
    add("--caption", metavar="TEXT", help="of the wanted result; only for editors trained on captions")
    add("--size", type=_size, metavar="HxW", help="height x width in which the backbone draws (default: as trained)")
    add("--window", type=_number(int, 1), metavar="N",
        help="frames edited at once, 1 + a multiple of 4 (default: 17 for wan-sprites, else 81)")
    add("--overlap", type=_number(int, 1), default=5, metavar="N",
        help="frames that neighbouring windows share and cross-fade, 1 + a multiple of 4 (default: 5)")
    add("--device", default="auto", metavar="NAME", help="auto (default: a GPU where there is one), cpu, cuda, cuda:1")
    return parser  # fmt: skip


def _number(kind: Callable[[str], Any], least: float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is not None and least <= value < float("inf"):
            return value
        word = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {word} of at least {least}")

    return read


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) >= 16 and int(width) >= 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a height x width of at least 16x16, e.g. 480x832")
    return int(height), int(width)


def _check(given: argparse.Namespace) -> Path:
    """Everything that can be known before anything is loaded; returns the output file."""
    problems = [] if given.instruction.strip() else ['the instruction is empty: say "make the red circle blue"']
    if not given.clip.is_file():
        problems.append(f"{given.clip} " + ("is not a file" if given.clip.exists() else "does not exist"))
    suffixes = PICTURES if given.clip.suffix.lower() in PICTURES else (".mp4",)
    out: Path = given.out or Path(f"{given.clip.stem}-edited{suffixes[0]}")
    if out.suffix.lower() not in suffixes:
        problems.append(f"--out {out}: the edited file is a {suffixes[0]} file")
    if out.resolve() == given.clip.resolve():
        problems.append(f"--out {out} would overwrite the source")
    place = next(folder for folder in out.resolve().parents if folder.exists())
    if out.is_dir() or not (place.is_dir() and os.access(place, os.W_OK)):
        problems.append(f"--out {out} cannot be written in {place}")
    for name in ("window", "overlap"):
        value = getattr(given, name)
        if value is not None and (value - 1) % 4:
            problems.append(f"--{name} {value} is not 1 + a multiple of 4, e.g. {1 + (value - 1) // 4 * 4}")
    if problems:
        raise ConfigError(problems)
    return out


def _load(given: argparse.Namespace, settings: Mapping[str, Any]) -> IVEditPipeline:
    """The backbone and the editor, with their warnings as plain lines."""
    import torch

    from ivedit.pipeline import IVEditPipeline

    folder = given.backbone or (settings.get("backbone") or {}).get("path") or SPRITES
    device = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        pipeline = IVEditPipeline.from_pretrained(folder, editor=given.editor, device=device)
    for warning in caught:
        if "ivedit" in warning.filename or "editor" in str(warning.message):
            print(f"warning: {warning.message}", file=sys.stderr)
    return pipeline


def _bar(steps: Iterable[Any], total: int) -> Iterable[Any]:
    """A progress bar on a terminal; nothing in a log."""
    from tqdm import tqdm

    return tqdm(steps, total=total, desc="editing", unit="step", disable=None, leave=False)


if __name__ == "__main__":
    sys.exit(main())
