"""What cannot run is refused before anything starts: all faults at once, each with its place and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from ivedit.errors import ConfigError
from ivedit.sweeping.resolve import resolve

GRID = """\
kind: grid
summary: a grid
arms: [imvideoedit, ablation_no_gate]
seeds: [0, 1]
"""
TUNED = GRID + "tune: {space: {train.lr: [1e-3, 2e-3]}}\n"
SEARCH = """\
kind: search
summary: a search
space:
  train.lr: {low: 1e-4, high: 1e-2, log: true}
  editor.width: {choices: [64, 128]}
settings: {evaluation.split: val}
n_trials: 10
"""

REFUSED = {
    # -- keys and values
    "unknown key": (GRID + "armss: [imvideoedit]\n", [], "armss: there is no such key (mine.yaml:5); did you mean"),
    "a run's setting at the top": (GRID + "train.lr: 1\n", [], "write it under `settings:`"),
    "unknown setting": (GRID + "settings: {train.lrr: 1}\n", [], "did you mean train.lr"),
    "unknown setting typed": (GRID, ["trian.lr=1"], "did you mean train.lr"),
    "a value of the wrong type": (GRID, ["train.lr=fast"], "fast is not a finite number"),
    "a value out of range": (GRID + "settings: {train.batch_size: 0}\n", [], "0 is out of range"),
    "own value out of range": (GRID, ["workers=0"], "workers: 0 is out of range; it must be at least 1 (command line"),
    "own value of the wrong type": (GRID + "retries: many\n", [], "retries: many is not a whole number"),
    "unknown kind": (GRID, ["kind=both"], "both is not one of grid, search"),
    "no YAML": (GRID, ["seeds=[0,"], "is not valid YAML"),
    "settings that are no mapping": (GRID + "settings: [train.lr=1]\n", [], "does not map settings to values"),
    "a group that is none": (SEARCH + "sampler: tpe\n", [], "is not a group of keys"),
    "name of the run": (GRID + "settings: {name: x}\n", [], "the sweep names its runs"),
    "resume": (GRID, ["resume=runs/x"], "each run continues its own folder"),
    "seed of a grid": (GRID, ["seed=3"], "a grid has `seeds:`"),
    "name with a slash": (GRID, ["name=a/b"], "names a folder"),
    # -- grids
    "no arms": ("kind: grid\nseeds: [0]\n", [], "arms: a grid needs them"),
    "empty arms": (GRID, ["arms=[]"], "is no list of arms"),
    "unknown arm": (GRID, ["arms=[imvideoedt]"], "did you mean imvideoedit"),
    "arm of numbers": (GRID, ["arms=[3]"], "neither an experiment nor"),
    "arm with unknown setting": (GRID, ["arms=[{wide: [editor.widht=64]}]"], "did you mean editor.width"),
    "arm with a bad value": (GRID, ["arms=[imvideoedit,{wide: [editor.width=x]}]"], "arm wide: editor.width"),
    "arm that is no list": (GRID, ["arms=[{wide: 3}]"], "write wide: [editor.width=512]"),
    "arm twice": (GRID, ["arms=[imvideoedit,imvideoedit]"], "'imvideoedit' is listed 2 times"),
    "arms alike": (GRID, ["arms=[imvideoedit,{again: []}]"], "arms imvideoedit and again are the same run"),
    "arm named as a control": (GRID, ["arms=[{frozen: [editor.width=64]}]"], "belongs to a control row"),
    "arm with two experiments": (GRID, ["arms=[{a: [experiment=imvideoedit,experiment=quickstart]}]"], "give it once"),
    "no seeds": (GRID, ["seeds=[]"], "is no list of whole numbers"),
    "seed twice": (GRID, ["seeds=[1,1]"], "1 is listed twice"),
    "negative seed": (GRID, ["seeds=[-1]"], "is no list of whole numbers"),
    "a setting that an arm has itself": (
        GRID, ["arms=[imvideoedit,{wide: [editor.width=128]}]", "editor.width=64"], "the arms wide set it themselves",
    ),
    "a search's key": (GRID + "n_trials: 3\n", [], "it is for kind: search"),
    "a search's space": (GRID + "space: {train.lr: [1, 2]}\n", [], "it is for kind: search"),
    "an arm that cannot run": (
        GRID, ["arms=[imvideoedit,{b: [editor.gate=none,editor.gate_grain=token]}]"], "arm b: editor.gate=none",
    ),
    "no arm can run": (GRID, ["train.batch_size=20000"], "one optimiser step takes 20000 pairs"),
    "objective without evaluation": (GRID, ["evaluation.enabled=false"], "it comes from an evaluation"),
    "objective of no direction": (GRID, ["objectives={success: up}"], "up is not one of maximize, minimize"),
    "objective that nothing measures": (GRID, ["objectives={sucess: maximize}"], "did you mean success"),
    "no objective": (GRID, ["objectives={}"], "names no metric"),
    # -- tuning
    "tune on test clips": (TUNED, ["tune.settings={evaluation.split: test}"], "not chosen on test clips"),
    "tune that forgot the split": (TUNED, ["tune.settings={evaluation.strips: 0}"], "evaluation.split=val in tune.se"),
    "tune on another test split": (
        TUNED, ["tune.settings={evaluation.split: test_phrasing}"], "evaluation.split=test_phrasing",
    ),
    "tune without space": (GRID + "tune: {seeds: [1]}\n", [], "tune.space is missing"),
    "tune of an unknown key": (TUNED, ["tune.space={train.rl: [1]}"], "did you mean train.lr"),
    "tune of a bad value": (TUNED, ["tune.space={train.lr: [1e-3, -1]}"], "-1.0 is out of range"),
    "tune of a range": (TUNED, ["tune.space={train.lr: {low: 1, high: 2}}"], "is no list of values"),
    "tune and set": (TUNED, ["train.lr=1e-3"], "every arm's own is chosen by tune"),
    "tune by two metrics": (TUNED, ["tune.objective={success: maximize, val/loss: minimize}"], "one metric decides"),
    "tune that cannot run": (TUNED, ["tune.space={data.pairs: [13000, 4]}"], "lower train.batch_size"),
    "unknown key in tune": (TUNED + "  \n", ["tune.sede=[1]"], "did you mean tune.seeds"),
    # -- claims
    "claim about no arm": (GRID + "claims: [{better: imvideoedit, than: nothing}]\n", [], "there is no arm 'nothing'"),
    "claim about itself": (GRID + "claims: [{better: imvideoedit, than: imvideoedit}]\n", [], "compared with itself"),
    "claim about what no report compares": (
        GRID, ["claims=[{better: imvideoedit, than: ablation_no_gate, metric: kept_ssim}]"],
        "metric: kept_ssim is not one of success, edited_psnr, kept_psnr",
    ),
    "claim of another form": (GRID + "claims: [imvideoedit]\n", [], "write {better: ARM, than: ARM}"),
    "claim twice": (
        GRID, ["claims=[{better: imvideoedit, than: ablation_no_gate}, {better: imvideoedit, than: ablation_no_gate}]"],
        "is listed twice",
    ),
    # -- searches
    "no space": ("kind: search\nn_trials: 3\n", [], "space: a search needs it"),
    "empty space": (SEARCH, ["space={}"], "names no setting"),
    "unknown key in the space": (SEARCH, ["space.train.lrr={low: 1, high: 2}"], "did you mean train.lr"),
    "unknown experiment": (SEARCH, ["experiment=imvideoedt"], "did you mean imvideoedit"),
    "low above high": (SEARCH, ["space.train.lr={low: 2, high: 1}"], "low must be below high"),
    "outside of the schema": (SEARCH, ["space.train.lr={low: 0, high: 1}"], "0 is out of range; it must be above 0"),
    "log from zero": (SEARCH, ["space.train.weight_decay={low: 0, high: 1, log: true}"], "begins above 0"),
    "log and step": (SEARCH, ["space.train.lr={low: 1, high: 2, log: true, step: 1}"], "log and step exclude"),
    "log of no truth": (SEARCH, ["space.train.lr={low: 1, high: 2, log: 10}"], "10 is neither true nor false"),
    "step too wide": (SEARCH, ["space.train.lr={low: 1, high: 2, step: 3}"], "more than the range is wide"),
    "half a step": (SEARCH, ["space.editor.width={low: 64, high: 128, step: 0.5}"], "no whole number above 0"),
    "half a width": (SEARCH, ["space.editor.width={low: 64.5, high: 128}"], "64.5 is not a whole number"),
    "range of words": (SEARCH, ["space.editor.gate={low: 1, high: 2}"], "a range is of numbers"),
    "a choice of the wrong type": (SEARCH, ["space.editor.width={choices: [64, wide]}"], "wide is not a whole number"),
    "a choice that is none": (SEARCH, ["space.editor.gate={choices: [text, non]}"], "non is not one of text, features"),
    "a choice twice": (SEARCH, ["space.editor.width={choices: [64, 64]}"], "64 is listed twice"),
    "no range at all": (SEARCH, ["space.train.lr={from: 1, to: 2}"], "is no range"),
    "one value": (SEARCH, ["space.train.lr=3"], "is no range"),
    "a list as a value": (SEARCH, ["space.data.operations=[[add], [remove]]"], "a list of str cannot be varied"),
    "a place": (SEARCH, ["space.backbone.path=[a, b]"], "it says where things lie"),
    "the measure": (SEARCH, ["space.evaluation.split=[val, test]"], "how a run is judged"),
    "the measure while tuning": (TUNED, ["tune.space={evaluation.edited_db: [1, 2]}"], "how a run is judged"),
    "varied and set": (SEARCH, ["train.lr=1e-3"], "the search varies it"),
    "a combination that cannot run": (
        SEARCH, ["space.editor.gate=[text, none]", "space.editor.gate_grain=[channel, head]"],
        "editor.gate=none, editor.gate_grain=head: editor.gate=none",
    ),
    "search on test clips": (SEARCH, ["evaluation.split=test"], "settings are not chosen on test clips"),
    "no number of trials": (SEARCH, ["n_trials=null"], "needs its number of trials"),
    "unknown sampler": (SEARCH, ["sampler.name=tpee"], "tpee is not one of tpe, gp"),
    "unknown pruner": (SEARCH, ["pruner.name=mean"], "mean is not one of none, median"),
    "grid without end": (SEARCH, ["sampler.name=grid"], "a grid needs an end: give train.lr a step or choices"),
    "grid with too many trials": (
        SEARCH, ["sampler.name=grid", "space.train.lr=[1e-3, 2e-3]"], "the grid has 4 combinations",
    ),
    "CMA-ES and choices": (SEARCH, ["sampler.name=cmaes"], "not choices (editor.width)"),
    "CMA-ES of one": (SEARCH, ["sampler.name=cmaes", "space={train.lr: {low: 1e-4, high: 1e-2}}"], "two settings"),
    "CMA-ES of two goals": (
        SEARCH, ["sampler.name=cmaes", "objectives={success: maximize, trained_weights: minimize}"],
        "use sampler.name=nsgaii",
    ),
    "pruning of two goals": (
        SEARCH, ["pruner.name=median", "objectives={success: maximize, trained_weights: minimize}"],
        "cannot prune with two objectives",
    ),
    "three goals": (SEARCH, ["objectives={success: maximize, a/b: minimize, c/d: minimize}"], "has one or two"),
    "pruning by a final metric": (SEARCH, ["pruner.name=median", "pruner.metric=success"], "metric of metrics.jsonl"),
    "pruning by what comes at the end": (
        SEARCH, ["pruner.name=median", "train.validate_every=0"], "measures it at the end only",
    ),
    "too many prior trials": (
        SEARCH, ["n_trials=1", "prior=[{train.lr: 1e-3}, {train.lr: 2e-3}]"], "prior has 2 trials to run first",
    ),
    "prior outside": (SEARCH, ["prior=[{train.lr: 1}]"], "1 is outside of"),
    "prior of another key": (SEARCH, ["prior=[{train.clip: 1}]"], "train.clip is not in the space"),
    "prior of another form": (SEARCH, ["prior=[editor_lr]"], "neither {KEY: VALUE} nor {study: NAME}"),
    "prior study of no number": (SEARCH, ["prior=[{study: x, best: all}]"], "write {study: NAME, best: 5}"),
    "a grid's key": (SEARCH + "arms: [imvideoedit]\n", [], "it is for kind: grid"),
    # -- where it runs
    "no storage": (GRID, ["storage=mysql://u:secret@h/d"], "is no storage"),
    "shared and several GPUs": (GRID, ["gpus_per_trial=2", "trials_per_gpu=2"], "set one of the two to 1"),
    "more processes than GPUs": (GRID, ["train.devices=2"], "set gpus_per_trial=2"),
    "children on two machines": (GRID, ["train.nodes=2"], "runs on one machine"),
    "SLURM with sqlite": (GRID, ["launcher=slurm", "storage=sqlite:///s.db"], "cannot share an sqlite file"),
}  # fmt: skip


def problems_of(content: str, arguments: list[str], folder: Path) -> list[str]:
    (folder / "mine.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        resolve(["sweep=./mine.yaml", *arguments])
    return refused.value.problems


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_the_fix(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    content, arguments, said = REFUSED[case]
    problems = problems_of(content, arguments, tmp_path)
    assert any(said in problem for problem in problems), problems
    assert all("\n" not in problem and "Traceback" not in problem for problem in problems)
    assert len(problems) == len(set(problems))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]  # nothing half-written


@pytest.mark.parametrize("content", [GRID, TUNED, SEARCH])
def test_the_same_without_the_fault_is_accepted(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    assert resolve(["sweep=./mine.yaml"]).name == "mine"


def test_the_metrics_that_are_known_without_an_evaluation_are_those_that_exist():
    from ivedit.evaluation.metrics import METRICS
    from ivedit.sweeping import rules

    shipped = [name for name in METRICS.names() if METRICS.get(name).__module__.startswith("ivedit.")]
    assert sorted(shipped) == sorted(rules.METRICS)


def test_all_faults_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    content = GRID + "settings: {train.lrr: 1, train.epochs: -1}\nclaims: [{better: a, than: b}]\nworker: 2\n"
    problems = problems_of(content, ["seeds=[0,0]", "storage=nowhere"], tmp_path)
    for said in ("train.lrr", "train.epochs: -1", "no arm 'a'", "no arm 'b'", "worker:", "listed twice", "nowhere"):
        assert any(said in problem for problem in problems), said


@pytest.mark.parametrize("fault", ["n_trials=0", "space={train.lr: {low: 3, high: 1}}"])
def test_a_fault_is_not_told_again_by_what_depends_on_it(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert len(problems_of(SEARCH, [fault, "prior=[{train.lr: 1e-3}]"], tmp_path)) == 1


def test_a_fault_that_all_arms_share_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    problems = problems_of(GRID, ["evaluation.frames=6"], tmp_path)
    assert len(problems) == 1 and problems[0].startswith("evaluation.frames=6 (command line: evaluation.frames=6)")


def test_a_password_appears_in_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    problems = problems_of(GRID, ["storage=mysql://me:secret@host/d"], tmp_path)
    assert "secret" not in "".join(problems) and "mysql://me:***@host/d" in problems[0]


def test_an_unknown_sweep_gets_the_nearest_names():
    with pytest.raises(ConfigError, match="did you mean ablations"):
        resolve(["sweep=ablation"])


@pytest.mark.parametrize("arguments", [[], ["sweep="], ["sweep=gate", "sweep=smoke"]])
def test_one_sweep_is_asked_for(arguments: list[str]):
    with pytest.raises(ConfigError, match="give it once: smoke, ablations"):
        resolve(arguments)


def test_a_file_without_its_key_is_told_how_to_write_it():
    with pytest.raises(ConfigError, match=r"given 0 times \(write sweep=./mine.yaml\); give it once: smoke"):
        resolve(["./mine.yaml"])
