"""`python -m ivedit.edit` on real files: size, rate, length and sound come back; mistakes are told in plain lines."""

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivedit import edit, editing
from ivedit.config import load
from ivedit.config.schema import EditorConfig
from ivedit.editing import Clip, EditOptions, edit_file, editor_settings, options_for
from ivedit.editor import build_editor, save_editor
from ivedit.errors import ConfigError
from ivedit.media import VideoReader, VideoWriter, read_image, read_video, to_pil, write_video
from ivedit.pipeline import IVEditPipeline
from ivedit.runfolder import RunFolder
from tests.backbone.tiny import save_pipeline, tiny_backbone
from tests.test_media import film_with_sound, moving, sound_of

pytest.importorskip("av")
SMALL = {"sampling": {"steps": 2, "guidance": 1.0, "shift": 3.0}, "data": {"height": 32, "width": 32}}


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def editor_file(tmp_path_factory, backbone_folder):
    from ivedit.backbone import Backbone

    backbone = Backbone.load(backbone_folder)
    editor = build_editor(EditorConfig(width=24), backbone)
    with torch.no_grad():
        for weight in editor.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    path = tmp_path_factory.mktemp("editor") / "editor.safetensors"
    return save_editor(path, editor, backbone=backbone, extra={"config": SMALL})


