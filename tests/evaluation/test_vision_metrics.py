"""LPIPS and RAFT warp error: the arithmetic against closed forms, the networks against torchvision called by hand.

What needs torchvision is skipped without it; nothing here reads published weights, only random ones that torchvision
made and `torch.save` wrote, as the published files are.
"""

from __future__ import annotations

import hashlib
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ivedit.config.schema import EvaluationConfig
from ivedit.errors import ConfigError
from ivedit.evaluation.metrics import Perceptual, Reference, WarpError, build_metrics, network_flow, skipped_metrics
from ivedit.evaluation.metrics.vision import RaftWarpError

# -- flow by a network that is a formula ---------------------------------------------------------------------------


def slope(shift: float = 0.0, frames: int = 4, size: tuple[int, int] = (64, 96)) -> Tensor:
    """(1, T, 3, H, W): a ramp from left to right of 1/200 a pixel, that moves ``shift`` pixels to the right a frame."""
    x = torch.arange(size[1]).float()
    rows = torch.stack([(x - shift * t + 20) / 200 for t in range(frames)])
    return rows[None, :, None, None].expand(1, frames, 3, *size).contiguous()


def moves_right(pixels: float, height: int, width: int, back: float | None = None):
    """A network that answers how ``slope`` moves, whatever size it sees it at; ``back``: otherwise, backwards."""

    def estimate(first: Tensor, second: Tensor) -> Tensor:
        forwards = float(first.mean()) > float(second.mean())  # the ramp's mean falls as it moves on
        answer = pixels if forwards else -pixels if back is None else back
        assert first.shape == second.shape and first.min() >= -1 and first.max() <= 1
        assert all(side % 8 == 0 and side >= 128 for side in first.shape[-2:])
        flow = torch.zeros(len(first), 2, *first.shape[-2:])
        flow[:, 0] = answer * first.shape[-1] / width
        return flow

    return estimate


class Following(WarpError):
    """Warp error along the flow of such a network."""

    def __init__(self, estimate) -> None:
        super().__init__()
        self.estimate = estimate

    def flow(self, reference: Reference):
        return network_flow(reference.source, self.estimate)


def unmasked(source: Tensor) -> Reference:
    return Reference(source, source, torch.zeros(*source.shape[:2], 1, *source.shape[-2:]))


@pytest.mark.parametrize("size", [(64, 96), (128, 136), (100, 270), (33, 200), (724, 728)])
def test_flow_is_in_pixels_of_the_clip_whatever_size_the_network_sees(size):
    frames = 2 if size[0] > 700 else 4
    flow = network_flow(slope(3, frames, size), moves_right(3, *size))
    assert flow.backward.shape == (1, frames - 1, 2, *size) and flow.visible.shape == (1, frames - 1, 1, *size)
    torch.testing.assert_close(flow.backward[:, :, 0], torch.full((1, frames - 1, *size), -3.0), atol=1e-4, rtol=0)
    assert not flow.backward[:, :, 1].any()


def test_pixels_that_came_from_outside_or_whose_way_back_leads_elsewhere_are_not_visible():
    clip = slope(4)
    seen = network_flow(clip, moves_right(4, 64, 96)).visible
    assert not seen[..., :3].any() and seen[..., 4:].all()  # what came in at the left was not there before
    assert not network_flow(clip, moves_right(4, 64, 96, back=-7)).visible.any()
    # 0.01 (4^2 + 4.5^2) + 0.5 = 0.86 is allowed: half a pixel apart passes, one and a half does not
    assert network_flow(clip, moves_right(4, 64, 96, back=-4.5)).visible[..., 5:].all()
    assert not network_flow(clip, moves_right(4, 64, 96, back=-5.5)).visible.any()


def test_an_edit_that_moves_with_its_source_has_no_error_and_a_frozen_one_that_of_the_way_it_missed():
    clip, metric = slope(4), Following(moves_right(4, 64, 96))
    for edit in (clip, clip * 0.5 + 0.2, slope(4)[:, :1].expand_as(clip).contiguous(), slope(-2)):
        metric.update(edit, unmasked(clip))
        metric.clips[-1] += len(metric.clips)  # four clips, not one four times
    found = metric.per_clip()[1].tolist()
    assert found == pytest.approx([0, 0, 4 / 200, 6 / 200], abs=1e-5)


def test_one_frame_has_no_flow_and_so_no_error():
    flow = network_flow(slope(frames=1), moves_right(0, 64, 96))
    assert flow.backward.shape == (1, 0, 2, 64, 96) and flow.visible.shape == (1, 0, 1, 64, 96)
    metric = Following(moves_right(0, 64, 96))
    metric.update(slope(frames=1), unmasked(slope(frames=1)))
    assert metric.per_clip()[1].isnan().all()


