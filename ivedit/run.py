"""``python -m ivedit.run experiment=NAME key=value ...``: compose, train, evaluate, record.

Everything heavy is imported inside the functions that need it, so that ``--help``, ``--print-config``, ``--explain``
and every configuration error answer at once. Exit codes: 0 done (or stopped at ``train.max_minutes``, or pruned by a
sweep), 1 the run failed, 2 it could not start as configured, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ivedit.config import rules
from ivedit.config.command_line import refuse, show, split_options
from ivedit.config.compose import Composed, compose, to_yaml
from ivedit.config.help import OPTIONS, explain, help_text
from ivedit.errors import ConfigError, IveditError, Stopped
from ivedit.ranks import check_ranks, failure_told, find_ranks, join, leave, start, tell_failure, told_last
from ivedit.registry import import_plugins
from ivedit.sweeping.orphans import PARENT_VARIABLE, die_with_parent
from ivedit.tasks import TASKS
from ivedit.vigil import Vigil

if TYPE_CHECKING:
    import subprocess

    from ivedit.config import Config
    from ivedit.recording import Tracker
    from ivedit.runfolder import RunFolder

__all__ = ["main", "run_config"]

log = logging.getLogger("ivedit.run")

VALUES = {
    "--explain": "the name of a setting, e.g. --explain train.lr",
    "--plan-json": "a file to write, e.g. --plan-json plan.json",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks and return the exit code."""
    if PARENT_VARIABLE in os.environ:
        die_with_parent()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options, settings = split_options(given, OPTIONS, VALUES)
        if "--help" in options:
            return show(help_text())
        planned = not {"--plan", "--plan-json"}.isdisjoint(options)
        composed = compose(settings, for_reading=planned or "--explain" in options)
        if "--explain" in options:
            return show(explain(composed, options["--explain"]))
        if "--print-config" in options:
            return show(_described(composed))
        if planned:
            return _plan(composed.config, options)
    except ConfigError as error:
        return _refuse(error)
    except BrokenPipeError:  # `--help | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except IveditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return run_config(composed.config, given)


def _described(composed: Composed) -> str:
    return f"# {' < '.join(['schema', *composed.layers])}\n{to_yaml(composed.config)}"


def _plan(cfg: Config, options: Mapping[str, str]) -> int:
    """Print what the run would need; the GPU, if there is one, is neither used nor waited for."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    _import_plugins(cfg)
    from ivedit.planning.command import plan

    return show(plan(cfg, options.get("--plan", ""), options.get("--plan-json")))


def run_config(cfg: Config, arguments: Sequence[str] | None = None) -> int:
    """Run a checked configuration, keeping its record, and return the exit code.

    Args:
        cfg: The configuration.
        arguments: Of ``python -m ivedit.run``, with which rank 0 starts the others; None: it starts none.
    """
    from ivedit.meeting import open_folder

    ranks = find_ranks()
    first = ranks.rank == 0
    try:
        _import_plugins(cfg)
        check_ranks(cfg.train, ranks)
        run = open_folder(cfg, ranks)
    except ConfigError as error:
        return _refuse(error)
    except IveditError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 1
    others: list[subprocess.Popen[bytes]] = []
    if cfg.train.devices > 1 and not ranks.started_by and arguments is not None:
        others = start(arguments, cfg.train.devices, {PARENT_VARIABLE: str(os.getpid())})
    with _messages(first), run.logging_to_file() if first else contextlib.nullcontext():
        log.info("run folder: %s", run.path)
        return _recorded(cfg, run, others)


def _refuse(error: ConfigError) -> int:
    """Say what is wrong with the configuration, once a machine, and return the exit code."""
    return refuse(error) if find_ranks().local == 0 else 2


def _import_plugins(cfg: Config) -> None:
    """Import the plugins; ConfigError where they do not register a name that the configuration's check left to them."""
    import_plugins(cfg.plugins)
    if cfg.task not in rules.TASKS:
        TASKS.get(cfg.task)
    if cfg.editor.variant not in rules.VARIANTS:
        from ivedit.editor import VARIANTS

        VARIANTS.get(cfg.editor.variant)
    if cfg.data.reader not in rules.READERS:
        from ivedit.data.record import find_reader

        find_reader(cfg.data.reader)


@contextlib.contextmanager
def _messages(first: bool) -> Iterator[None]:
    """What the package says goes to stdout as plain lines; libraries' warnings go to log.txt only."""
    logger = logging.getLogger("ivedit")
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    console.setLevel(logging.INFO if first else logging.ERROR)
    before, propagated = logger.level, logger.propagate
    logger.addHandler(console)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    quiet = logging.NullHandler()
    warnings_logger = logging.getLogger("py.warnings")
    warnings_logger.addHandler(quiet)
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            warnings_logger.removeHandler(quiet)
            logger.removeHandler(console)
            logger.setLevel(before)
            logger.propagate = propagated