@pytest.fixture
def command(backbone_folder, editor_file, tmp_path, monkeypatch, capsys):
    """Run the command line in a new folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, editor=editor_file, backbone=backbone_folder):
        places = [*(["--editor", editor] if editor else []), *(["--backbone", backbone] if backbone else [])]
        try:
            code = edit.main([str(a) for a in ("--device", "cpu", *places, *arguments)])
        except SystemExit as leave:
            code = leave.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_clip_with_sound_keeps_size_rate_length_and_sound(command, tmp_path):
    source = film_with_sound(tmp_path / "clip.mp4", frames=14, size=(50, 90), seconds=1.0)
    code, out, err = command(source, "make the red circle blue")
    assert code == 0, err
    assert "clip.mp4: resized 50x90 -> 18x32 (height x width), borders to 32x32, and back" in out
    assert "14 frames, padded to 17 with the last one" in out and "window" not in out
    edited, beside = read_video(tmp_path / "clip-edited.mp4"), read_video(tmp_path / "clip-edited-side-by-side.mp4")
    original = read_video(source)
    assert edited.pixels.shape == original.pixels.shape and edited.fps == original.fps
    assert len(beside.pixels) == 14 and beside.pixels.shape[-1] > 2 * 90
    for name in ("clip-edited.mp4", "clip-edited-side-by-side.mp4"):
        assert torch.equal(*(torch.from_numpy(sound_of(path)[0]) for path in (source, tmp_path / name)))


def test_a_long_clip_is_edited_in_blended_windows_and_says_so(command, tmp_path):
    write_video(tmp_path / "clip.mp4", moving(41, 32, 32), Fraction(24))
    code, out, err = command("clip.mp4", "remove the star", "--window", 17, "--overlap", 5, "--out", "new/a.mp4")
    assert code == 0, err
    assert "kept its size" in out and "41 frames in 3 windows of 17" in out
    assert "padded" not in out and "keys and values" not in out
    assert read_video(tmp_path / "new" / "a.mp4").pixels.shape == (41, 3, 32, 32)


def test_equal_arguments_give_equal_files_and_another_seed_another_edit(command, tmp_path):
    write_video(tmp_path / "clip.mp4", moving(9, 32, 32), 10)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert command("clip.mp4", "remove the star", "--out", f"{name}.mp4", "--seed", seed)[0] == 0
    one, two, three = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert one == two != three


def test_a_picture_is_a_clip_of_one_frame(command, tmp_path):
    to_pil(moving(1, 60, 40)[0]).save(tmp_path / "photo.png")
    code, out, err = command("photo.png", "make the background grey")
    assert code == 0, err
    assert read_image(tmp_path / "photo-edited.png").shape == (3, 60, 40)
    assert (tmp_path / "photo-edited-side-by-side.png").exists() and "padded" not in out


@pytest.fixture
def bear(tmp_path):
    """A folder of nine frames, 8.png to 16.png, and what it shows."""
    clip = moving(9, 32, 24)
    (tmp_path / "bear").mkdir()
    for number, frame in enumerate(clip):
        to_pil(frame).save(tmp_path / "bear" / f"{number + 8}.png")
    return clip


def test_a_folder_of_frames_is_a_clip_and_becomes_a_film_or_frames_of_the_same_names(
    command, bear, backbone_folder, editor_file, tmp_path
):
    assert torch.equal(torch.stack(list(Clip("bear"))), bear)  # 8, 9, 10, ...
    code, out, err = command("bear/", "remove the star")
    assert code == 0, err
    assert "9 frames without a rate of their own, taken as 16 per second, as Wan 2.1 draws; --fps gives another" in out
    film = read_video(tmp_path / "bear-edited.mp4")
    assert film.fps == 16 and film.pixels.shape == bear.shape
    assert (tmp_path / "bear-edited-side-by-side.mp4").is_file()
    for _ in range(2):  # frames are written over, as a film is
        code, out, err = command("bear", "remove the star", "--out", "new/bear", "--fps", "24000/1001")
        assert code == 0 and "rate" not in out, err
    made = sorted((tmp_path / "new" / "bear").iterdir())
    assert {path.name for path in made} == {f"{number}.png" for number in range(8, 17)}
    frames = torch.stack(list(Clip("new/bear")))
    to_film, to_source = ((frames.float() - other.float()).abs().mean() for other in (film.pixels, bear))
    assert 2 * to_film < to_source  # noise, which the film's half as many colours blur
    assert read_video(tmp_path / "new" / "bear-side-by-side.mp4").fps == Fraction(24000, 1001)
    pipe = IVEditPipeline.from_pretrained(backbone_folder, editor=editor_file)
    pipe.edit_video(tmp_path / "bear", "remove the star", tmp_path / "again")
    assert torch.equal(torch.stack(list(Clip("again"))), frames)


def test_frames_that_are_not_finished_are_not_left_behind(bear, backbone_folder, editor_file, tmp_path):
    def interrupted(steps, total):
        yield from list(steps)[: total - 1]
        raise KeyboardInterrupt

    (tmp_path / "old").mkdir()
    to_pil(bear[0]).save(tmp_path / "old" / "8.png")
    before = (tmp_path / "old" / "8.png").read_bytes()
    pipe = IVEditPipeline.from_pretrained(backbone_folder, editor=editor_file)
    with pytest.raises(KeyboardInterrupt):
        pipe.edit_video(
            tmp_path / "bear", "remove the star", tmp_path / "old", progress=interrupted, window=5, overlap=1
        )
    assert [path.read_bytes() for path in (tmp_path / "old").iterdir()] == [before]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ([".", "x"], "is no folder of frames: it has bear", 2),
        (["empty", "x"], "is no folder of frames: it has no pictures", 2),
        (["sizes", "x"], "10.png is 16x24 (height x width), but 9.png is 32x24", 1),
        (["bear", "x", "--out", "bear"], "bear would overwrite the source", 2),
        (["bear", "x", "--out", "bear/new.mp4"], "would lie among the frames of the source", 2),
        (["bear", "x", "--out", "sizes"], "sizes holds something else, such as 99.png: name a new folder", 2),
        (["bear", "x", "--out", "a.avi"], "is a .mp4 file, or a folder: a name without an end", 2),
        (["bear", "x", "--out", "notes"], "notes cannot be written", 2),
    ],
)
def test_folders_that_are_no_clip_or_cannot_take_one_are_told_in_one_plain_line(
    command, bear, tmp_path, arguments, message, code
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sizes").mkdir()
    (tmp_path / "notes").write_text("a file")
    for name, frame in (("9", bear[0]), ("10", bear[0, :, :16]), ("99", bear[0])):
        to_pil(frame).save(tmp_path / "sizes" / f"{name}.png")
    before = sorted(tmp_path.rglob("*"))
    got, _, err = command(*arguments)
    assert got == code and message in err and len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_what_the_source_takes_of_the_memory_is_told_once_where_it_is_much(command, tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", moving(9, 32, 32), 10)
    windows = ("clip.mp4", "remove the star", "--window", 5, "--overlap", 1, "--steps", 1)
    monkeypatch.setattr("ivedit.editor.two_stream.WORTH_TELLING", 1)
    _, out, _ = command(*windows)
    assert out.count("the source's keys and values are kept for all steps: 0.00 GB") == 1
    monkeypatch.setattr("ivedit.editor.two_stream.free_memory", lambda device: 0)
    _, out, _ = command(*windows)
    assert out.count("do not fit beside what a step needs of 0.0 GB free") == 1


def test_a_clip_of_variable_rate_keeps_its_times(command, tmp_path):
    times = [Fraction(0), Fraction(1, 10), Fraction(1, 2), Fraction(3, 5), Fraction(1)]
    with VideoWriter(tmp_path / "clip.mp4", (32, 32), 10) as writer:
        for frame, moment in zip(moving(5, 32, 32), times, strict=True):
            writer.write(frame, moment)
    assert command("clip.mp4", "remove the star")[0] == 0
    with VideoReader(tmp_path / "clip-edited.mp4") as reader:
        assert all(abs(a - b) < 0.01 for (a, _), b in zip(reader, times, strict=True))


def test_the_edited_clip_is_what_the_pipeline_makes_of_it(backbone_folder, editor_file, tmp_path):
    from ivedit.windows import Window, window_noise

    clip = moving(9, 32, 32)
    write_video(tmp_path / "clip.mp4", clip, 10, lossless=True)
    pipeline = IVEditPipeline.from_pretrained(backbone_folder, editor=editor_file)
    to_pil(clip[0]).save(tmp_path / "frame.png")
    options = EditOptions(steps=2, size=(32, 32), seed=7)
    edit_file(pipeline, tmp_path / "frame.png", "remove the star", tmp_path / "out.png", options)
    source = pipeline.backbone.encode_pixels(clip[:1].float()[None] / 255)
    noise = window_noise(7, Window(0, 1), 4, (4, 8, 8))
    expected = pipeline.edit_latents(source, ["remove the star"], steps=2, noise=noise)
    pixels = pipeline.backbone.decode_latents(expected)[0, 0]
    assert (read_image(tmp_path / "out.png").float() / 255 - pixels).abs().max() < 1.5 / 255


def test_the_progress_counts_every_denoising_step_of_every_window(backbone_folder, editor_file, tmp_path):
    seen = []

    def progress(steps, total):
        for step in steps:
            seen.append((step, total))
            yield step

    write_video(tmp_path / "clip.mp4", moving(29, 32, 32), 10)
    pipeline = IVEditPipeline.from_pretrained(backbone_folder, editor=editor_file)
    options = EditOptions(steps=3, size=(32, 32))
    edit_file(pipeline, tmp_path / "clip.mp4", "remove the star", tmp_path / "o.mp4", options, progress=progress)
    assert seen == [(step, 6) for step in range(6)]


def test_edit_video_takes_the_editors_own_settings_and_writes_what_the_command_writes(
    command, backbone_folder, editor_file, tmp_path
):
    write_video(tmp_path / "clip.mp4", moving(9, 40, 24), 10)
    assert command("clip.mp4", "remove the star", "--scale", "0.5", "--seed", 2)[0] == 0
    pipe = IVEditPipeline.from_pretrained(backbone_folder, editor=editor_file)
    done = pipe.edit_video(tmp_path / "clip.mp4", "remove the star", tmp_path / "new" / "o.mp4", scale=0.5, seed=2)
    assert done.side_by_side is None and [path.name for path in (tmp_path / "new").iterdir()] == ["o.mp4"]
    assert done.edited.read_bytes() == (tmp_path / "clip-edited.mp4").read_bytes()
    assert done.notes == ["clip.mp4: resized 40x24 -> 32x19 (height x width), borders to 32x32, and back"]
    for out, words in (("clip.mp4", "would overwrite the source"), ("o.avi", "is a .mp4 file")):
        with pytest.raises(ConfigError, match=words):
            pipe.edit_video(tmp_path / "clip.mp4", "remove the star", tmp_path / out)
    with pytest.raises(TypeError, match="stepz"):
        pipe.edit_video(tmp_path / "clip.mp4", "remove the star", tmp_path / "p.mp4", stepz=2)


def test_a_lower_frame_rate_leaves_frames_out_and_keeps_the_length_in_time(command, tmp_path):
    source = film_with_sound(tmp_path / "clip.mp4", frames=30, fps=30, size=(32, 32), seconds=1.0)
    code, out, err = command(source, "remove the star", "--fps", "10")
    assert code == 0, err
    assert "10 of 30 frames: 30 frames per second became 10" in out
    edited = read_video(tmp_path / "clip-edited.mp4")
    assert len(edited.pixels) == 10 and edited.fps == 10 and edited.has_audio
    beside = read_video(tmp_path / "clip-edited-side-by-side.mp4").pixels
    original = read_video(source).pixels
    shown = beside[:, :, 26 : 26 + 32 * 8 : 8, : 32 * 8 : 8].float()  # the source's half, as it was enlarged
    assert (shown - original[::3].float()).abs().mean() < 12
    code, _, err = command(source, "remove the star", "--fps", "60")
    assert code == 2 and "--fps 60: clip.mp4 has 30 frames per second" in err
    assert command(source, "remove the star", "--fps", "fast")[0] == 2


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), st.sampled_from([1, 2, 5, 8, 16, 24]))
def test_the_frame_that_is_shown_at_each_moment_is_taken(gaps, fps):
    # A clip of variable rate: frame i is shown from times[i] until times[i + 1], in milliseconds.
    times = [sum(gaps[:i]) for i in range(len(gaps))]
    source = object.__new__(Clip)
    source.path, source.notes, source.fps = Path("clip.mp4"), [], Fraction(1000, max(1, sum(gaps) // len(gaps)))
    source.times = [Fraction(t, 1000) for t in times]
    if fps > source.fps:
        return
    end = source.times[-1] + 1 / source.fps
    source._choose(Fraction(fps))
    assert len(source._chosen) == len(source.times) == max(1, math.ceil((end - Fraction(1, 2000)) * fps))
    for number, frame in enumerate(source._chosen):
        moment = 1000 * Fraction(number, fps)
        assert frame == max(i for i, t in enumerate(times) if t - Fraction(1, 2) <= moment)


def test_a_long_clip_is_read_as_its_windows_need_it(backbone_folder, editor_file, tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", moving(41, 32, 32), 10)
    pipe = IVEditPipeline.from_pretrained(backbone_folder, editor=editor_file)
    shapes, encode = [], pipe.backbone.encode_pixels
    monkeypatch.setattr(pipe.backbone, "encode_pixels", lambda x: shapes.append(tuple(x.shape)) or encode(x))
    held = []

    class Watched(editing.Cut):
        def __call__(self, window):
            pixels = super().__call__(window)
            held.append(len(self.shared))
            return pixels

    monkeypatch.setattr(editing, "Cut", Watched)
    pipe.edit_video(tmp_path / "clip.mp4", "remove the star", tmp_path / "o.mp4", steps=1, window=17)
    assert shapes == [(1, 17, 3, 32, 32)] * 3 and held == [5, 5, 0]


def test_what_the_editor_was_evaluated_with_is_the_default_and_the_command_line_wins(editor_file):
    settings = editor_settings(str(editor_file))
    options = options_for(settings)
    assert (options.steps, options.shift, options.size, options.window) == (2, 3.0, (32, 32), 17)
    given = edit._parser().parse_args(["a.mp4", "b", "--steps", "7", "--guidance", "2", "--size", "48x64"])
    options = options_for(settings, {name: getattr(given, name) for name in edit.OPTIONS})
    assert (options.steps, options.guidance, options.size, options.window) == (7, 2.0, (48, 64), 17)
    wan = options_for({}, backbone="Wan")
    assert (wan.size, wan.window) == ((480, 832), 81)
    with pytest.raises(ConfigError, match="--caption"):
        options_for({"text": {"target": "target_caption"}})


@pytest.mark.parametrize(
    ("buckets", "size"),
    [([], (64, 64)), (["auto:480x832"], (480, 832)), (["32x48", "64x64"], (64, 64)), (["32x48", "48x32"], (32, 48))],
)
def test_an_editor_of_several_sizes_draws_at_one_that_it_was_trained_on(buckets, size):
    assert options_for({"data": {"height": 64, "width": 64, "buckets": buckets}}).size == size


def test_settings_are_found_beside_an_editor_in_its_run_folder(editor_file, backbone_folder, tmp_path):
    from ivedit.config.schema import Config
    from ivedit.runfolder import RunFolder

    cfg = Config(output_dir=str(tmp_path))
    cfg.sampling.steps = 13
    run = RunFolder.create(cfg)
    from ivedit.backbone import Backbone

    backbone = Backbone.load(backbone_folder)
    save_editor(run.checkpoints / "editor.safetensors", build_editor(EditorConfig(width=24), backbone))
    assert options_for(editor_settings(str(run.path))).steps == 13


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["missing.mp4", "remove the star"], "missing.mp4 does not exist", 2),
        (["clip.mp4", "  "], "the instruction is empty", 2),
        (["clip.mp4", "x", "--out", "clip.mp4"], "would overwrite the source", 2),
        (["clip.mp4", "x", "--out", "a.avi"], "is a .mp4 file", 2),
        (["clip.mp4", "x", "--out", "clip.mp4/a.mp4"], "cannot be written", 2),
        (["clip.mp4", "x", "--window", "16"], "--window 16 is not 1 + a multiple of 4, e.g. 13", 2),
        (["clip.mp4", "x", "--window", "5", "--overlap", "9"], "cannot overlap by 9", 2),
        (["clip.mp4", "x", "--steps", "0"], "'0' is not a whole number of at least 1", 2),
        (["clip.mp4", "x", "--guidance", "nan"], "'nan' is not a number", 2),
        (["clip.mp4", "x", "--size", "big"], "is not a height x width", 2),
        (["clip.mp4", "x", "--size", "33x37"], "--size 33x37: the nearest that the backbone can draw is 32x36", 2),
        (["clip.mp4", "x", "--out", "a" * 252 + ".mp4"], "cannot be written: File name too long", 2),
        (["clip.mp4", "x", "--device", "gpu9"], "--device gpu9 cannot be used", 2),
        (["text.mp4", "x"], "text.mp4 cannot be read", 1),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_plain_line(command, tmp_path, arguments, message, code):
    write_video(tmp_path / "clip.mp4", moving(9, 32, 32), 10)
    (tmp_path / "text.mp4").write_text("no film")
    before = sorted(tmp_path.iterdir())
    got, _, err = command(*arguments)
    assert got == code and message in err and "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("rate", [0, -3, float("nan")])
def test_a_rate_that_is_none_is_refused_from_python_too(tmp_path, rate):
    with pytest.raises(ConfigError, match=rf"--fps {rate}: frames per second are above 0"):
        Clip(tmp_path / "clip.mp4", rate)


def test_all_mistakes_are_told_at_once(command):
    _, _, err = command("missing.mp4", "", "--window", 3)
    assert err.count("error:") == 3


def test_an_editor_of_another_backbone_is_refused_by_name(command, tmp_path):
    write_video(tmp_path / "clip.mp4", moving(5, 32, 32), 10)
    other = tiny_backbone(heads=1)
    path = save_editor(tmp_path / "other.safetensors", build_editor(EditorConfig(width=24), other), backbone=other)
    code, _, err = command("clip.mp4", "remove the star", editor=path)
    assert code == 1 and "trained on a backbone of other shapes" in err and "other.safetensors" in err
    code, _, err = command("clip.mp4", "remove the star", editor="nowhere")
    assert code == 2 and "no trained editor at nowhere" in err


def test_an_editor_of_other_weights_is_refused_and_warned_about_when_it_is_wanted(command, tmp_path, backbone_folder):
    from ivedit.backbone import Backbone

    write_video(tmp_path / "clip.mp4", moving(5, 32, 32), 10)
    editor = build_editor(EditorConfig(width=24), Backbone.load(backbone_folder))
    path = save_editor(tmp_path / "e.safetensors", editor, backbone_fingerprint="f" * 64, extra={"config": SMALL})
    code, _, err = command("clip.mp4", "remove the star", editor=path)
    assert code == 1 and "other weights" in err and "--any-weights" in err and len(err.splitlines()) == 1
    code, _, err = command("clip.mp4", "remove the star", "--any-weights", editor=path)
    assert code == 0 and err.startswith("warning: ") and "other weights" in err and "warn(" not in err


def test_help_teaches_and_imports_nothing_heavy():
    code = (
        "import sys, ivedit.edit as e\n"
        "try: e.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'av', 'diffusers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "examples:" in done.stdout and "make the red circle blue" in done.stdout


def test_the_plugins_of_an_editors_run_are_imported_before_its_editor_is_loaded(
    command, editor_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "plugin_of_a_run.py").write_text("raise ZeroDivisionError('oh')\n")
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.write_config(load("quickstart", "plugins=[plugin_of_a_run]"))
    (run.path / "status.json").write_text("{}")
    (run.checkpoints / "editor.safetensors").write_bytes(editor_file.read_bytes())
    write_video(tmp_path / "clip.mp4", moving(5), 8)
    code, _, err = command("clip.mp4", "make it red", editor=run.path)
    assert code == 2
    assert "plugins: importing plugin_of_a_run failed: ZeroDivisionError: oh" in err