def test_without_torchvision_the_reason_stands_in_the_table(tmp_path: Path, monkeypatch):
    file = tmp_path / "weights.pth"
    torch.save({"x": torch.zeros(1)}, file)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    skipped = skipped_metrics(EvaluationConfig(weights={"lpips": str(file)}))
    assert skipped["lpips"] == skipped["kept_lpips"]
    assert skipped["lpips"] == "skipped (torchvision is not installed: pip install 'ivedit[vision]')"
    assert skipped["raft_warp_error"] == "skipped (no evaluation.weights.raft)"


# -- the networks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision():
    return pytest.importorskip("torchvision", reason="torchvision is not installed: ivedit[vision]")


BACKBONES = ("squeezenet1_1", "alexnet", "vgg16")


@pytest.fixture(scope="module")
def files(torchvision, tmp_path_factory) -> dict[str, Path]:
    """Weights of random networks; alexnet's and vgg16's without their classifiers, which are most of them."""
    place = tmp_path_factory.mktemp("torchvision")
    found = {}
    for name in BACKBONES:
        torch.manual_seed(len(name))
        if name == "squeezenet1_1":
            state = torchvision.models.squeezenet1_1(weights=None).state_dict()
        else:
            with torch.device("meta"):
                network = getattr(torchvision.models, name)(weights=None)
            state = {key: torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else
                     torch.zeros(value.shape) for key, value in network.state_dict().items()
                     if key.startswith("features.")}  # fmt: skip
        torch.save(state, found.setdefault(name, place / f"{name}.pth"))
    for name in ("raft_small", "raft_large"):
        torch.manual_seed(len(name))
        state = getattr(torchvision.models.optical_flow, name)(weights=None).state_dict()
        torch.save(state, found.setdefault(name, place / f"{name}.pth"))
    return found


