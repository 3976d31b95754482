"""The shipped experiments do what their names promise, and the pages written from them are up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ivedit import experiments
from ivedit.backbone.published import published, published_config, published_names
from ivedit.config import ConfigError, load, to_dict
from ivedit.config.compose import compose
from ivedit.config.docs import changes, pages
from ivedit.config.help import experiment_summaries

DIFFERS = {
    "ablation_no_gate": {"editor.gate": "none"},
    "ablation_no_predict_update": {"editor.variant": "single_attention"},
    "ablation_plain": {"editor.gate": "none", "editor.variant": "single_attention"},
    "control_gate_without_text": {"editor.gate": "features"},
    "control_gate_shuffled_text": {"text.gate": "shuffled"},
    "control_no_difference": {"editor.difference": False},
    "control_every_2": {"editor.every": 2},
    "control_every_4": {"editor.every": 4},
    "control_no_text_update": {"editor.text_update": False},
    "control_no_copy_path": {"editor.copy_path": False},
    "control_tuned_attention": {"editor.variant": "tuned_attention"},
    "control_joint_source": {"editor.source_attention": "joint"},
    "control_no_token_map": {"editor.mlp": 0},
    "control_adamw": {"train.optimizer": "adamw"},
    "control_even_loss": {"flow.change_share": 0.0},
    "control_target_caption": {"text.target": "target_caption"},
    "control_still_clip": {"evaluation.controls": ["source_copy", "frozen", "vae_ceiling", "still_clip"]},
    "baseline_vifeedit": {"editor.mlp": 0, "editor.variant": "side_by_side", "text.source": "instruction"},
}


def flat(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in to_dict(load(name)).items():
        group = {f"{key}.{leaf}": item for leaf, item in value.items()} if isinstance(value, dict) else {key: value}
        found.update(group)
    return found


def difference(name: str, reference: str) -> dict[str, Any]:
    mine, other = flat(name), flat(reference)
    return {key: mine[key] for key in mine if mine[key] != other[key] and key not in ("name", "summary")}


@pytest.mark.parametrize("name", DIFFERS)
def test_differs_from_the_method_in_exactly_what_its_name_promises(name: str):
    assert difference(name, "imvideoedit") == DIFFERS[name]


@pytest.mark.parametrize("name", ["ablation_no_gate", "ablation_no_predict_update", "ablation_plain"])
def test_a_matched_ablation_only_adds_the_number_of_weights_to_match(name: str):
    assert set(difference(f"{name}_matched", name)) == {"editor.match_parameters"}


def test_every_experiment_that_inherits_from_the_method_has_its_promise_written_here():
    named = {n for n in experiments.names() if n.startswith(("ablation_", "control_", "baseline_"))}
    assert named == set(DIFFERS) | {f"{name}_matched" for name in DIFFERS if name.startswith("ablation_")}


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_is_valid_and_says_in_a_line_what_it_is_for(name: str):
    config = compose([f"experiment={name}"], for_reading=True).config
    assert config.name == name
    assert config.summary == experiment_summaries()[name]
    assert 20 < len(config.summary) < 120
    assert "\n" not in config.summary


PAPER = {"paper_1.3b": "wan2.1_1.3b", "paper_14b": "wan2.1_14b", "paper_5b": "wan2.2_5b"}


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    (tmp_path / "pairs.csv").write_text("source,target,instruction\na.png,b.png,make it red\n")
    return f"data.path={tmp_path}"


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_of_the_papers_size_asks_for_data_and_is_whole_with_it(name: str, pairs: str):
    with pytest.raises(ConfigError) as caught:
        load(name)
    (problem,) = caught.value.problems
    assert problem.startswith(f"data.path: give it, data.path=...; {name} leaves it to you (experiments/paper_1.3b")
    config = load(name, pairs)
    assert (config.data.pairs, config.train.epochs, config.data.height, config.data.width) == (13000, 5, 480, 832)
    assert config.train.batch_size * config.train.accumulate in (16, 32) and config.data.cache == "disk"
    assert config.backbone.path == PAPER[name] and not config.evaluation.enabled
    assert config.editor.width == published(PAPER[name]).editor_width


def test_there_is_an_experiment_of_the_papers_size_for_every_published_backbone():
    assert sorted(PAPER.values()) == sorted(published_names())
    assert set(PAPER) == {name for name in experiments.names() if name.startswith("paper_")}


@pytest.mark.parametrize("name", PAPER)
def test_whatever_the_papers_abstract_does_not_give_is_marked_as_ours(name: str):
    given = {"summary", "defaults", "pairs", "epochs", "path: ???"}
    for line in (experiments.folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].strip()
        if words and not words.endswith(":") and not any(words.startswith(start) for start in given):
            assert "# ours" in line, line


def test_the_experiments_sizes_fit_the_patches_of_their_backbones(pairs: str):
    for name, backbone in PAPER.items():
        config, vae = load(name, pairs), published_config(backbone, "vae")
        step = vae["scale_factor_spatial"] * published_config(backbone, "transformer")["patch_size"][1]
        assert config.data.height % step == 0 and config.data.width % step == 0


def test_the_method_is_what_the_paper_states():
    config = load("imvideoedit")
    assert (config.data.pairs, config.train.epochs) == (13000, 5)
    assert config.evaluation.clips >= 240


def test_quickstart_shows_the_shipped_editor():
    assert "shipped" in load("quickstart").evaluation.editors.values()


def test_what_the_table_says_an_experiment_changes_is_what_it_changes():
    assert changes("ablation_plain") == {"editor.gate": "none", "editor.variant": "single_attention"}
    assert changes("pretrain_vae")["task"] == "pretrain_vae"


@pytest.mark.parametrize("page", [path.name for path in pages()])
def test_generated_pages_are_not_stale(page: str):
    for path, text in pages().items():
        if path.name == page:
            assert path.read_text(encoding="utf-8") == text, f"{path} is stale: run python -m ivedit.config.docs"
