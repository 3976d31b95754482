"""One part on the device at a time: the same numbers, moves in the order of use, tied and own weights come home."""

import itertools

import pytest
import torch
from torch import nn

from ivedit.backbone.offload import Offload
from ivedit.config.schema import EditorConfig
from ivedit.editor import build_editor
from ivedit.pipeline import IVEditPipeline
from tests.backbone.tiny import tiny_backbone


def test_editing_with_offload_gives_the_same_pixels_and_moves_each_part_when_it_is_used():
    plain, small = tiny_backbone(), tiny_backbone()
    editor = build_editor(EditorConfig(width=24), plain)
    with torch.no_grad():
        for weight in editor.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    small.offload_to("cpu")
    clip = torch.rand(1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"steps": 2, "guidance": 2.0, "seeds": 3}
    expected = IVEditPipeline(plain, editor)(clip, "remove the star", **options)
    assert torch.equal(IVEditPipeline(small, editor)(clip, "remove the star", **options), expected)
    parts = ["vae", "text_encoder", "transformer", "vae"]
    moves = [("vae", "in")]
    for before, after in itertools.pairwise(parts):
        moves += [(before, "out"), (after, "in")]
    assert small.offload is not None and small.offload.moves == moves


def test_looking_at_weights_moves_nothing():
    backbone = tiny_backbone()
    backbone.offload_to("cpu")
    backbone.fingerprint()
    build_editor(EditorConfig(width=24), backbone)
    assert backbone.offload is not None and backbone.offload.moves == []


class Copies(Offload):
    """A device with memory of its own, on the CPU."""

    def copy(self, home):
        return home.clone()


def test_weights_are_copied_to_the_device_and_a_part_that_goes_leaves_nothing_there():
    one, two = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    tied = nn.Linear(3, 3)
    tied.weight = two[0].weight
    two.append(tied)
    tensors = {"one": [*one.parameters()], "two": [*two.parameters(), *two.buffers()]}
    home = {name: [t.data_ptr() for t in held] for name, held in tensors.items()}
    before = {name: value.clone() for name, value in two.state_dict().items()}
    offload = Copies({"one": one, "two": two}, "cpu")

    def at_home(name):
        return [t.data_ptr() == place for t, place in zip(tensors[name], home[name], strict=True)]

    offload.use("two")
    assert all(at_home("one")) and not any(at_home("two")) and offload.here == "two"
    assert two[2].weight.data_ptr() == two[0].weight.data_ptr()
    offload.use("two")
    offload.use("one")
    assert not any(at_home("one")) and all(at_home("two"))
    assert offload.moves == [("two", "in"), ("two", "out"), ("one", "in")]
    assert all(torch.equal(value, before[name]) for name, value in two.state_dict().items())
    with pytest.raises(KeyError):
        offload.use("three")


@pytest.mark.gpu
def test_only_one_part_lies_on_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions as on the CPU, not to three digits
    backbone = tiny_backbone()
    backbone.offload_to("cuda")
    clip = torch.rand(1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    result = IVEditPipeline(backbone)(clip, "remove the star", steps=1)
    places = {name: next(getattr(backbone, name).parameters()).device.type for name in ("transformer", "vae")}
    assert result.device.type == "cuda" and places == {"transformer": "cpu", "vae": "cuda"}
    torch.testing.assert_close(
        result.cpu(), IVEditPipeline(tiny_backbone())(clip, "remove the star", steps=1), atol=1e-3, rtol=0
    )