def noisy(level: float, frames: int = 2, size: int = 64) -> tuple[Tensor, Reference]:
    """A clip with noise of this level, and its reference, whose left half may be edited."""
    draw = torch.Generator().manual_seed(1)
    true = torch.rand(2, frames, 3, size, size, generator=draw)
    mask = torch.zeros(2, frames, 1, size, size)
    mask[..., : size // 2] = 1
    edit = (true + level * torch.randn(true.shape, generator=draw)).clamp(0, 1)
    return edit, Reference(torch.rand(true.shape, generator=draw), true, mask, truth=torch.tensor([True, False]))


@pytest.mark.parametrize("name", BACKBONES)
def test_lpips_of_the_true_edit_is_0_grows_with_noise_and_is_none_without_a_true_edit(files, name):
    found = []
    for level in (0.0, 0.05, 0.15, 0.4):
        metric = Perceptual(files[name])
        metric.update(*noisy(level))
        found.append(metric.per_clip()[1])
    assert found[0][0] == 0 and all(a[0] < b[0] for a, b in pairwise(found))
    assert all(each[1].isnan() for each in found)


def test_lpips_is_that_of_torchmetrics_with_the_same_weights(files, tmp_path, monkeypatch):
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

    # torchmetrics takes a published file that is already there as it is: here, our random one under its name
    place = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(files["squeezenet1_1"].read_bytes())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    edit, reference = noisy(0.2)
    theirs = [
        float(learned_perceptual_image_patch_similarity(a, b, net_type="squeeze", normalize=True))
        for a, b in zip(edit, reference.target, strict=True)
    ]
    metric = Perceptual(files["squeezenet1_1"], kept=True)
    whole = Reference(reference.source, reference.target, torch.zeros_like(reference.mask))
    metric.update(edit, whole)
    assert metric.per_clip()[1].tolist() == pytest.approx(theirs, rel=1e-4)


def test_lpips_by_hand_from_the_features_and_the_heads(torchvision, files):
    import torchmetrics.functional.image as image

    heads = torch.load(Path(image.__file__).parent / "lpips_models" / "alex.pth", "cpu", weights_only=True)
    with torch.device("meta"):
        features = torchvision.models.alexnet(weights=None).features
    state = torch.load(files["alexnet"], weights_only=True)
    features.load_state_dict({k.removeprefix("features."): v for k, v in state.items()}, assign=True)
    edit, reference = noisy(0.2)

    def layers(x: Tensor) -> list[Tensor]:
        x = (2 * x - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor(
            [0.458, 0.448, 0.450]
        ).view(3, 1, 1)
        found = []
        for number, layer in enumerate(features):
            x = layer(x)
            if number in (1, 4, 7, 9, 11):
                found.append(x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt())
        return found

    with torch.no_grad():
        pairs = zip(layers(edit[0]), layers(reference.target[0]), strict=True)
        total = sum(
            ((a - b).square() * heads[f"lin{n}.model.1.weight"].view(1, -1, 1, 1)).sum(dim=1).mean()
            for n, (a, b) in enumerate(pairs)
        )
    metric = Perceptual(files["alexnet"])
    metric.update(edit, reference)
    assert float(metric.per_clip()[1][0]) == pytest.approx(float(total), rel=1e-4)


def test_kept_lpips_sees_the_kept_region_alone(files):
    edit, reference = noisy(0.3)
    true, mask = reference.target, reference.mask
    metric = Perceptual(files["squeezenet1_1"], kept=True)
    for number, clip in enumerate((torch.where(mask, edit, true), torch.where(mask, true, edit), edit)):
        metric.update(clip, Reference(reference.source, true, mask, clips=torch.tensor([0, 1]) + 2 * number))
    found = metric.per_clip()[1].view(3, 2)
    assert not found[0].any()  # ruined inside, and nowhere else
    assert (found[1] > 0).all() and torch.equal(found[1], found[2])
    everywhere = Perceptual(files["squeezenet1_1"], kept=True)
    everywhere.update(edit, Reference(reference.source, true, torch.ones_like(mask, dtype=torch.bool)))
    assert everywhere.per_clip()[1].isnan().all()


def test_frames_that_are_too_small_for_the_backbone_are_refused_in_plain_words(files):
    with pytest.raises(ValueError, match=r"32 pixels or more, got \(16, 16\)"):
        Perceptual(files["squeezenet1_1"]).update(*noisy(0.1, size=16))


@pytest.mark.parametrize("name", ["raft_small", "raft_large"])
def test_raft_of_a_file_is_torchvisions_own(torchvision, files, name):
    network = getattr(torchvision.models.optical_flow, name)(weights=None).eval()
    network.load_state_dict(torch.load(files[name], weights_only=True))
    clip = torch.rand(1, 2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    reference = unmasked(clip)
    found = RaftWarpError(files[name]).flow(reference)
    with torch.no_grad():
        theirs = network(clip[:, 1] * 2 - 1, clip[:, 0] * 2 - 1)[-1]
    torch.testing.assert_close(found.backward[:, 0], theirs, atol=1e-4, rtol=1e-4)
    assert RaftWarpError(files[name]).flow(reference) is found  # once for all rows


def test_metrics_are_there_when_their_files_are_named_and_hold_to_their_sha256(files):
    weights = {"lpips": str(files["squeezenet1_1"]), "raft": str(files["raft_small"])}
    digest = hashlib.sha256(files["raft_small"].read_bytes()).hexdigest()
    there = build_metrics(EvaluationConfig(weights=weights, sha256={"raft": digest}))
    edit, reference = noisy(0.1, size=32)
    for name in ("lpips", "kept_lpips", "raft_warp_error"):
        there[name].update(edit, reference)
    assert there["lpips"].per_clip()[1].isnan().tolist() == [False, True]
    assert there["raft_warp_error"].per_clip()[1].shape == (2,)
    with pytest.raises(ConfigError, match=f"sha256 {digest}"):
        build_metrics(EvaluationConfig(weights=weights, sha256={"raft": "0" * 64}))


def test_a_file_of_something_else_is_one_plain_error(files, tmp_path):
    edit, reference = noisy(0.1, size=32)
    swapped = RaftWarpError(files["squeezenet1_1"]), Perceptual(files["raft_small"])
    for metric, said in zip(swapped, ("none of torchvision's raft_large, raft_small", "alexnet, vgg16"), strict=True):
        with pytest.raises(ConfigError, match=said):
            metric.update(edit, reference)
    (tmp_path / "torn.pth").write_bytes(files["raft_small"].read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"torn\.pth cannot be read"):
        RaftWarpError(tmp_path / "torn.pth").update(edit, reference)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds no weights by name"):
        Perceptual(tmp_path / "list.pth").update(edit, reference)
    torch.save({"features.0.weight": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(ConfigError, match="cannot be read"):  # only tensors are ever unpickled
        Perceptual(tmp_path / "code.pth").update(edit, reference)


def test_safetensors_serve_as_well(files, tmp_path):
    from safetensors.torch import save_file

    save_file(torch.load(files["raft_small"], weights_only=True), tmp_path / "raft.safetensors")
    reference = unmasked(torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    found = [RaftWarpError(file).flow(unmasked(reference.source)) for file in
             (files["raft_small"], tmp_path / "raft.safetensors")]  # fmt: skip
    assert torch.equal(found[0].backward, found[1].backward)
