"""From a sweep file to slots: what is run, under which names, and when two sweeps are the same one."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivedit.config.compose import compose
from ivedit.errors import ConfigError, IveditError
from ivedit.sweeping import plan
from ivedit.sweeping.plan import FINAL, SEARCH, TUNE, build_stage, choose, keep_definition, stages, undecided_stage
from ivedit.sweeping.resolve import resolve
from ivedit.sweeping.spec import Choice, Range, SlotResult, Sweep, changes, definition_hash

GRID: dict[str, Any] = {
    "kind": "grid",
    "summary": "two arms",
    "arms": ["imvideoedit", {"narrow": ["editor.width=64"]}],
    "seeds": [0, 1, 2],
    "settings": {"train": {"max_steps": 5}, "evaluation.clips": 9},
    "claims": [{"better": "imvideoedit", "than": "narrow"}],
}
TUNED = GRID | {"tune": {"space": {"train.lr": [1e-3, 2e-3], "train.clip": [0, 1]}, "seeds": [7, 8]}}
SEARCH_FILE: dict[str, Any] = {
    "kind": "search",
    "space": {
        "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "editor": {"width": {"low": 64, "high": 256, "step": 64}, "gate": ["text", "none"]},
    },
    "settings": {"evaluation.split": "val"},
    "n_trials": 6,
    "prior": [{"train.lr": 1e-3}, {"study": "other", "best": 2}],
    "pruner": {"name": "median", "options": {"n_warmup_steps": 5}},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(content: dict[str, Any], *arguments: str) -> Sweep:
    Path("mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return resolve(["sweep=./mine.yaml", *arguments])


def results(sweep: Sweep, values: dict[tuple[str, str], float | None]) -> list[SlotResult]:
    """Results of the tuning stage: by (arm, words of the point), the same for every seed; None: failed."""
    stage = undecided_stage(sweep, TUNE)
    found = []
    for slot, cell in enumerate(stage.cells or ()):
        value = values.get((str(cell.arm), " ".join(map(str, cell.tuned.values()))), 0.0)
        state = "FAIL" if value is None else "COMPLETE"
        found.append(SlotResult(
            TUNE, slot, cell.label, state, None if value is None else (value,), Path("x"), 1, cell=cell,
        ))  # fmt: skip
    return found


# -- slots ---------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_arm_with_every_seed_seed_by_seed():
    stage = build_stage(make(GRID), FINAL, lambda _: ())
    assert stages(make(GRID)) == [FINAL]
    assert [(cell.arm, cell.seed) for cell in stage.cells or ()] == [
        (arm, seed) for seed in (0, 1, 2) for arm in ("imvideoedit", "narrow")
    ]
    config = compose(stage.settings(3)).config
    assert (config.name, config.seed, config.editor.width, config.train.max_steps) == ("narrow", 1, 64, 5)
    assert stage.folder_name(3) == "final-0003-narrow-seed1"


def test_seeds_that_are_appended_leave_the_slots_before_where_they_were():
    before = build_stage(make(GRID), FINAL, lambda _: ())
    after = build_stage(make(GRID, "seeds=[0,1,2,3]"), FINAL, lambda _: ())
    assert (after.cells or ())[: before.n_trials] == before.cells
    assert after.n_trials == 8 and after.study == before.study


def test_tuning_gives_every_arm_every_point_with_every_tuning_seed_on_validation_clips():
    sweep = make(TUNED)
    stage = build_stage(sweep, TUNE, lambda _: ())
    assert stages(sweep) == [TUNE, FINAL]
    points = {(cell.arm, cell.seed, *cell.tuned.values()) for cell in stage.cells or ()}
    assert points == {
        (arm, seed, lr, clip)
        for arm in ("imvideoedit", "narrow") for seed in (7, 8) for lr in (1e-3, 2e-3) for clip in (0.0, 1.0)
    }  # fmt: skip
    assert stage.n_trials == len(points) == len({stage.folder_name(slot) for slot in range(stage.n_trials)})
    for slot, cell in enumerate(stage.cells or ()):
        config = compose(stage.settings(slot)).config
        assert config.evaluation.split == "val"
        assert (config.train.lr, config.train.clip) == tuple(cell.tuned.values())


def test_each_arm_gets_its_own_best_point():
    sweep = make(TUNED)
    best = {("imvideoedit", "0.002 1.0"): 3.0, ("imvideoedit", "0.001 0.0"): 2.0, ("narrow", "0.001 1.0"): 1.0}
    found = results(sweep, best)
    assert choose(sweep, found) == {
        "imvideoedit": {"train.lr": 2e-3, "train.clip": 1.0},
        "narrow": {"train.lr": 1e-3, "train.clip": 1.0},
    }
    final = build_stage(sweep, FINAL, {TUNE: found}.__getitem__)
    chosen = {cell.arm: compose(final.settings(slot)).config.train for slot, cell in enumerate(final.cells or ())}
    assert chosen["imvideoedit"].lr == 2e-3 and chosen["narrow"].lr == 1e-3
    assert all(compose(final.settings(slot)).config.evaluation.split == "test" for slot in range(final.n_trials))


def test_a_best_value_at_the_end_of_what_was_tried_is_pointed_out():
    sweep = make(TUNED, "tune.space={train.lr: [1e-3, 4e-3, 2e-3], train.clip: [0, 1]}")
    points = {"imvideoedit": {"train.lr": 4e-3, "train.clip": 1.0}, "narrow": {"train.lr": 2e-3, "train.clip": 0.0}}
    assert plan.at_the_edge(sweep, points) == ["imvideoedit train.lr=0.004"]  # of two values each is an end


def test_the_direction_of_the_tuning_objective_counts():
    sweep = make(TUNED, "tune.objective={val/loss: minimize}")
    found = results(sweep, {("narrow", "0.002 0.0"): -1.0})
    assert choose(sweep, found)["narrow"] == {"train.lr": 2e-3, "train.clip": 0.0}
    assert choose(sweep, found)["imvideoedit"] == {"train.lr": 1e-3, "train.clip": 0.0}  # all equal: the first


def test_a_point_that_failed_with_one_seed_is_not_chosen():
    sweep = make(TUNED)
    found = results(sweep, {("narrow", "0.001 0.0"): 9.0, ("narrow", "0.002 1.0"): 1.0})
    at = next(i for i, r in enumerate(found) if r.cell and r.cell.arm == "narrow" and r.values == (9.0,))
    found[at] = dataclasses.replace(found[at], state="FAIL", values=None)
    assert choose(sweep, found)["narrow"] == {"train.lr": 2e-3, "train.clip": 1.0}


def test_an_arm_without_any_good_run_ends_the_sweep_in_plain_words():
    sweep = make(TUNED)
    points = ("0.001 0.0", "0.001 1.0", "0.002 0.0", "0.002 1.0")
    found = results(sweep, {("narrow", point): None for point in points})
    with pytest.raises(IveditError, match="arm narrow: no run of stage tune ended well"):
        choose(sweep, found)


def test_the_final_stage_waits_for_the_whole_tuning_stage():
    sweep = make(TUNED)
    found = results(sweep, {})
    found[3] = dataclasses.replace(found[3], state="RUNNING", values=None)
    with pytest.raises(IveditError, match="stage tune has not ended: 15 of 16"):
        build_stage(sweep, FINAL, {TUNE: found}.__getitem__)


def test_a_search_has_numbered_slots_whose_folders_do_not_depend_on_what_is_drawn():
    sweep = make(SEARCH_FILE)
    stage = build_stage(sweep, SEARCH, lambda _: ())
    assert stage.cells is None and stage.n_trials == 6 and stages(sweep) == [SEARCH]
    assert stage.space == {
        "train.lr": Range(1e-4, 1e-2, log=True), "editor.width": Range(64, 256, step=64, whole=True),
        "editor.gate": Choice(("text", "none")),
    }  # fmt: skip
    drawn = {"train.lr": 3e-3, "editor.width": 128, "editor.gate": "none"}
    config = compose(stage.settings(4, drawn)).config
    assert (config.train.lr, config.editor.width, config.editor.gate, config.name) == (3e-3, 128, "none", "mine-0004")
    assert stage.folder_name(4) == "search-0004-trial"


def test_a_whole_grid_search_counts_its_points():
    content = SEARCH_FILE | {"sampler": {"name": "grid"}, "n_trials": None, "prior": []}
    sweep = make(content, "space.train.lr=[1e-3,2e-3]")
    assert build_stage(sweep, SEARCH, lambda _: ()).n_trials == 2 * 4 * 2


# -- files and command line ----------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file_and_adds_settings():
    own = ("workers=3", "name=other", "output_dir=out")
    sweep = make(GRID, "train.max_steps=7", "data.pairs=64", *own, "train.batch_size=8")
    assert sweep.folder == Path("out/other") and sweep.workers == 3
    assert "train.max_steps=7" in sweep.settings and "train.max_steps=5" not in sweep.settings
    assert "evaluation.clips=9" in sweep.settings and "data.pairs=64" in sweep.settings


def test_entries_of_tables_are_added_and_taken_out():
    sweep = make(
        SEARCH_FILE, "space.editor.every=[1,2]", "space.editor.gate=null", "sampler.options.n_startup_trials=3",
        "pruner.options.n_warmup_steps=9", "slurm.partition=gpu",
    )  # fmt: skip
    assert list(sweep.space) == ["train.lr", "editor.width", "editor.every"]
    assert sweep.sampler.options == {"n_startup_trials": 3}
    assert sweep.pruner is not None and sweep.pruner.options == {"n_warmup_steps": 9}
    assert sweep.slurm == {"partition": "gpu"}


def test_tune_can_be_left_out_and_arms_chosen():
    sweep = make(TUNED, "tune=null", "arms=[narrow_one: [editor.width=64]]")
    assert sweep.tune is None and [arm.name for arm in sweep.arms] == ["narrow_one"]
    assert sweep.claims == ()  # the file's claim is about arms that were not chosen


def test_experiments_beside_the_sweep_file_are_found_and_stay_found_from_its_folder(tmp_path: Path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "own.yaml").write_text("summary: own\neditor: {width: 64}\n")
    (tmp_path / "files" / "sweep.yaml").write_text("kind: grid\narms: [./own.yaml, imvideoedit]\nname: s\n")
    sweep = resolve(["sweep=./files/sweep.yaml"])
    keep_definition(sweep)
    again = resolve(["sweep=runs/s"])
    for one in (sweep, again):
        assert [arm.name for arm in one.arms] == ["own", "imvideoedit"]
        assert compose(one.arms[0].settings).config.editor.width == 64
    assert again.arms == sweep.arms


@pytest.mark.parametrize("content", [GRID, TUNED, SEARCH_FILE])
def test_the_kept_sweep_file_reads_back_to_the_same_sweep(content: dict[str, Any]):
    sweep = make(content, "storage=postgresql://me@host/db", "train.weight_decay=0.02")
    keep_definition(sweep)
    again = resolve(["sweep=runs/mine"])
    assert dataclasses.replace(again, definition={}) == dataclasses.replace(sweep, definition={})
    assert again.folder == sweep.folder
    assert plan.sweep_yaml(again) == plan.sweep_yaml(sweep)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True),
    widths=st.lists(st.sampled_from([64, 128, 192]), min_size=1, max_size=3, unique=True),
    lr=st.floats(1e-6, 1.0),
    operations=st.lists(st.sampled_from(["add", "remove", "style"]), unique=True, max_size=2),
)
def test_any_grid_reads_back_to_the_same_sweep(seeds: list[int], widths: list[int], lr: float, operations: list[str]):
    content = {
        "kind": "grid", "seeds": seeds, "arms": [{f"w{width}": {"editor": {"width": width}}} for width in widths],
        "settings": {"train.lr": lr, "data.operations": operations},
    }  # fmt: skip
    sweep = make(content)
    Path("again.yaml").write_text(plan.sweep_yaml(sweep), encoding="utf-8")
    again = resolve(["sweep=./again.yaml"])
    assert dataclasses.replace(again, definition={}) == dataclasses.replace(sweep, definition={})
    stage = build_stage(sweep, FINAL, lambda _: ())
    assert stage.study == build_stage(again, FINAL, lambda _: ()).study
    for slot, cell in enumerate(stage.cells or ()):
        config = compose(stage.settings(slot)).config
        assert (config.train.lr, config.data.operations, config.seed) == (lr, operations, cell.seed)


def test_a_password_is_not_kept_in_the_folder():
    sweep = make(GRID, "storage=postgresql://me:secret@host/db")
    assert sweep.storage == "postgresql://me:secret@host/db"
    keep_definition(sweep)
    assert not any(b"secret" in path.read_bytes() for path in Path("runs").rglob("*") if path.is_file())
    assert resolve(["sweep=runs/mine"]).storage == "postgresql://me@host/db"  # PGPASSWORD or ~/.pgpass has it


def test_the_folder_of_a_started_sweep_stands_for_it_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sweep = make(GRID, "output_dir=here/and", "tracking.experiment=007")
    keep_definition(sweep)
    assert resolve(["sweep=here/and/mine"]).folder == Path("here/and/mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = resolve([f"sweep={tmp_path}/here/and/mine"])
    assert again.folder == tmp_path / "here/and/mine"
    assert again.experiment == sweep.experiment == "007"
    keep_definition(again)
    assert resolve([f"sweep={tmp_path}/here/and/mine", "output_dir=new"]).folder == Path("new/mine")


# -- when two sweeps are the same one --------------------------------------------------------------------------------

SAME = (
    ["seeds=[0,1,2,3]"], ["workers=4", "retries=5", "trials_per_gpu=2"], ["train.accelerator=cpu", "train.threads=1"],
    ["storage=sqlite:///s.db"], ["claims=[]"], ["tracking.kind=none"], ["evaluation.strips=0"],
)  # fmt: skip
OTHER = {
    "a setting": (["train.max_steps=6"], "train.max_steps: 5 -> 6"),
    "a new setting": (["train.lr=0.1"], "train.lr: 0.002 -> 0.1"),
    "an arm": (["arms=[imvideoedit]"], "arms.narrow"),
    "a seed taken away": (["seeds=[0,1]"], "seeds: [0, 1, 2] -> [0, 1]; seeds can only be appended"),
    "seeds in another order": (["seeds=[2,1,0]"], "seeds can only be appended"),
    "the objective": (["objectives={edited_psnr: maximize}"], "objectives.edited_psnr: new, maximize"),
}


@pytest.mark.parametrize("arguments", SAME, ids=" ".join)
def test_how_a_sweep_is_run_may_change(arguments: list[str]):
    keep_definition(make(GRID))
    keep_definition(make(GRID, *arguments))


@pytest.mark.parametrize("what", OTHER)
def test_what_a_sweep_is_may_not_change_under_the_same_name(what: str):
    arguments, said = OTHER[what]
    keep_definition(make(GRID))
    kept = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as refused:
        keep_definition(make(GRID, *arguments))
    assert len(refused.value.problems) == 1
    message = refused.value.problems[0]
    assert said in message and "name=NEW" in message and "restore" in message
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == kept
    keep_definition(make(GRID, *arguments, "name=new"))


def test_a_changed_experiment_file_is_a_changed_sweep(tmp_path: Path):
    (tmp_path / "own.yaml").write_text("editor: {width: 64}\n")
    content = {"kind": "grid", "arms": ["./own.yaml"]}
    keep_definition(make(content))
    (tmp_path / "own.yaml").write_text("editor: {width: 128}\n")
    with pytest.raises(ConfigError, match=r"arms\.own\.editor\.width: 64 -> 128"):
        keep_definition(make(content))


def test_a_changed_space_is_named_and_raising_n_trials_is_no_change():
    keep_definition(make(SEARCH_FILE))
    keep_definition(make(SEARCH_FILE, "n_trials=9", "sampler.name=random", "pruner.name=none"))
    with pytest.raises(ConfigError, match=r"space\.train\.lr\.high: 0\.01 -> 0\.1"):
        keep_definition(make(SEARCH_FILE, "space.train.lr={low: 1e-4, high: 0.1, log: true}"))
    with pytest.raises(ConfigError, match="stage final: new; stage search: gone"):
        keep_definition(make(GRID))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seeds=[0,5,2]"], "slot 2: imvideoedit-seed1 -> imvideoedit-seed5"),
        (["train.max_steps=6"], "train.max_steps: 5 -> 6"),
    ],
)
def test_machines_without_a_common_folder_cannot_mix_two_sweeps_in_one_storage(arguments: list[str], said: str):
    from ivedit.sweeping.study import StudyStore

    def store(sweep: Sweep) -> StudyStore:
        return StudyStore(build_stage(sweep, FINAL, lambda _: ()), "shared.journal", sweep.folder)

    store(make(GRID, "output_dir=one")).prepare()
    store(make(GRID, "output_dir=two", "seeds=[0,1,2,3]")).prepare()
    with pytest.raises(ConfigError) as refused:
        store(make(GRID, "output_dir=two", *arguments)).prepare()
    assert said in str(refused.value) and "shared.journal" in str(refused.value) and "name=NEW" in str(refused.value)


def test_a_damaged_record_is_no_permission_to_start_over(tmp_path: Path):
    keep_definition(make(GRID))
    (tmp_path / "runs" / "mine" / "definitions.json").write_text("{")
    with pytest.raises(IveditError, match=r"cannot read runs/mine/definitions\.json"):
        keep_definition(make(GRID))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(IveditError, match=r"cannot write the sweep's folder runs/mine \(output_dir\)"):
        keep_definition(make(GRID))


# -- ranges --------------------------------------------------------------------------------------------------------


@given(low=st.integers(-50, 50), width=st.integers(1, 60), step=st.integers(1, 60), whole=st.booleans())
def test_a_stepped_range_holds_exactly_its_values(low: int, width: int, step: int, whole: bool):
    space = Range(low, low + width, step=step, whole=whole)
    values = space.values()
    assert values is not None and values[0] == low and values[-1] <= low + width < values[-1] + step
    assert all(space.contains(value) for value in values)
    assert not space.contains(low - step) and not space.contains(values[-1] + step)
    assert step == 1 or not space.contains(low + random.Random(low).randint(1, step - 1))


def test_a_range_without_steps_has_no_end_and_whole_numbers_do():
    assert Range(0.0, 1.0).values() is None and Range(1, 8, log=True, whole=True).values() is None
    assert Range(1, 3, whole=True).values() == (1, 2, 3)
    assert not Range(1, 3, whole=True).contains(1.5) and not Range(0, 1).contains(True)
    assert Choice((True, "a")).contains(True) and not Choice((True, "a")).contains(1)


@given(st.dictionaries(st.text(min_size=1), st.one_of(st.integers(), st.text(), st.lists(st.integers()))))
def test_the_hash_of_a_definition_forgets_the_order_and_nothing_else(definition: dict[str, Any]):
    backwards = dict(reversed(definition.items()))
    assert definition_hash(backwards) == definition_hash(definition)
    assert definition_hash({**definition, "more": 1.5}) != definition_hash(definition)
    assert changes(definition, backwards) == []
    assert len(changes(definition, {**definition, "more": 1.5})) == 1
