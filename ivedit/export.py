"""``python -m ivedit.export RUN OUT``: a trained editor as a folder that others can use; on the hub when asked to.

Writes weights as safetensors, the settings that it was made with, a model card from the run's own record, and sample
pictures. Nothing leaves the machine without ``--push``. Heavy imports happen after the arguments are checked. Exit
codes: 0 done, 1 it failed, 2 the arguments cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivedit.config.command_line import refuse
from ivedit.config.rules import no_editor
from ivedit.errors import ConfigError, IveditError

if TYPE_CHECKING:
    from torch import Tensor

    from ivedit.exporting.record import Record

__all__ = ["main"]

EXAMPLES = """\
examples:
  python -m ivedit.export runs/imvideoedit-20261122-101500-1a2b my-editor
      my-editor/: editor.safetensors, config.yaml, README.md (the card), samples/
  python -m ivedit.export runs/imvideoedit-20261122-101500-1a2b my-editor --dtype bfloat16
      half the size; how much a velocity changes is measured and stands on the card
  python -m ivedit.export RUN my-editor --push USER/NAME --private --dry-run
      what an upload would send; nothing is sent
  python -m ivedit.export RUN my-editor --push USER/NAME --private --license apache-2.0
      upload it, with the login of `hf auth login` or HF_TOKEN

Load it with IVEditPipeline.from_pretrained(BACKBONE, editor="my-editor" or "USER/NAME"), or --editor of ivedit.edit.
Paths of this machine, user names and passwords are taken out of what is written (docs/export.md)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks and return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        _check(given)
        return _export(given)
    except ConfigError as error:
        return refuse(error)
    except IveditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ivedit.export", description="Make a trained editor a folder that others can use.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder of a finished training, an editor's .safetensors file, or `shipped`")
    add("out", metavar="OUT", type=Path, help="new folder, or an earlier export, which is replaced")
    add("--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the stored weights; bfloat16 halves them and measures what that changes (default: float32)")
    add("--backbone", metavar="PATH", help="folder or hub name of the backbone, to measure with (default: the run's)")
    add("--unmeasured", action="store_true", help="with bfloat16: do not load the backbone; the card says so")
    add("--base-model", metavar="USER/NAME", help="the backbone's name on the hub, where the run knows a folder only")
    add("--license", metavar="ID", help="of the weights, e.g. apache-2.0, cc-by-nc-4.0 (default: apache-2.0 for "
        "editors trained on sprites, none for others)")
    add("--samples", action=argparse.BooleanOptionalAction, help="take the run's film strips along (default: only "
        "those of sprites; others may show what is not yours to show)")
    add("--shard-size", type=_gigabytes, default=5.0, metavar="GB", help="largest file of weights (default: 5)")
    add("--push", metavar="USER/NAME", help="upload to this model repository, which is made if there is none")
    add("--private", action="store_true", help="with --push: make it a private one")
    add("--dry-run", action="store_true", help="with --push: write the folder and say what would be sent; send nothing")
    return parser  # fmt: skip


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0001 <= value < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of gigabytes, e.g. 5")
    return value


def _check(given: argparse.Namespace) -> None:
    """Everything that can be known before anything is loaded."""
    problems = []
    if given.run != "shipped" and not Path(given.run).expanduser().exists():
        problems.append(f"{given.run} does not exist; give a run folder, an editor's .safetensors file, or `shipped`")
    else:
        problems += no_editor(given.run)
    for option, name in (("--push", given.push), ("--base-model", given.base_model)):
        if name is not None and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
            problems.append(f"{option} {name!r} is not a name on the hub: USER/NAME")
    for option, wanted in (("--private", given.private), ("--dry-run", given.dry_run)):
        if wanted and not given.push:
            problems.append(f"{option} says how to --push USER/NAME, which is not given")
    if given.license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", given.license):
        problems.append(f"--license {given.license!r} is not an identifier of the hub, e.g. apache-2.0, mit, other")
    if given.dtype == "float32" and (given.unmeasured or given.backbone):
        problems.append("--unmeasured and --backbone are for --dtype bfloat16: float32 changes nothing")
    if problems:
        raise ConfigError(problems)


def _export(given: argparse.Namespace) -> int:
    from ivedit.editor import read_editor_weights
    from ivedit.exporting import Wishes, export_editor, plan_upload, push
    from ivedit.exporting.folder import check_place
    from ivedit.exporting.record import read_run

    check_place(given.out)
    record = read_run(given.run)
    weights = read_editor_weights(record.file)
    difference = None
    if given.dtype == "bfloat16" and not given.unmeasured:
        difference = _measure(record, weights, given.backbone)
    wishes = Wishes(
        dtype=given.dtype, max_bytes=int(given.shard_size * 1e9), base_model=given.base_model, license=given.license,
        samples=given.samples, hub=given.push,
    )  # fmt: skip
    exported = export_editor(record, given.out, wishes, difference=difference, weights=weights)
    print(f"exported to {exported.folder}: {', '.join(exported.files)}")
    if difference is not None:
        print(f"bfloat16 moves a velocity by {difference['relative']:.3%} of its length")
    if exported.license is None:
        print("the card states no licence: give --license ID")
    if record.base_model(given.base_model) is None and record.backbone != "wan-sprites":
        print("the card does not name the backbone on the hub: give --base-model USER/NAME")
    if given.push:
        upload = plan_upload(exported, given.push, private=given.private)
        print(upload)
        print("nothing was sent (--dry-run)" if given.dry_run else f"uploaded: {push(upload)}")
    return 0


def _measure(record: Record, weights: Mapping[str, Tensor], backbone_path: str | None) -> dict[str, Any]:
    """What bfloat16 changes, on the backbone that the editor was trained on."""
    import torch

    from ivedit.backbone import Backbone
    from ivedit.editor import load_editor
    from ivedit.exporting.difference import velocity_difference

    path = backbone_path or record.backbone
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        backbone = Backbone.load(path, dtype="float32", device=device, components=("transformer",))
        load_editor(record.file, backbone, refuse_other_weights=True)
    except IveditError as error:
        raise IveditError(
            f"what bfloat16 changes cannot be measured: {error}; give --backbone PATH, or --unmeasured"
        ) from error
    data = record.config.get("data") or {}
    size = (int(data.get("height", 64)), int(data.get("width", 64)))
    rounded = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    return velocity_difference(backbone, record.header["config"], weights, rounded, size)


if __name__ == "__main__":
    sys.exit(main())
