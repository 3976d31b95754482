"""``python -m ivedit.edit clip.mp4 "make the red circle blue"``: edit a video, a folder of frames or a picture.

Writes the edited clip and a side-by-side, at the source's size, frame rate and length, with its sound. What the
backbone needs done to the clip (another size, windows) is done, undone and said. Heavy imports happen after the
arguments are checked, so that a mistake is answered at once. Exit codes: 0 done, 1 it failed, 2 the arguments cannot
be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivedit.config.command_line import refuse
from ivedit.config.editor_file import read_editor_header, resolve_editor_file
from ivedit.errors import ConfigError, IveditError
from ivedit.filetypes import edited_suffixes, frame_files, output_problems
from ivedit.registry import import_plugins
from ivedit.runfolder import RunFolder, is_run_folder

if TYPE_CHECKING:
    from ivedit.editing import Clip, EditOptions
    from ivedit.pipeline import IVEditPipeline

__all__ = ["main"]

OPTIONS = (
    "backbone", "steps", "guidance", "scheduler", "scale", "seed", "caption", "size", "window", "overlap", "fps",
    "compile",
)  # fmt: skip
"""Arguments that `ivedit.editing.options_for` takes."""

EXAMPLES = """\
examples:
  python -m ivedit.edit clip.mp4 "make the red circle blue"
      with the shipped editor; writes clip-edited.mp4 and clip-edited-side-by-side.mp4 here
  python -m ivedit.edit clip.mp4 "remove the star" --editor runs/quickstart-20260101-120000-1a2b --out new/star.mp4
      with the editor that a run of `python -m ivedit.run` has trained
  python -m ivedit.edit photo.png "turn the square into a ring"
      a picture is a clip of one frame
  python -m ivedit.edit DAVIS/JPEGImages/480p/bear "make the bear white" --fps 24 --out white-bear
      a folder of frames, as 00000.jpg, 00001.jpg, ...; the edited ones get the same names (--out a.mp4: a film)
  python -m ivedit.edit clip.mp4 "make the background grey" --guidance 2 --seed 1
      follow the words more closely; try another seed
  python -m ivedit.edit clip.mp4 "..." --editor editor.safetensors --backbone ./Wan2.1-T2V-1.3B-Diffusers --steps 50
      on a Wan checkpoint, with an editor trained on it
  python -m ivedit.edit clip.mp4 "..." --editor USER/NAME --fps 16 --offload
      an editor from the hub, on a card too small for text encoder and transformer at once (docs/export.md)

