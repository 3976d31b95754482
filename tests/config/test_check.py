"""Rules between settings: what cannot run is refused before anything starts, with the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from ivedit.config import Config, ConfigError, load
from ivedit.config.check import check
from ivedit.config.rules import CONTROLS, OPERATIONS

REFUSED = {
    "resume and init_from": (["resume=.", "init_from=shipped"], "a resumed run already has its weights"),
    "init_from nowhere": (["init_from=nowhere.safetensors"], "no such file or run folder"),
    "init_from for pretraining": (["init_from=shipped", "task=pretrain_vae"], "only task=edit has"),
    "pretraining by epochs": (["task=pretrain_vae"], "set train.max_steps"),
    "unknown task": (["task=pretrain_va"], "did you mean pretrain_vae"),
    "sprites that are not square": (["data.height=128"], "sprites are square"),
    "name with a slash": (["name=a/b"], "names a folder"),
    "folder without path": (["data.reader=folder"], "needs data.path=FOLDER"),
    "a table for a folder": (
        ["data.reader=folder", f"data.path={__file__}"],
        f"is not a directory; write data.path={Path(__file__).parent} data.table=test_check.py",
    ),
    "folder that is not there": (["data.reader=folder", "data.path=nowhere"], "nowhere is not a directory"),
    "folder without its table": (["data.reader=folder", "data.path=."], "no such table"),
    "path for sprites": (["data.path=."], "sprites are drawn, not read"),
    "columns for sprites": (["data.columns={source: a}"], "sprites have no table"),
    "unknown column": (["data.reader=folder", "data.path=.", "data.columns.sorce=a"], "did you mean source"),
    "set without path": (["data.reader=set"], "needs data.path=FOLDER, FILE or a hub name"),
    "set that is not there": (["data.reader=set", "data.path=nowhere"], "no such file or directory"),
    "unknown preset": (["data.reader=set", "data.preset=omniedt"], "did you mean omniedit"),
    "preset that is not there": (["data.reader=set", "data.preset=./mine.yaml"], "there is no file ./mine.yaml"),
    "preset of sprites": (["data.preset=omniedit"], "belongs to data.reader=set"),
    "cached stream": (["data.reader=set", "data.preset=omniedit", "data.streaming=true"], "set data.cache=none"),
    "stream of videos": (["data.reader=set", "data.preset=kiwi", "data.streaming=true", "data.cache=none",
                          "data.frame=first"], "videos are not streamed"),
    "stream in buckets": (["data.reader=set", "data.preset=kiwi", "data.streaming=true", "data.cache=none",
                           "data.buckets=[480x832]"], "cannot be planned for a stream"),
    "stream with shuffled gates": (["data.reader=set", "data.preset=kiwi", "data.streaming=true", "data.cache=none",
                                    "text.gate=shuffled"], "texts of all pairs"),
    "frames of sprites": (["data.frame=middle"], "belongs to data.reader=set"),
    "misspelt backbone": (["backbone=wan2.1_1.3"], "did you mean wan2.1_1.3b"),
    "backbone at a path to nowhere": (["backbone=./nowhere"], "backbone=./nowhere): there is no such folder"),
    "backbone of no known name": (["backbone=flux"], "no backbone of that name; known are wan-sprites, wan2.1_1.3b"),
    "backbone deep in no folder": (["backbone=my/own/wan"], "there is no such folder"),
    "unknown reader": (["data.reader=folders"], "did you mean folder?"),
    "unknown variant": (["editor.variant=predict_updat"], "did you mean predict_update?"),
    "unknown operation": (["data.operations=[recolor]"], "did you mean recolour"),
    "operation twice": (["data.operations=[add,add]"], "'add' is listed twice"),
    "operations of a folder": (["data.reader=folder", "data.path=.", "data.operations=[add]"], "trained on whole"),
    "height": (["data.height=72"], "data.height="),
    "width": (["data.width=100"], "data.width=96"),
    "bucket of no size": (["data.buckets=[480]"], "'480' is no size; write HEIGHTxWIDTH"),
    "bucket off the grid": (["data.buckets=[480x840]"], "the nearest is 480x832"),
    "buckets of one ratio": (["data.buckets=[480x832,240x416]"], "one aspect ratio"),
    "auto among sizes": (["data.buckets=[auto:480x832,64x64]"], "write [auto:480x832] alone"),
    "buckets of sprites": (["data.buckets=[64x64]"], "sprites are all drawn at"),
    "no full batch": (["data.pairs=100", "train.batch_size=64", "train.accumulate=2"], "takes 128 pairs"),
    "only null edits": (["data.null_edits=1"], "nothing but copying"),
    "cache without a place": (["data.cache=disk", "data.cache_dir="], "data.cache_dir=cache"),
    "shuffled text without a text gate": (["editor.gate=none", "text.gate=shuffled"], "no gate reads"),
    "grain of no gate": (["editor.gate=none", "editor.gate_grain=token"], "no gate whose grain"),
    "rank of full weights": (["editor.rank=8"], "no low-rank weights"),
    "difference without predict-update": (
        ["editor.variant=single_attention", "editor.difference=false"], "only predict-update forms a difference",
    ),
    "rounds of side by side": (["editor.variant=side_by_side", "editor.rounds=2"], "no gated edit modules"),
    "source stream of side by side": (
        ["editor.variant=side_by_side", "editor.source_attention=joint"], "no source stream",
    ),
    "logit of uniform": (["flow.logit_std=2"], "uniform timesteps have no logit"),
    "ema that never moves": (["train.ema=1"], "never leaves the initial weights"),
    "beta of one": (["train.beta2=1"], "must be below 1"),
    "captured on a CPU": (["train.capture=on", "train.accelerator=cpu"], "CUDA graphs need a GPU"),
    "captured and shared": (["train.capture=on", "train.devices=2", "train.strategy=fsdp"], "holds all weights"),
    "guidance without its branch": (["sampling.guidance=3", "text.dropout=0"], "text.dropout=0.1"),
    "fewer clips than operations": (["evaluation.clips=8"], "evaluation.clips=9 or more"),
    "frames": (["evaluation.frames=16"], "use 13 or 17"),
    "too many frames": (["evaluation.frames=21"], "17 frames"),
    "unknown control": (["evaluation.controls=[forzen]"], "did you mean frozen?"),
    "row named like a control": (["evaluation.editors={frozen: shipped}"], "belongs to a control"),
    "row without an editor": (["evaluation.editors={mine: nowhere}"], "there is no nowhere"),
    "judge without a server": (["judge.backend=http", "judge.model=m"], "needs judge.base_url"),
    "judge without a folder": (["judge.backend=local"], "needs judge.path"),
    "unknown judge metric": (["judge.metrics=[IA,TV]"], "judge metric 'TV'"),
    "no judge metric": (["judge.metrics=[]"], "nothing to ask"),
    "equal repeats": (["judge.temperature=0"], "judge.repeats=1"),
    "sizes crossed": (["judge.smallest=900"], "lower judge.smallest"),
}  # fmt: skip

ALLOWED = {
    "guidance with null edits": ["sampling.guidance=3", "text.dropout=0", "data.null_edits=0.1"],
    "guidance 1 without dropout": ["text.dropout=0"],
    "evaluation only": ["train.epochs=0", "data.pairs=8", "init_from=shipped"],
    "few clips of few operations": ["data.operations=[add]", "evaluation.clips=1"],
    "few clips unevaluated": ["evaluation.clips=1", "evaluation.enabled=false"],
    "one frame": ["evaluation.frames=1"],
    "rank of low-rank weights": ["editor.variant=side_by_side", "editor.mlp=0", "editor.rank=8"],
    "a plugin's names": ["plugins=[my.module]", "editor.variant=mine", "data.reader=theirs"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    arguments, part = REFUSED[case]
    config, changed = Config(), {}
    if "resume=." in arguments:  # a rule of its own: on the command line, resume= also reads that folder
        config.resume, config.init_from = ".", "shipped"
        problems = check(config, {})
    else:
        with pytest.raises(ConfigError) as caught:
            load("imvideoedit", *arguments)
        problems = caught.value.problems
        changed = dict(argument.split("=", 1) for argument in arguments)
    assert any(part in problem for problem in problems), problems
    for problem in problems:
        assert any(f"command line: {key}" in problem for key in changed) or not changed, problem


@pytest.mark.parametrize("case", ALLOWED)
def test_allows(case: str):
    load("imvideoedit", *ALLOWED[case])


@pytest.mark.parametrize("setting", [
    "judge.key_env=sk-very-secret", "judge.base_url=http://me:very-secret@host/v1", "judge.request={api_key: secret-1}",
])  # fmt: skip
def test_a_key_among_the_settings_is_refused_and_not_repeated(setting: str):
    with pytest.raises(ConfigError, match=r"judge\.key_env") as caught:
        load("imvideoedit", setting)
    assert "secret" not in str(caught.value)


def test_one_bad_value_is_one_problem():
    with pytest.raises(ConfigError) as caught:
        load("imvideoedit", "evaluation.frames=x", "train.ema=2")
    assert len(caught.value.problems) == 2


def test_the_defaults_break_no_rule():
    assert check(Config(), {}) == []


def test_there_are_nine_operations_and_four_controls():
    assert (len(set(OPERATIONS)), len(set(CONTROLS))) == (9, 4)