def _recorded(cfg: Config, run: RunFolder, others: Sequence[subprocess.Popen[bytes]] = ()) -> int:
    """Run the task; whatever happens, the run folder and the tracker end in the state that it ended in."""
    from ivedit.planning.shortage import MemoryShortage, shortage_told
    from ivedit.tracking import make_tracker

    tracker: Tracker | None = None

    def end(state: str, reason: str | None = None) -> None:
        if tracker is not None:
            tracker.finish(state, reason)
        elif _is_first():
            run.update_status(state=state, reason=reason)
        told_last(find_ranks(), state)

    vigil = Vigil(others, lambda reason: run.update_status(state="FAILED", reason=reason) if _is_first() else None)
    try:
        tracker = make_tracker(cfg, run)
        with _interrupts_as_one_exception(), vigil, shortage_told(cfg):
            join(cfg.train)
            _task(cfg)(cfg, run, tracker)
            leave()
    except KeyboardInterrupt:
        told = vigil.reason or failure_told()  # a launcher ends the other ranks when one has failed
        end("FAILED" if told else "STOPPED", told or "interrupted")
        _say_error(f"run failed: {told}" if told else f"interrupted; continue with: {_resume_command(run)}")
        return 1 if told else 130
    except Stopped as stop:
        end(stop.state, str(stop))
        if stop.state == "PRUNED":
            log.info("%s", stop)
            return 0
        if "SIG" in str(stop):  # training ends the step it is in, keeps a checkpoint and names the signal
            _say_error(f"{stop}; continue with: {_resume_command(run)}")
            return 130
        log.info("stopped: %s; continue with: %s", stop, _resume_command(run))
        return 0
    except Exception as error:
        reason = "; ".join(error.problems) if isinstance(error, ConfigError) else _one_line(error)
        if not _is_first():
            tell_failure(find_ranks(), reason)
        elif (told := vigil.reason or failure_told()) and not told.endswith(reason):
            reason = told  # this rank's own error is then only that another is gone
        if _is_first() or not isinstance(error, ConfigError):  # rank 0 says that one, in one line
            _write_traceback(run)
        end("FAILED", reason)
        _say_error(f"run failed: {reason} [run folder: {run.path}, traceback in its log.txt]")
        if isinstance(error, MemoryShortage):
            _say_error(error.advice())
        return 2 if isinstance(error, ConfigError) else 1
    end("FINISHED")
    if _is_first():
        log.info("run folder: %s", run.path)
        log.info("%s", tracker.hint())
    return 0