The backbone draws one size (64x64 for the shipped one): a clip is scaled into it with its aspect kept and scaled back,
so fine detail of large clips is lost. Clips longer than a window are edited in windows that overlap and are
cross-faded. With equal arguments the result is the same, whatever was edited before."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks and return the exit code."""
    given = _parser().parse_args(arguments)
    started = time.monotonic()
    try:
        out = _check(given)
        editor = resolve_editor_file(given.editor)
        read_editor_header(editor)
        if is_run_folder(given.editor):  # its variant may be one of a plugin, as when it was trained
            import_plugins(RunFolder(given.editor).config().get("plugins") or ())
        from ivedit.editing import Clip, edit_file, editor_settings, options_for

        settings = editor_settings(editor)
        options = options_for(settings, {name: getattr(given, name) for name in OPTIONS})
        clip = Clip(given.clip, options.fps)  # a bad file is told before a large backbone is loaded
        with _short_of_memory(given, editor, _folder(given, settings), options, clip):
            pipeline = _load(given, editor, _folder(given, settings))
            done = edit_file(pipeline, clip, given.instruction, out, options, progress=_bar)
    except ConfigError as error:
        return refuse(error)
    except IveditError as error:
        from ivedit.planning.shortage import MemoryShortage

        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, MemoryShortage):
            print(error.advice(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; no file was finished", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started
    print(*done.notes, f"edited in {seconds:.0f} s: {done.edited}", sep="\n")
    print(f"side by side: {done.side_by_side}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ivedit.edit", description="Edit a video, a folder of frames or a picture by an instruction.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("clip", type=Path,
        help="video (mp4, mov, mkv, webm, gif, ...), picture (png, jpg, webp, bmp) or folder of frames")
    add("instruction", help='what to change, e.g. "make the red circle blue"')
    add("--editor", default="shipped", metavar="WHERE",
        help="a run folder, an exported folder or its hub name (USER/NAME), a .safetensors file, or `shipped` "
        "(default): the one that comes with the package")
    add("--backbone", metavar="PATH",
        help="Wan folder or hub name (default: the one that the editor was trained on, wan-sprites for `shipped`)")
    add("--out", type=Path, metavar="FILE",
        help="edited file (default: <clip>-edited.mp4 in the current folder); for a folder of frames also a folder, a "
        "name without an end such as .mp4, which gets the edited frames")
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
    add("--fps", type=_rate, metavar="N",
        help="edit and write at N frames per second, leaving frames out (Wan 2.1 draws 16, Wan 2.2 5B 24; default: "
        "every frame, at the clip's own rate); of a folder of frames: their rate, all are used (default: 16)")
    add("--compile", choices=("auto", "on", "off"), help="compile the backbone first (default: auto, a large one on a "
        "GPU where the steps are so many that it pays)")
    add("--offload", action="store_true",
        help="keep text encoder, transformer and VAE on the GPU only while each is used: less memory, some seconds "
        "more")
    add("--vae-tiling", action="store_true",
        help="VAE in overlapping tiles of 256x256: much less memory for large --size, slightly other pixels")
    add("--any-weights", action="store_true",
        help="also use an editor that was trained on a backbone of the same shapes with other weights")
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


def _rate(text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of frames per second, e.g. 16 or 24000/1001")
    return value


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) >= 16 and int(width) >= 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a height x width of at least 16x16, e.g. 480x832")
    return int(height), int(width)


def _check(given: argparse.Namespace) -> Path:
    """Everything that can be known before anything is loaded; returns the output file."""
    problems = [] if given.instruction.strip() else ['the instruction is empty: say "make the red circle blue"']
    name = given.clip.resolve().name if given.clip.is_dir() else given.clip.stem
    out: Path = given.out or Path(f"{name}-edited{edited_suffixes(given.clip)[0]}")
    try:
        if given.clip.is_dir():
            frame_files(given.clip)
        problems += [f"--out {problem}" for problem in output_problems(given.clip, out)]
    except IveditError as error:
        problems.append(str(error))
    if not given.clip.is_dir() and not given.clip.is_file():
        problems.append(f"{given.clip} " + ("is not a file" if given.clip.exists() else "does not exist"))
    for name in ("window", "overlap"):
        value = getattr(given, name)
        if value is not None and (value - 1) % 4:
            problems.append(f"--{name} {value} is not 1 + a multiple of 4, e.g. {1 + (value - 1) // 4 * 4}")
    if problems:
        raise ConfigError(problems)
    return out


def _folder(given: argparse.Namespace, settings: Mapping[str, Any]) -> str:
    """The backbone: the one asked for, else the one that the editor was trained on."""
    return str(given.backbone or (settings.get("backbone") or {}).get("path") or "wan-sprites")


def _short_of_memory(
    given: argparse.Namespace, editor: Path, folder: str, options: EditOptions, clip: Clip
) -> AbstractContextManager[None]:
    """Inside it, an error that GPU memory ran out says what to change here, and what each change saves."""
    from ivedit.config import Config
    from ivedit.planning.shortage import Sampling, shortage_told
    from ivedit.windows import padded_length

    cfg = Config()
    cfg.backbone.path = folder
    cfg.data.height, cfg.data.width = options.size
    cfg.evaluation.frames = min(options.window, padded_length(len(clip), 4))
    cfg.sampling.guidance, cfg.sampling.steps = options.guidance, options.steps
    if options.text is not None:
        cfg.text = options.text
    changes = {"frames": "--window {}", "size": "--size {}x{}"}
    others = [("--device cpu", "in the computer's memory, much slower")]
    if not given.vae_tiling:
        others.insert(0, ("--vae-tiling", "where it is the VAE that cannot hold a frame; slightly other pixels"))
    if not given.offload:
        changes["encoders"] = "--offload"
    where = f"editing {cfg.evaluation.frames} frames of {cfg.data.height}x{cfg.data.width} at once"
    sampling = Sampling(where, changes, tuple(others), editor=editor, clips=1, overlap=options.overlap)
    return shortage_told(cfg, sampling)


def _load(given: argparse.Namespace, editor: Path, folder: str) -> IVEditPipeline:
    """The backbone and the editor, with their warnings as plain lines."""
    import torch

    from ivedit.pipeline import IVEditPipeline

    device = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        pipeline = IVEditPipeline.from_pretrained(
            folder, editor=editor, device=device, offload=given.offload, vae_tiling=given.vae_tiling,
            any_weights=given.any_weights,
        )  # fmt: skip
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
