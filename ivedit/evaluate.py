"""``python -m ivedit.evaluate SOURCE...``: a table from anyone's edited videos, or from trained editors.

A source is a folder of finished edits with a ``manifest.jsonl``, a run folder, or an editor's file; several stand in
one table. Everything that can be wrong with the files is told before anything is scored. Judge-free metrics always;
with ``judge.backend`` a vision-language model scores the edits too, and ``--anchors`` says whether to believe it.
Exit codes: 0 done, 1 it failed (a refused judge's table among it), 2 the arguments or files cannot be used, 130
interrupted; what a judge answered is kept, and the command that is then named goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivedit.config.command_line import refuse
from ivedit.config.compose import compose_layers
from ivedit.config.layers import Layer, argument_layer
from ivedit.errors import ConfigError, IveditError, or_nearest
from ivedit.runfolder import is_run_folder

if TYPE_CHECKING:
    from ivedit.config import Config
    from ivedit.evaluation.manifest import Manifest
    from ivedit.recording import Tracker
    from ivedit.runfolder import RunFolder

__all__ = ["main"]

SETTINGS = ("evaluation", "judge", "sampling", "tracking", "name", "output_dir", "plugins")
"""Groups and settings that mean something here."""

FROM_RUN = ("backbone", "text", "sampling", "evaluation", "plugins")

EXAMPLES = """\
examples:
  python -m ivedit.evaluate my_edits
      a folder with manifest.jsonl and the files that it names: one table in runs/evaluation-.../evaluation.md
  python -m ivedit.evaluate ours theirs --sources clips --fit
      two methods' folders; sources lie in clips/, and are cut and scaled to the edits
  python -m ivedit.evaluate runs/imvideoedit-20261122-101500-1a2b evaluation.clips=90
      a trained editor: edits held-out sprite clips, then the same table
  python -m ivedit.evaluate ours theirs --set openve=OpenVE-Bench
      outputs named by the ids of an evaluation set (openve, ivebench, five, davis)
  python -m ivedit.evaluate --judge qwen.yaml --anchors
      is this judge to be believed? writes anchors.json
  python -m ivedit.evaluate my_edits --judge qwen.yaml judge.anchors=runs/evaluation-.../anchors.json --dry-run
      how many calls, images and tokens it would take; nobody is asked
  python -m ivedit.evaluate my_edits judge.backend=http judge.base_url=http://127.0.0.1:8000/v1 judge.model=NAME
      with a judge that a server offers; a key comes from the environment variable that judge.key_env names
  python -m ivedit.evaluate my_edits judge.backend=replay judge.path=judge.jsonl judge.model=NAME
      score a stored record again: nobody is asked, the same numbers come out

