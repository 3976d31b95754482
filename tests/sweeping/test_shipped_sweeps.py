"""Every sweep file that ships can be read, planned and started, and compares what its name promises."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ivedit import experiments
from ivedit.config import to_dict
from ivedit.config.compose import compose
from ivedit.sweeping.describe import EXAMPLES, dry_run, sweep_summaries
from ivedit.sweeping.docs import pages
from ivedit.sweeping.plan import FINAL, TUNE, keep_definition, stages, undecided_stage
from ivedit.sweeping.proposals import check_options
from ivedit.sweeping.resolve import resolve
from ivedit.sweeping.spec import Choice, Sweep

NAMES = experiments.SWEEPS.names()
GRIDS = {"ablations", "gate", "block_placement", "data_scale", "smoke"}
SEARCHES = {"editor_lr", "editor_width", "sampler", "quality_vs_cost"}

ISSUE_2 = [
    "imvideoedit", "ablation_no_gate", "ablation_no_gate_matched", "ablation_no_predict_update",
    "ablation_no_predict_update_matched", "ablation_plain", "ablation_plain_matched", "baseline_vifeedit",
]  # fmt: skip


@pytest.fixture(scope="module")
def sweeps() -> dict[str, Sweep]:
    return {name: resolve([f"sweep={name}"]) for name in NAMES}


def test_the_sweeps_of_the_documentation_are_there(sweeps: dict[str, Sweep]):
    assert {name for name in NAMES if sweeps[name].kind == "grid"} == GRIDS
    assert {name for name in NAMES if sweeps[name].kind == "search"} == SEARCHES


@pytest.mark.parametrize("name", NAMES)
def test_it_says_in_a_line_what_it_is_for(name: str):
    kind, summary = sweep_summaries()[name]
    assert kind in ("grid", "search")
    assert 20 < len(summary) < 130 and "\n" not in summary


@pytest.mark.parametrize("name", NAMES)
def test_every_child_is_a_run_that_can_start(name: str, sweeps: dict[str, Sweep]):
    sweep = sweeps[name]
    for stage_name in stages(sweep):
        stage = undecided_stage(sweep, stage_name)
        assert stage.n_trials > 0
        if stage.cells is None:
            point = {k: s.choices[0] if isinstance(s, Choice) else s.low for k, s in stage.space.items()}
            config = compose(stage.settings(0, point)).config
            assert config.name == f"{name}-0000"
            assert config.evaluation.split == "val"  # settings are never chosen on test clips
        else:
            assert len(stage.cells) == stage.n_trials
            # A seed changes nothing else, and what tune will choose is one of the values that tune composed.
            for cell in stage.cells[: len(sweep.arms)]:
                config = compose([item for item in cell.settings if "(chosen by tune)" not in item]).config
                assert (config.name, config.seed) == (cell.arm, cell.seed)
                assert config.evaluation.split == ("val" if stage_name == TUNE else "test")


@pytest.mark.parametrize("name", NAMES)
def test_optuna_takes_its_options(name: str, sweeps: dict[str, Sweep]):
    sweep = sweeps[name]
    assert check_options("sampler", sweep.sampler.name, sweep.sampler.options) == []
    if sweep.pruner is not None:
        assert check_options("pruner", sweep.pruner.name, sweep.pruner.options) == []


def test_the_ablations_are_all_arms_with_five_seeds_and_the_same_budget_for_every_learning_rate(
    sweeps: dict[str, Sweep],
):
    sweep = sweeps["ablations"]
    assert [arm.name for arm in sweep.arms] == ISSUE_2
    assert len(sweep.seeds) >= 5
    assert sweep.tune is not None and list(sweep.tune.space) == ["train.lr"]
    assert not set(sweep.tune.seeds) & set(sweep.seeds)
    tuning = undecided_stage(sweep, TUNE).cells or ()
    per_arm = {arm: sorted(str(dict(cell.tuned)) for cell in tuning if cell.arm == arm) for arm in ISSUE_2}
    assert len({tuple(values) for values in per_arm.values()}) == 1
    assert {claim.better for claim in sweep.claims} == {"imvideoedit"}
    assert {claim.than for claim in sweep.claims} == set(ISSUE_2) - {"imvideoedit"}
    steps = {cell.arm: compose(cell.settings).config for cell in tuning}
    assert len({(c.train.max_steps, c.train.epochs, c.data.pairs, c.train.batch_size) for c in steps.values()}) == 1


def test_data_scale_goes_from_250_to_13000_pairs_with_equal_steps(sweeps: dict[str, Sweep]):
    cells = (undecided_stage(sweeps["data_scale"], FINAL).cells or ())[: len(sweeps["data_scale"].arms)]
    configs = [compose(cell.settings).config for cell in cells]
    assert [c.data.pairs for c in configs] == [250, 500, 1000, 2000, 4000, 8000, 13000]
    method = compose(["experiment=imvideoedit"]).config
    steps = method.train.epochs * (method.data.pairs // method.train.batch_size)  # of whole batches
    assert {c.train.max_steps for c in configs} == {steps}


def test_narrow_modules_in_twice_as_many_blocks_have_as_many_weights(sweeps: dict[str, Sweep]):
    from ivedit.backbone import Backbone
    from ivedit.editor import VARIANTS, editor_config

    spec = Backbone.load("wan-sprites", components=()).spec
    weights = {}
    for arm in sweeps["block_placement"].arms:
        settings = editor_config(compose(arm.settings).config.editor)
        weights[arm.name] = VARIANTS.get(settings["variant"]).expected_parameters(settings, spec)
    assert weights["all_narrow"] == pytest.approx(weights["control_every_2"], rel=0.01)
    assert weights["every_2_narrow"] == pytest.approx(weights["control_every_4"], rel=0.01)
    assert weights["control_every_2"] == pytest.approx(weights["imvideoedit"] / 2, rel=0.01)


def test_the_sampler_search_trains_nothing(sweeps: dict[str, Sweep]):
    config = compose(sweeps["sampler"].settings).config
    assert (config.train.epochs, config.train.max_steps, config.init_from) == (0, None, "shipped")
    assert all(key.startswith("sampling.") for key in sweeps["sampler"].space)


def test_quality_vs_cost_has_two_objectives(sweeps: dict[str, Sweep]):
    objectives = [(item.metric, item.direction) for item in sweeps["quality_vs_cost"].objectives]
    assert objectives == [("success", "maximize"), ("trained_weights", "minimize")]


@pytest.mark.parametrize("name", NAMES)
def test_the_dry_run_names_every_slot_and_the_number_of_children(name: str, sweeps: dict[str, Sweep]):
    text = dry_run(sweeps[name])
    parts = [undecided_stage(sweeps[name], stage) for stage in stages(sweeps[name])]
    assert f"{sum(part.n_trials for part in parts)} children in all" in text
    for part in parts:
        assert part.study in text
        assert all(cell.label in text for cell in part.cells or ())
        assert all(key in text for key in part.space)


def test_arms_are_runs_that_differ(sweeps: dict[str, Sweep]):
    for name in GRIDS:
        cells = (undecided_stage(sweeps[name], FINAL).cells or ())[: len(sweeps[name].arms)]
        contents = []
        for cell in cells:
            content = to_dict(compose([s for s in cell.settings if "(chosen by tune)" not in s]).config)
            contents.append({key: value for key, value in content.items() if key not in ("name", "summary")})
        assert all(one != other for i, one in enumerate(contents) for other in contents[:i])


def test_the_page_about_the_sweeps_is_not_stale():
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is stale: run python -m ivedit.sweeping.docs"


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in EXAMPLES])
def test_the_examples_of_the_help_are_sweeps(
    arguments: str, sweeps: dict[str, Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    if "runs/ablations" in arguments:
        keep_definition(sweeps["ablations"])
    Path("mine.yaml").write_text("kind: grid\narms: [imvideoedit]\n", encoding="utf-8")
    settings = [word for word in shlex.split(arguments) if "=" in word and not word.startswith("--")]
    assert resolve(settings).kind in ("grid", "search")
