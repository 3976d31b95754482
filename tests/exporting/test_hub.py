"""Upload and fetch through a real HTTP server that answers as the hub does; every refusal in one plain line."""

import hashlib

import pytest
import torch

from ivedit.editor import (
    load_editor,
    read_editor_header,
    read_editor_weights,
    resolve_editor_file,
    write_editor,
)
from ivedit.errors import ConfigError, IveditError
from ivedit.exporting import Wishes, export_editor, plan_upload, push
from ivedit.exporting.record import read_run
from tests.exporting.made import make_run

NAME = "anna/blue-circles"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export_editor(read_run(run), tmp_path_factory.mktemp("out") / "blue", Wishes(hub=NAME))


def upload(exported, name=NAME, private=False):
    return push(plan_upload(exported, name, private=private))


def test_what_is_pushed_is_what_was_exported_and_what_is_fetched(hub, exported, wan, run, monkeypatch):
    (exported.folder / "notes.txt").write_text("mine")
    address = upload(exported, private=True)
    (exported.folder / "notes.txt").unlink()
    assert address == f"{hub.address}/{NAME}"
    repository = hub.repositories[NAME]
    assert repository.private and set(repository.files) == set(exported.files)
    for name, content in repository.files.items():
        assert hashlib.sha256((exported.folder / name).read_bytes()).digest() == hashlib.sha256(content).digest()
    assert f'editor="{NAME}"'.encode() in repository.files["README.md"]
    called = [call.split("/")[-2:] for call in hub.calls if call.startswith("POST") and "yaml" not in call]
    assert called == [["repos", "create"], ["preupload", "main"], ["objects", "batch"], ["commit", "main"]]

    loaded = load_editor(NAME, wan[1])
    expected = load_editor(run, wan[1]).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert not [call for call in hub.calls if "README.md" in call or "samples" in call]  # only what is needed
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve_editor_file(NAME).is_file()  # found again without a network


def test_a_second_push_replaces_the_first_and_leaves_no_old_parts(hub, exported, run, tmp_path):
    parts = export_editor(read_run(run), tmp_path / "parts", Wishes(max_bytes=100_000))
    upload(parts)
    assert "editor.safetensors.index.json" in hub.repositories[NAME].files
    assert resolve_editor_file(NAME).name == "editor.safetensors.index.json"
    upload(exported)
    assert set(hub.repositories[NAME].files) == set(exported.files)
    assert resolve_editor_file(NAME).name == "editor.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no login", "no login for the hub; run `hf auth login` or set HF_TOKEN"),
        ("wrong login", "does not accept this login"),
        ("no rights", "may not write"),
        ("no network", "the upload failed: "),
        ("offline", "offline mode"),
    ],
)
def test_a_refused_upload_is_told_in_one_line_and_sends_nothing(hub, exported, monkeypatch, change, message):
    from huggingface_hub import constants

    if change == "no login":
        monkeypatch.delenv("HF_TOKEN")
    elif change == "wrong login":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    elif change == "no rights":
        hub.readers_only.add("anna")
    elif change == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(IveditError, match=message) as told:
        upload(exported)
    text = str(told.value)
    assert "\n" not in text and f"The export is in {exported.folder}; the same command tries again" in text
    assert "hf_" not in text and not hub.repositories and not hub.objects


def test_a_private_upload_does_not_go_to_a_public_repository(hub, exported):
    upload(exported)
    files, hub.objects = dict(hub.repositories[NAME].files), {}
    with pytest.raises(IveditError, match="exists and is public"):
        upload(exported, private=True)
    assert hub.repositories[NAME].files == files and not hub.objects


def test_without_a_licence_or_with_a_leak_nothing_is_sent(hub, exported, wan, tmp_path):
    real = export_editor(read_run(make_run(tmp_path, *wan, reader="folder")), tmp_path / "out")
    with pytest.raises(ConfigError, match="--push needs --license"):
        upload(real)
    card = exported.folder / "README.md"
    text = card.read_text()
    card.write_text(text + "made in /home/anna/work\n")
    try:
        with pytest.raises(ConfigError, match=r"README.md holds /home/anna/work, which is not to be shown"):
            upload(exported)
    finally:
        card.write_text(text)
    weights = exported.folder / "editor.safetensors"
    before, header = weights.read_bytes(), read_editor_header(weights)
    tensors = read_editor_weights(weights)
    write_editor(weights, tensors, {**header, "extra": {"from": "C:\\Users\\anna\\run"}})
    with pytest.raises(ConfigError, match=r"the header of editor.safetensors holds C:.*anna"):
        upload(exported)
    weights.write_bytes(before)
    assert not hub.calls


def test_a_name_that_the_hub_does_not_have_or_that_holds_no_editor_is_told(hub):
    with pytest.raises(IveditError, match="anna/nothing is no local file or folder, and no editor of that"):
        resolve_editor_file("anna/nothing")
    from tests.hub_stub import Repository

    hub.repositories["anna/other"] = Repository(False, {"model.safetensors": b"x"})
    with pytest.raises(IveditError, match="anna/other on the hub holds no trained editor"):
        resolve_editor_file("anna/other")