@contextlib.contextmanager
def _interrupts_as_one_exception() -> Iterator[None]:
    """Ctrl-C and a scheduler's SIGTERM are a KeyboardInterrupt here, also where Lightning makes an exit of it."""
    import signal

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    asking = (signal.SIGTERM, signal.SIGUSR1)  # the second is SLURM's, ahead of a time limit
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *asking)}
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in asking:
            signal.signal(number, interrupt)
    try:
        yield
    except SystemExit as leave:
        if isinstance(leave.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from leave
        raise IveditError(f"a library ended the process with exit code {leave.code}") from leave
    finally:
        with contextlib.suppress(ValueError):
            for number, handler in before.items():
                signal.signal(number, handler)


def _task(cfg: Config) -> Callable[[Config, RunFolder, Tracker], None]:
    if cfg.task in rules.TASKS:
        return _edit if cfg.task == "edit" else _pretrain
    return TASKS.get(cfg.task)


def _pretrain(cfg: Config, run: RunFolder, tracker: Tracker) -> None:
    _limit_threads(cfg)
    from ivedit.pretrain import run as pretrain
    from ivedit.quiet import no_library_bars, no_trainer_tips

    with no_library_bars(), no_trainer_tips():
        pretrain(cfg, run, tracker)


def _edit(cfg: Config, run: RunFolder, tracker: Tracker) -> None:
    """Train edit modules on image pairs and evaluate them on held-out videos."""
    _limit_threads(cfg)
    log.info("loading %s ...", cfg.backbone.path)
    from ivedit.quiet import no_collecting

    with no_collecting():
        from ivedit.backbone import Backbone
        from ivedit.backbone.loading import check_parts
        from ivedit.backbone.parts import bring, drop
        from ivedit.data.stream import pair_data
        from ivedit.editor import build_editor, check_editors, count_weights, load_editor
        from ivedit.evaluation import evaluate
        from ivedit.training import prepare_pairs, total_steps, train
        from ivedit.training.encoders import ENCODERS, Encoders

    device = _device(cfg)
    check_parts(cfg.backbone.path)  # every part, before an hour of encoding; all that is missing is fetched at once
    backbone = Backbone.load(
        cfg.backbone.path,
        dtype=cfg.backbone.dtype,
        device=device,
        text_length=cfg.text.length,
        components=(),
        gradient_checkpointing=cfg.backbone.gradient_checkpointing,
    )
    check_editors(cfg, backbone.spec)  # before an hour of encoding
    if not cfg.init_from:
        count_weights(cfg.editor, backbone.spec)
    encoders = Encoders(cfg, backbone)
    pairs = pair_data(
        cfg, encoders.encode_pixels, encoders.encode_text, encoders.fingerprint,
        device=device, multiple=backbone.spec.size_multiple,
    )  # fmt: skip
    prepare_pairs(cfg, pairs)
    encoders.release()
    # Ranks that share one copy cut it from the host's: each of them takes its part to its GPU.
    bring(backbone, "transformer", device="cpu" if cfg.train.strategy == "fsdp" else device)
    if cfg.init_from:
        editor = load_editor(cfg.init_from, backbone, map_location=device, warn=log.warning)
    else:
        editor = build_editor(cfg.editor, backbone, seed=cfg.seed)
    _announce(cfg, editor, device, pairs.training_pairs, total_steps(cfg, pairs.batches_per_epoch))
    outcome = train(cfg, backbone, editor, pairs, run, tracker)
    leave()  # what follows is rank 0's alone
    if outcome.stopped_early:
        raise Stopped(outcome.stopped_early)
    if not _is_first():
        return
    log.info("trained %d steps in %.0f s; trained modules: %s", outcome.steps, outcome.seconds, outcome.editor_file)
    if cfg.evaluation.enabled:
        if backbone.sharding is not None:  # rank 0 needs all of it, and the training's memory is free again
            backbone.sharding = None
            drop(backbone, "transformer")
        bring(backbone, "transformer", *ENCODERS)
        rows = {cfg.name: load_editor(outcome.editor_file, backbone, map_location=device)}
        for row, place in cfg.evaluation.editors.items():
            rows[row] = load_editor(place, backbone, map_location=device, warn=log.warning)
        log.info("evaluating on %d held-out sprite clips ...", cfg.evaluation.clips)
        evaluate(cfg, backbone, rows, run, tracker)
        table = run.path / "results.md"
        if table.is_file():
            log.info("\n%s", table.read_text(encoding="utf-8"))
        if cfg.judge.backend != "none":
            _judge(cfg, run, tracker, device)


def _judge(cfg: Config, run: RunFolder, tracker: Tracker, device: str) -> None:
    """Measure and judge the edits that the evaluation has kept, as ``python -m ivedit.evaluate`` does."""
    from ivedit.evaluation.manifest import read_manifest
    from ivedit.judge.finish import TABLE, finish_evaluation

    finish_evaluation(cfg, read_manifest([run.path / "edits"]), run, tracker, device)
    log.info("\n%s", (run.path / TABLE).read_text(encoding="utf-8"))


def _announce(cfg: Config, editor: Any, device: str, pairs: int, steps: int) -> None:
    t = cfg.train
    log.info(
        "training %s: %s weights, %s pairs, %d steps of %d pairs, on %s",
        cfg.editor.variant,
        f"{sum(weight.numel() for weight in editor.parameters()):,}",
        f"{pairs:,}",
        steps,
        t.batch_size * t.devices * t.nodes * t.accumulate,
        device,
    )


def _limit_threads(cfg: Config) -> None:
    if cfg.train.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(cfg.train.threads)
        import torch

        torch.set_num_threads(cfg.train.threads)


def _device(cfg: Config) -> str:
    """The device of this process, as Lightning will choose it."""
    import torch

    if cfg.train.accelerator == "cpu" or (cfg.train.accelerator == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise IveditError("train.accelerator=cuda, but torch finds no GPU; set train.accelerator=cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def _is_first() -> bool:
    return find_ranks().rank == 0


def _resume_command(run: RunFolder) -> str:
    task = run.config().get("task")
    if task in TASKS and "again" in TASKS.info(str(task)):
        return str(TASKS.info(str(task))["again"](run.path))
    return f"python -m ivedit.run resume={shlex.quote(str(run.path))}"


def _say_error(text: str) -> None:
    if _is_first():  # what it says holds for all ranks
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)


def _write_traceback(run: RunFolder) -> None:
    if not _is_first():  # only rank 0 writes the folder; the launcher shows the others' stderr
        traceback.print_exc()
        return
    with open(run.path / "log.txt", "a", encoding="utf-8") as file:
        traceback.print_exc(file=file)


def _one_line(error: BaseException) -> str:
    first = (str(error).strip() or repr(error)).splitlines()[0]
    return first if isinstance(error, IveditError) else f"{type(error).__name__}: {first}"


if __name__ == "__main__":
    sys.exit(main())
