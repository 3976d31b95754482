"""One tiny backbone and one finished run for all tests of exports; a hub of their own for each that needs one."""

from __future__ import annotations

import pytest

from tests import hub_stub
from tests.exporting.made import make_backbone, make_run


@pytest.fixture(scope="package")
def wan(tmp_path_factory):
    """(folder, Backbone)."""
    return make_backbone(tmp_path_factory.mktemp("wan") / "Wan-tiny")


@pytest.fixture(scope="package")
def run(wan, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("work"), *wan)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that this process uses, logged in."""
    from huggingface_hub import constants

    with hub_stub.running() as hub:
        monkeypatch.setenv("HF_TOKEN", hub_stub.TOKEN)
        for name, value in (
            ("ENDPOINT", hub.address),
            ("HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"),
            ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True), ("HF_HUB_CACHE", str(tmp_path / "cache")),
            ("HF_TOKEN_PATH", str(tmp_path / "no-token")),
        ):  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        yield hub