The manifest, the sets and the table are described in docs/evaluation.md, the judge in docs/judge.md, settings in
docs/cli.md (or `python -m ivedit.run --help`). An interrupted or failed judgement goes on with the same command and
--record FILE."""


@dataclass(frozen=True)
class Sources:
    """What is to be evaluated, sorted.

    Attributes:
        finished: Folders of finished edits.
        editors: {row name: editor file or run folder} to make edits with.
    """

    finished: list[Path]
    editors: dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = _parser().parse_intermixed_args(words)
    try:
        places, settings = _split(given.source)
        sources = _sort(places, given)
        cfg = _configure(given, sources, settings)
        if not places and not given.anchors:
            raise ConfigError("nothing to evaluate: name a folder of finished edits, a run folder or an editor file")
        if given.anchors and cfg.judge.backend in ("none", "replay"):
            raise ConfigError("--anchors asks a judge: give --judge FILE, or judge.backend=http or local")
        if given.out and is_run_folder(given.out):
            raise ConfigError(
                f"--out {given.out} holds a run already; name another folder. What a judge answered there is found "
                f"with --record {given.out}/artifacts/judge.jsonl"
            )
        _plugins(cfg)
        manifest = _read(given, sources) if sources.finished else None
        if given.dry_run:
            return _dry_run(cfg, given, manifest)
    except ConfigError as error:
        return refuse(error)
    except IveditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return _run(cfg, given, sources, manifest, words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ivedit.evaluate", description="Score edited videos: one table, with intervals.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("source", nargs="*", metavar="SOURCE or key=value",
        help="folder of finished edits, run folder, .safetensors file or `shipped`; and settings "
        "(evaluation.*, judge.*, sampling.*, tracking.*, name, output_dir, plugins)")
    add("--sources", type=Path, metavar="FOLDER", help="where the manifests' source, truth and mask files lie "
        "(default: in each manifest's own folder)")
    add("--set", metavar="NAME=PATH", help="no manifests: SOURCE folders hold <id>.mp4 (or .png, or <id>/) for every "
        "clip of this evaluation set: openve, ivebench, five or davis")
    add("--fit", action="store_true", help="cut and scale sources, truths and masks to the edits, in place of refusing")
    add("--judge", type=Path, metavar="FILE", help="YAML with settings of the section judge")
    add("--anchors", action="store_true", help="first judge clips with known faults, to see whether to believe the "
        "judge; without SOURCE nothing else")
    add("--anchors-from", metavar="CLIPS", default="sprites", help="what to make them from: sprites (default), the "
        "clips with mask and true edit of a manifest's folder, or davis=PATH")
    add("--record", type=Path, metavar="FILE", help="keep the judge's replies here and find them again "
        "(default: artifacts/judge.jsonl in the output folder); the same as judge.record")
    add("--dry-run", action="store_true", help="check everything, say what the judge would cost, and stop")
    add("--out", type=Path, metavar="FOLDER", help="output folder (default: a new one in output_dir, runs/)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where metrics and editors run")
    return parser


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sources apart from ``key=value``."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    return [word for word in words if word not in settings], settings


def _sort(places: Sequence[str], given: argparse.Namespace) -> Sources:
    finished: list[Path] = []
    editors: dict[str, str] = {}
    problems: list[str] = []
    for place in places:
        path = Path(place).expanduser()
        run = (path / "status.json").is_file() and (path / "config.yaml").is_file()
        if given.set or (path / "manifest.jsonl").is_file():
            finished.append(path)
        elif run and (path / "edits" / "manifest.jsonl").is_file():
            finished.append(path / "edits")
        elif run or place == "shipped" or path.suffix == ".safetensors":
            name = "shipped" if place == "shipped" else path.resolve().name if run else path.stem
            if name in editors:
                problems.append(f"{place}: another editor is called {name!r} too; copy or rename one")
            editors[name] = place
        elif not path.exists():
            problems.append(f"{place} does not exist")
        else:
            problems.append(f"{place} has no manifest.jsonl (see docs/evaluation.md), and is no run folder or editor")
    if editors and finished:
        problems.append(
            "folders of finished edits and editors that make new ones have other clips: evaluate them apart, or save "
            "the editors' edits first (evaluation.save_edits=true)"
        )
    if given.set and not places:
        problems.append("--set: name the folders that hold the edits of its clips")
    if problems:
        raise ConfigError(problems)
    return Sources(finished, editors)


def _configure(given: argparse.Namespace, sources: Sources, settings: list[str]) -> Config:
    """Schema < the first editor's own settings < the judge's file < the command line."""
    layers = []
    if sources.editors:
        layers.append(_editor_layer(next(iter(sources.editors.values()))))
    if given.judge:
        layers.append(_judge_layer(given.judge))
    typed = argument_layer(settings)
    for setting in typed.settings:
        if setting.key.partition(".")[0] not in SETTINGS:
            typed.problems.append(
                f"{setting.key}: an evaluation has no use for it ({setting.source}); "
                f"{or_nearest(setting.key.partition('.')[0], SETTINGS)}"
            )
    name = Layer("python -m ivedit.evaluate")
    name.add("name", "evaluation", "default")
    cfg = compose_layers("evaluation", [*layers, name, typed]).config
    if given.record:
        cfg.judge.record = str(given.record)
    return cfg


def _editor_layer(reference: str) -> Layer:
    """What an editor was trained with, as far as edits depend on it."""
    from ivedit.editing import editor_settings
    from ivedit.runfolder import RunFolder

    # a run's folder knows all of its configuration, an editor's file the part that training needed
    content = RunFolder(reference).config() if is_run_folder(reference) else editor_settings(reference)
    layer = Layer(reference)
    for group in FROM_RUN:
        if content.get(group) is not None:
            layer.add(group, content[group], reference)
    data = content.get("data") or {}
    for key in ("height", "width", *(("operations",) if data.get("reader", "sprites") == "sprites" else ())):
        if data.get(key) is not None:
            layer.add(f"data.{key}", data[key], reference)
    layer.add("evaluation.controls", [], reference)  # they would be judged too; asked for by name
    layer.add("evaluation.editors", {}, reference)
    return layer


def _judge_layer(path: Path) -> Layer:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--judge {path} cannot be read: {str(error).splitlines()[0]}") from error
    if isinstance(content, dict) and set(content) == {"judge"}:
        content = content["judge"]
    if not isinstance(content, dict):
        raise ConfigError(f"--judge {path} does not hold settings such as `backend: http`")
    layer = Layer(str(path))
    for key, value in content.items():
        layer.add(f"judge.{key}", value, str(path))
    return layer


def _plugins(cfg: Config) -> None:
    from ivedit.registry import import_plugins

    import_plugins(cfg.plugins)


def _read(given: argparse.Namespace, sources: Sources) -> Manifest:
    if given.set:
        from ivedit.evaluation.sets import read_outputs

        return read_outputs(given.set, sources.finished, fit=given.fit)
    from ivedit.evaluation.manifest import read_manifest

    return read_manifest(sources.finished, sources=given.sources, fit=given.fit)


def _dry_run(cfg: Config, given: argparse.Namespace, manifest: Manifest | None) -> int:
    from ivedit.judge.finish import plan

    if manifest is not None:
        clips, methods = len(manifest.clips), len(manifest.methods)
        print(f"{clips} clips of {methods} method{'s' if methods > 1 else ''}: all files are there and fit")
    elif not given.anchors:
        raise ConfigError("--dry-run counts from finished edits; these editors have made none yet")
    for line in plan(cfg, manifest, anchors=given.anchors_from if given.anchors else None):
        print(line)
    return 0


def _run(cfg: Config, given: argparse.Namespace, sources: Sources, manifest: Manifest | None, words: list[str]) -> int:
    """The evaluation as a recorded run: folder, log, states, MLflow and exit codes are those of `ivedit.run`."""
    from ivedit.run import run_config
    from ivedit.runfolder import RUN_PATH_VARIABLE
    from ivedit.tasks import register

    @register("evaluate", again=partial(_again, words, cfg))
    def evaluate(cfg: Config, run: RunFolder, tracker: Tracker) -> None:
        _evaluate(cfg, given, sources, manifest, run, tracker)

    cfg.task = "evaluate"
    before = os.environ.get(RUN_PATH_VARIABLE)
    if given.out:
        os.environ[RUN_PATH_VARIABLE] = str(given.out)
    try:
        return run_config(cfg)
    finally:
        os.environ.pop(RUN_PATH_VARIABLE, None)
        if before is not None:
            os.environ[RUN_PATH_VARIABLE] = before


def _again(words: Sequence[str], cfg: Config, folder: Path) -> str:
    """The command that goes on with what was cut off in ``folder``: in another one, with the replies kept there."""
    from ivedit.judge.finish import RECORD

    kept = [word for word in words if not word.startswith("--out=")]
    if "--out" in kept:
        place = kept.index("--out")
        del kept[place : place + 2]
    if cfg.judge.backend in ("http", "local") and not cfg.judge.record:
        kept += ["--record", str(folder / RECORD)]
    return f"python -m ivedit.evaluate {shlex.join(kept)}"


def _evaluate(
    cfg: Config, given: argparse.Namespace, sources: Sources, manifest: Manifest | None, run: RunFolder,
    tracker: Tracker,
) -> None:  # fmt: skip
    import logging

    from ivedit.evaluation.manifest import read_manifest
    from ivedit.judge.finish import finish_evaluation, prove_judge

    log = logging.getLogger("ivedit.evaluate")
    device = _device(given.device)
    tracker.log_tags({"sources": " ".join(given.source)})
    if given.anchors:
        log.info("%s", prove_judge(cfg, given.anchors_from, run, tracker))
    if sources.editors:
        _produce(cfg, sources.editors, run, device)
        manifest = read_manifest([run.path / "edits"])
    if manifest is not None:
        finish_evaluation(cfg, manifest, run, tracker, device)
        log.info("\n%s", (run.path / "evaluation.md").read_text(encoding="utf-8"))


def _produce(cfg: Config, editors: dict[str, str], run: RunFolder, device: str) -> None:
    from ivedit.backbone import Backbone
    from ivedit.editor import load_editor, resolve_editor_file
    from ivedit.evaluation.producing import produce_edits
    from ivedit.planning.shortage import Sampling, shortage_told

    files = {name: resolve_editor_file(place) for name, place in editors.items()}
    sampling = Sampling(
        f"editing {cfg.evaluation.batch_size} clips at once",
        {"clips": "evaluation.batch_size={}", "frames": "evaluation.frames={}"},
        (("--device cpu", "in the computer's memory, much slower"),),
        editor=next(iter(files.values())),
    )
    with shortage_told(cfg, sampling):
        backbone = Backbone.load(
            cfg.backbone.path, dtype=cfg.backbone.dtype, device=device, text_length=cfg.text.length
        )
        loaded = {name: load_editor(file, backbone, map_location=device) for name, file in files.items()}
        produce_edits(cfg, backbone, loaded, run.path / "edits")


def _device(wanted: str) -> str:
    import torch

    found: Any = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise ConfigError("--device cuda, but torch finds no GPU; use --device cpu")
    return "cuda" if found and wanted != "cpu" else "cpu"


if __name__ == "__main__":
    sys.exit(main())
