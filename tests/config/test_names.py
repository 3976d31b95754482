"""The names that the configuration knows without importing anything heavy are the names that exist."""

from __future__ import annotations

from ivedit.config import rules as check


def test_variants():
    from ivedit.editor import VARIANTS

    shipped = [name for name in VARIANTS.names() if VARIANTS.get(name).__module__.startswith("ivedit.")]
    assert sorted(shipped) == sorted(check.VARIANTS)


def test_readers():
    from ivedit.data import folder, sets, sprites  # noqa: F401  (they register themselves)
    from ivedit.data.record import readers

    shipped = [name for name in readers.names() if readers.get(name).__module__.startswith("ivedit.")]
    assert sorted(shipped) == sorted(check.READERS)


def test_operations():
    from ivedit.sprites import OPERATIONS

    assert set(check.OPERATIONS) == set(OPERATIONS)


def test_controls():
    from ivedit.evaluation.rows import CONTROLS

    assert set(check.CONTROLS) == set(CONTROLS)


def test_fields_of_a_pair():
    from ivedit.data.table import OPTIONAL, REQUIRED

    assert set(check.PAIR_FIELDS) == {*REQUIRED, *OPTIONAL}


def test_length_of_a_sprite_clip():
    from ivedit.sprites.vocabulary import FRAMES

    assert check.CLIP_FRAMES == FRAMES


def test_text_length_that_the_help_gives_for_the_shipped_pipeline():
    import json
    from pathlib import Path

    import ivedit
    from ivedit.config.fields import fields

    folder = Path(ivedit.__file__).parent / "assets" / "wan-sprites"
    length = json.loads((folder / "ivedit.json").read_text())["text_length"]
    assert f"({length} in wan-sprites)" in fields()["text.length"].help


def test_backbones():
    from ivedit.backbone.published import published_names

    assert list(check.BACKBONES) == ["wan-sprites", *published_names()]


def test_presets():
    from ivedit.data.preset import FOLDER

    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(check.PRESETS)
