"""Composition: the order of layers, parents, value types, and errors that come all at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import ivedit
from ivedit.config import Config, ConfigError, from_dict, load, to_dict, to_yaml
from ivedit.config.compose import PLACES, compose
from ivedit.config.fields import fields, show

PACKAGE = Path(ivedit.__file__).parent


def problems(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(arguments)
    return caught.value.problems


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_arguments_it_is_the_quickstart():
    composed = compose([])
    assert composed.config.name == "quickstart"
    assert composed.config.summary


def test_command_line_beats_file_beats_parents_beats_schema(here: Path):
    (here / "parent.yaml").write_text("train: {lr: 0.5, epochs: 7}\neditor: {every: 2}\n")
    (here / "mine.yaml").write_text("defaults: [./parent.yaml]\ntrain:\n  lr: 0.25\n  batch_size: 8\n")
    composed = compose(["experiment=mine.yaml", "train.batch_size=4"])
    train = composed.config.train
    assert (train.lr, train.epochs, train.batch_size, composed.config.editor.every) == (0.25, 7, 4, 2)
    assert train.beta1 == Config().train.beta1
    assert composed.config.name == "mine"
    assert composed.layers == ["parent.yaml", "mine.yaml", "command line"]
    assert [(s.value, s.source) for s in composed.history["train.lr"]] == [
        (Config().train.lr, "default"), (0.5, "parent.yaml:1"), (0.25, "mine.yaml:3"),
    ]  # fmt: skip


def test_defaults_inherit_from_shipped_experiments_and_paths_are_relative_to_the_file(here: Path, tmp_path: Path):
    (here / "deep").mkdir()
    (here / "deep" / "parent.yaml").write_text("defaults: [ablation_no_gate]\nseed: 3\n")
    (here / "deep" / "mine.yaml").write_text("defaults: [./parent.yaml]\n")
    config = load("deep/mine.yaml")
    assert (config.editor.gate, config.seed, config.data.pairs) == ("none", 3, 13000)


def test_two_parents_with_one_grandparent_keep_both_changes(here: Path):
    (here / "root.yaml").write_text("train: {lr: 0.1}\neditor: {every: 1}\n")
    (here / "a.yaml").write_text("defaults: [./root.yaml]\ntrain: {lr: 0.2}\n")
    (here / "b.yaml").write_text("defaults: [./root.yaml]\neditor: {every: 2}\n")
    (here / "c.yaml").write_text("defaults: [./a.yaml, ./b.yaml]\n")
    config = load("./c.yaml")
    assert (config.train.lr, config.editor.every) == (0.2, 2)


def test_a_later_parent_wins(here: Path):
    (here / "a.yaml").write_text("seed: 1\n")
    (here / "b.yaml").write_text("seed: 2\n")
    (here / "c.yaml").write_text("defaults: [./a.yaml, ./b.yaml]\n")
    assert load("./c.yaml").seed == 2


def test_circular_parents_are_refused_with_the_circle(here: Path):
    (here / "a.yaml").write_text("defaults: [./b.yaml]\n")
    (here / "b.yaml").write_text("defaults: [./a.yaml]\n")
    assert "a.yaml -> b.yaml -> a.yaml" in problems("experiment=./a.yaml")[0]


def test_name_and_summary_are_not_inherited(here: Path):
    (here / "mine.yaml").write_text("defaults: [imvideoedit]\n")
    config = load("./mine.yaml")
    assert (config.name, config.summary) == ("mine", "")


@pytest.mark.parametrize(
    ("argument", "key", "expected"),
    [
        ("train.lr=1e-3", "train.lr", 0.001),
        ("train.lr=1", "train.lr", 1.0),
        ("data.pairs=2e3", "data.pairs", 2000),
        ("train.max_steps=null", "train.max_steps", None),
        ("train.capture=off", "train.capture", "off"),
        ("train.capture=on", "train.capture", "on"),
        ("name=007", "name", "007"),
        ("summary=", "summary", ""),
        ("summary=a: b=c", "summary", "a: b=c"),
        ("evaluation.triage=false", "evaluation.triage", False),
        ("data.operations=[remove, add]", "data.operations", ["remove", "add"]),
        ("data.operations=[]", "data.operations", []),
        ("tracking.tags={a: b, n: 1}", "tracking.tags", {"a": "b", "n": "1"}),
        ("tracking.tags.run=12", "tracking.tags", {"run": "12"}),
        ("train={lr: 0.5}", "train.lr", 0.5),
        ("backbone=wan2.1_1.3b", "backbone.path", "wan2.1_1.3b"),
        ("backbone={path: wan2.2_5b}", "backbone.path", "wan2.2_5b"),
        ("backbone=12", "backbone.path", "12"),
        ("tracking.experiment=${name}-x", "tracking.experiment", "imvideoedit-x"),
    ],
)
def test_command_line_values_are_typed_as_in_yaml(here: Path, argument: str, key: str, expected: object):
    (here / "12").symlink_to(PACKAGE / "assets" / "wan-sprites")
    value: object = load("imvideoedit", argument)
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_one_entry_of_a_mapping_is_added_and_a_whole_mapping_replaces():
    both = load("quickstart", "tracking.tags={a: x}", "tracking.tags.b=y")
    assert both.tracking.tags == {"a": "x", "b": "y"}
    assert load("quickstart", "evaluation.editors={}").evaluation.editors == {}


def test_scores_are_numbers_however_they_are_written():
    scores = ["data.min_scores={a: 0.5}", "data.min_scores.b=7"]
    own = load("imvideoedit", "data.reader=set", "data.preset=omniedit", *scores)
    assert own.data.min_scores == {"a": 0.5, "b": 7.0}
    assert [type(least) for least in own.data.min_scores.values()] == [float, float]
    assert from_dict(to_dict(own)) == own


def test_one_word_for_the_backbone_is_its_path_in_a_file_too_and_other_groups_take_none(here: Path):
    (here / "mine.yaml").write_text("defaults: [imvideoedit]\nbackbone: wan2.1_14b\n")
    composed = compose(["experiment=mine.yaml", "backbone.dtype=bfloat16"])
    assert (composed.config.backbone.path, composed.config.backbone.dtype) == ("wan2.1_14b", "bfloat16")
    assert composed.history["backbone.path"][-1].source == "mine.yaml:2"
    assert "editor: predict_update is not a group of settings" in problems("editor=predict_update")[0]


def test_a_setting_left_to_whoever_runs_it_must_be_given_and_may_be_missing_for_reading(here: Path):
    (here / "mine.yaml").write_text("data:\n  reader: folder\n  path: ???\ntrain:\n  lr: ???\n")
    found = problems("experiment=mine.yaml", "train.epochs=2")
    assert len(found) == 2 and found[0].startswith("data.path: give it, data.path=...; mine.yaml leaves it to you")
    composed = compose(["experiment=mine.yaml", "train.lr=1e-3"], for_reading=True)
    assert composed.needed == ["data.path"] and composed.config.data.path is None
    assert problems("experiment=mine.yaml", "train.lr=1e-3", "data.path=nowhere")[0].endswith("is not a directory")


def test_a_yaml_file_may_spell_words_that_yaml_reads_as_truth(here: Path):
    (here / "mine.yaml").write_text("train:\n  capture: off\nname: 12\n")
    config = load("./mine.yaml")
    assert (config.train.capture, config.name) == ("off", "12")


def test_all_faults_are_reported_at_once_each_with_its_source(here: Path):
    (here / "mine.yaml").write_text("train:\n  lr: fast\n  epoch: 3\nnonsense: 1\ntext: {dropout: 1.5}\n")
    found = problems("experiment=mine.yaml", "seed=-1", "editor.gate=txt", "data.height=50", "train.clip=null", "word")
    text = "\n".join(found)
    assert len(found) == 9
    assert "train.lr: fast is not a finite number" in text and "(mine.yaml:2)" in text
    assert "train.epoch: there is no such setting (mine.yaml:3); did you mean train.epochs" in text
    assert "nonsense: there is no such setting (mine.yaml:4)" in text
    assert "text.dropout: 1.5 is out of range; it must be at least 0, at most 1 (mine.yaml:5)" in text
    assert "seed: -1 is out of range; it must be at least 0 (command line: seed=-1)" in text
    assert "editor.gate: txt is not one of text, features, none" in text
    assert "train.clip: null is not allowed; write train.clip=1.0" in text
    assert "data.height=50 (command line: data.height=50)" in text and "data.height=48" in text
    assert "word: not understood" in text


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("lr=1", "did you mean train.lr?"),
        ("trian.lr=1", "did you mean train.lr?"),
        ("train=5", "train: 5 is not a group of settings"),
        ("train.lr.x=5", "train.lr.x: there is no such setting"),
        ("train.lr=[1]", "[1] is not one float"),
        ("train.lr=nan", "not a finite number"),
        ("train.lr=0", "must be above 0"),
        ("train.epochs=1.5", "not a whole number"),
        ("seed=9999999999999999999", "must be at most 4294967295"),
        ("train.epochs=true", "not a whole number"),
        ("evaluation.triage=1", "neither true nor false"),
        ("data.operations=remove", "write data.operations=[remove]"),
        ("tracking.tags=[a]", "does not map names to words"),
        ("data.min_scores=7", "does not map names to numbers"),
        ("data.min_scores.o_score=high", "write e.g. data.min_scores.o_score=1.0"),
        ("name=", "it names a folder"),
        ("train.lr=[1", "not valid YAML"),
        ("train.lr=${nothing}", "cannot be resolved"),
        ("=3", "not understood"),
    ],
)
def test_a_bad_argument_says_what_is_wrong_and_what_would_fit(argument: str, part: str):
    found = problems("experiment=imvideoedit", argument)
    assert len(found) == 1
    assert part in found[0]


def test_unknown_experiment_names_the_nearest():
    assert "did you mean ablation_no_gate" in problems("experiment=ablation_nogate")[0]
    assert "does not exist" in problems("experiment=./nowhere.yaml")[0]
    assert "given 2 times" in problems("experiment=quickstart", "experiment=imvideoedit")[0]


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "a: [1\n", "a: 1\na: 2\n", "defaults: [3]\n"])
def test_a_malformed_file_is_named(here: Path, text: str):
    (here / "mine.yaml").write_text(text)
    found = problems("experiment=./mine.yaml")
    assert len(found) == 1
    assert "mine.yaml" in found[0]


def test_an_empty_file_is_the_defaults(here: Path):
    (here / "mine.yaml").write_text("# nothing yet\n")
    assert dataclasses.replace(load("./mine.yaml"), name="run") == Config()


def test_print_config_reads_back_to_the_same_configuration(here: Path):
    config = load("ablation_plain", "train.max_minutes=2.5", "tracking.tags={on: off}", "seed=9")
    (here / "copy.yaml").write_text(to_yaml(config))
    assert load("./copy.yaml") == config
    assert from_dict(to_dict(config)) == config


def test_resume_takes_the_runs_configuration_and_refuses_what_would_change_the_run(here: Path):
    config = load("ablation_no_gate", "train.lr=0.01", "train.epochs=3")
    (here / "runs" / "old").mkdir(parents=True)
    (here / "runs" / "old" / "config.yaml").write_text(to_yaml(config))
    resumed = compose(["resume=runs/old", "train.epochs=9", "evaluation.clips=30"]).config
    assert resumed.resume == "runs/old"
    assert (resumed.name, resumed.editor.gate, resumed.train.lr) == ("ablation_no_gate", "none", 0.01)
    assert (resumed.train.epochs, resumed.evaluation.clips) == (9, 30)

    found = problems("resume=runs/old", "train.lr=0.5", "editor.gate=text", "init_from=shipped")
    assert [line.partition(":")[0] for line in found[:3]] == ["train.lr", "editor.gate", "init_from"]
    assert all("a resumed run cannot change it" in line for line in found[:3])
    assert "leave out experiment=quickstart" in problems("resume=runs/old", "experiment=quickstart")[0]
    assert "not a run folder" in problems("resume=runs/other")[0]


def test_a_resumed_run_keeps_its_number_of_devices_once_it_has_a_checkpoint(here: Path):
    """Here and at once: the checkpoint itself would refuse it, after everything has been loaded."""
    config = load("imvideoedit", "train.devices=2")
    (here / "runs" / "old" / "checkpoints").mkdir(parents=True)
    (here / "runs" / "old" / "config.yaml").write_text(to_yaml(config))
    assert compose(["resume=runs/old", "train.devices=1"]).config.train.devices == 1  # no step yet
    (here / "runs" / "old" / "checkpoints" / "last.ckpt").touch()
    found = problems("resume=runs/old", "train.devices=4")
    assert len(found) == 1 and "2 times train.nodes=1" in found[0] and "init_from=runs/old" in found[0]
    assert compose(["resume=runs/old", "train.devices=1", "train.nodes=2"]).config.train.nodes == 2


def test_resume_belongs_on_the_command_line(here: Path):
    (here / "mine.yaml").write_text("resume: runs/old\n")
    assert "on the command line" in problems("experiment=./mine.yaml")[0]


_values = {
    "int": st.integers(0, 10**6),
    "float": st.floats(0, 1e6, allow_nan=False).filter(lambda x: x == 0 or x > 1e-6),
    "bool": st.booleans(),
    "str": st.text(alphabet="abc xyz:#[]{}\"'\\-=,", max_size=12),
}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_scalar_setting_survives_yaml(data: st.DataObject):
    """Whatever fits a field is the same after a run folder stored it and a resume read it."""
    plain = [f for f in fields().values() if f.kind in _values and not f.choices and f.max is None and f.key != "name"]
    field = data.draw(st.sampled_from([f for f in plain if f.key not in ("resume", "init_from", "data.path")]))
    value = data.draw(_values[field.kind])
    content = to_dict(Config())
    group, _, name = field.key.rpartition(".")
    (content[group] if group else content)[name] = value
    try:
        config = from_dict(content)
    except ConfigError as error:
        assert all(field.key in problem for problem in error.problems)
        return
    assert from_dict(OmegaConf.to_container(OmegaConf.create(to_yaml(config)))) == config
    assert show(value) in show(getattr(getattr(config, group) if group else config, name)) or field.kind == "float"


def test_a_tilde_is_the_home_folder_wherever_a_place_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = load("quickstart", "output_dir=~/runs", "data.cache=disk", "data.cache_dir=~/c")
    assert (cfg.output_dir, cfg.data.cache_dir) == (str(tmp_path / "runs"), str(tmp_path / "c"))
    assert set(PLACES) <= set(fields())
