"""Presets are data: the shipped ones are whole, a user's own are checked, and the page shows what they say."""

import pytest

from ivedit.config.rules import PRESETS
from ivedit.data.preset import load_preset, presets_table
from ivedit.errors import ConfigError
from tests.pages import ROOT


@pytest.mark.parametrize("name", PRESETS)
def test_a_shipped_preset_maps_what_a_pair_needs(name):
    preset = load_preset(name)
    assert {"source", "target", "instruction"} <= set(preset.columns)
    assert preset.summary.endswith(".") and (preset.hub is None or preset.hub.count("/") == 1)


def test_the_page_shows_the_presets_as_they_are():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- presets:start -->\n")[2].partition("<!-- presets:end -->")[0]
    assert shown == presets_table(), "write presets_table() between the marks"


def test_the_pages_own_preset_is_one(tmp_path):
    from tests.pages import files

    files("docs/data.md", tmp_path)
    preset = load_preset(str(tmp_path / "mine.yaml"))
    assert preset.name == "mine" and preset.columns["group"] == "photo_id" and preset.scores == ("quality",)


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        ("hubb: a/b\ncolumns: {sorce: a}\nscores: 3\n", ("did you mean hub", "did you mean source", "a list")),
        ("[1, 2]\n", ("must map",)),
        ("columns: [a]\n", ("must map fields to names",)),
        ("split: 3\n", ("split of", "must be text")),
        ("columns: {\n", ("cannot be read",)),
    ],
)
def test_every_fault_of_a_preset_is_named_at_once(tmp_path, content, problems):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_preset(str(tmp_path / "mine.yaml"))
    assert all(problem in str(caught.value) for problem in problems)
    assert "mine.yaml" in str(caught.value)


def test_presets_that_are_not_there_are_named():
    with pytest.raises(ConfigError, match="did you mean omniedit"):
        load_preset("omniedt")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_preset("./nowhere.yaml")
