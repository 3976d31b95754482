"""The one sampler on a tiny backbone with random weights."""

import pytest
import torch

from ivedit.config.schema import EditorConfig, TextConfig
from ivedit.editor import build_editor, save_editor
from ivedit.errors import IveditError
from ivedit.flow import build_scheduler, clip_seeds, denoise, draw_noise
from ivedit.pipeline import IVEditPipeline
from tests.backbone.tiny import save_pipeline, tiny_backbone

WORDS = ["make the red circle blue", "remove the star"]


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def editor(backbone):
    """As after some training: its zero-initialised outputs are no longer zero."""
    editor = build_editor(EditorConfig(), backbone)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in editor.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return editor


@pytest.fixture
def pipe(backbone, editor):
    return IVEditPipeline(backbone, editor)


def clips(frames, count=2):
    return torch.rand(count, frames, 3, 16, 16, generator=torch.Generator().manual_seed(frames))


def latents(frames, count=2):
    return torch.randn(count, 4, frames, 4, 4, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("frames", [1, 5])
def test_a_clip_comes_back_edited_in_its_own_shape(pipe, frames):
    pixels = clips(frames)
    edited = pipe(pixels, WORDS, steps=2)
    assert edited.shape == pixels.shape and edited.dtype == torch.float32
    assert edited.min() >= 0 and edited.max() <= 1
    one = pipe(pixels[0], WORDS[0], steps=2)
    assert one.shape == pixels[0].shape
    torch.testing.assert_close(one, edited[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_the_source_is_read_once_whatever_the_steps_and_the_guidance(pipe, steps, guidance, scheduler):
    before = pipe.backbone.source_passes
    pipe.edit_latents(latents(2), WORDS, steps=steps, guidance=guidance, scheduler=scheduler)
    assert pipe.backbone.source_passes == before + 1


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_clips_result_does_not_depend_on_its_neighbours(pipe, guidance):
    source, seeds = latents(2, 3), [5, 6, 7]
    words = [*WORDS, "make the background green"]
    together = pipe.edit_latents(source, words, seeds=seeds, steps=3, guidance=guidance)
    for i in range(3):
        alone = pipe.edit_latents(source[[i]], [words[i]], seeds=[seeds[i]], steps=3, guidance=guidance)
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=0)


def test_one_seed_stands_for_a_seed_for_each_clip(pipe):
    source = latents(1)
    assert torch.equal(
        pipe.edit_latents(source, WORDS, seeds=3, steps=2),
        pipe.edit_latents(source, WORDS, seeds=clip_seeds(3, range(2)), steps=2),
    )
    assert not torch.equal(
        pipe.edit_latents(source, WORDS, seeds=4, steps=2), pipe.edit_latents(source, WORDS, steps=2)
    )


def test_sampling_is_repeatable(pipe):
    assert torch.equal(pipe.edit_latents(latents(2), WORDS, steps=3), pipe.edit_latents(latents(2), WORDS, steps=3))


def test_guidance_moves_away_from_the_result_without_text(pipe):
    source = latents(1)
    plain = pipe.edit_latents(source, WORDS, steps=1)
    without = pipe.edit_latents(source, ["", ""], steps=1)
    guided = pipe.edit_latents(source, WORDS, steps=1, guidance=3.0)
    torch.testing.assert_close(guided, without + 3 * (plain - without), atol=1e-3, rtol=1e-3)


def test_scale_zero_is_the_frozen_backbone_reading_the_instruction(pipe, backbone):
    source = latents(2)
    off = pipe.edit_latents(source, WORDS, steps=3, scale=0.0)
    frozen = IVEditPipeline(backbone).edit_latents(source, WORDS, steps=3)
    torch.testing.assert_close(off, frozen, atol=1e-5, rtol=0)
    assert (pipe.edit_latents(source, WORDS, steps=3) - frozen).abs().max() > 1e-3


def test_the_frozen_backbone_is_plain_text_to_video(backbone):
    captions = ["a red circle", "a blue square"]
    seeds = [1, 2]
    out = IVEditPipeline(backbone).edit_latents(latents(2), WORDS, seeds=seeds, steps=3, target_captions=captions)
    text = backbone.encode_text(captions)
    expected = denoise(
        lambda x, sigma: backbone.velocity(x, sigma, text), draw_noise((4, 2, 4, 4), seeds),
        build_scheduler("euler", backbone.scheduler_config, backbone.spec.shift), 3,
    )
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_the_folders_shift_is_the_default(pipe):
    source = latents(1)
    assert pipe.backbone.spec.shift == 3.0
    assert torch.equal(
        pipe.edit_latents(source, WORDS, steps=3), pipe.edit_latents(source, WORDS, steps=3, shift=3.0)
    )
    assert not torch.equal(
        pipe.edit_latents(source, WORDS, steps=3), pipe.edit_latents(source, WORDS, steps=3, shift=8.0)
    )


def test_texts_go_where_the_settings_send_them(pipe):
    source, other = latents(1), ["make the star green", "remove the circle"]
    base = pipe.edit_latents(source, WORDS, steps=2)

    def run(text, **more):
        return pipe.edit_latents(source, WORDS, steps=2, text=text, **more)

    assert torch.equal(base, run(TextConfig()))
    assert not torch.equal(base, run(TextConfig(source="instruction")))
    assert not torch.equal(base, run(TextConfig(gate="shuffled"), gate_instructions=other))
    assert not torch.equal(base, run(TextConfig(target="target_caption"), target_captions=other))
    with pytest.raises(IveditError, match="gate_instructions"):
        run(TextConfig(gate="shuffled"))
    with pytest.raises(IveditError, match="target_captions"):
        run(TextConfig(target="target_caption"))


def test_a_start_below_the_end_of_the_noise_keeps_the_latents_in_view(pipe):
    truth = latents(2)
    near = pipe.edit_latents(truth, WORDS, steps=4, start=(truth, 0.02))
    far = pipe.edit_latents(truth, WORDS, steps=4, start=(truth, 1.0))
    assert (near - truth).abs().mean() < 0.2 * (far - truth).abs().mean()
    assert torch.equal(far, pipe.edit_latents(truth, WORDS, steps=4))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (torch.rand(3, 3, 16, 16), "frames"),
        (torch.rand(1, 3, 16, 18), "divide"),
        (torch.rand(1, 1, 16, 16), r"must be \(T, 3, H, W\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "divide by 255"),
    ],
)
def test_pixels_that_cannot_be_edited_are_refused(pipe, pixels, words):
    with pytest.raises(IveditError, match=words):
        pipe(pixels, WORDS[0], steps=1)


def test_numbers_of_clips_texts_and_seeds_must_match(pipe):
    with pytest.raises(IveditError, match="2 clips need 2 instructions, not 1"):
        pipe.edit_latents(latents(1), WORDS[:1], steps=1)
    with pytest.raises(IveditError, match="2 clips need 2 seeds, not 3"):
        pipe.edit_latents(latents(1), WORDS, seeds=[1, 2, 3], steps=1)


def test_it_loads_from_a_folder_and_an_editor_file(tmp_path, backbone, editor):
    folder = save_pipeline(tmp_path / "wan")
    save_editor(tmp_path / "editor.safetensors", editor, backbone=backbone)
    pipe = IVEditPipeline.from_pretrained(folder, tmp_path / "editor.safetensors")
    expected = IVEditPipeline(backbone, editor)
    source = latents(2)
    torch.testing.assert_close(
        pipe.edit_latents(source, WORDS, steps=2), expected.edit_latents(source, WORDS, steps=2), atol=1e-5, rtol=0
    )
    assert IVEditPipeline.from_pretrained(folder).editor is None


@pytest.mark.parametrize("variant", ["predict_update", "side_by_side"])
def test_scale_zero_is_exactly_the_frozen_backbone_and_reads_no_source(backbone, variant):
    pipe = IVEditPipeline(backbone, build_editor(EditorConfig(variant=variant, width=24), backbone))
    source, before = latents(2), backbone.source_passes
    off = pipe.edit_latents(source, WORDS, steps=2, guidance=2.0, scale=0.0)
    assert torch.equal(off, IVEditPipeline(backbone).edit_latents(source, WORDS, steps=2, guidance=2.0))
    assert backbone.source_passes == before


def test_texts_are_encoded_once_for_all_windows_and_anew_for_other_words(pipe, backbone, monkeypatch):
    encoded, encode = [], backbone.encode_text
    monkeypatch.setattr(backbone, "encode_text", lambda texts: encoded.append(texts) or encode(texts))
    source = latents(1, 1)
    first = pipe.edit_latents(source, WORDS[:1], steps=1)
    again = pipe.edit_latents(source, WORDS[:1], steps=1)
    pipe.edit_latents(source, WORDS[1:], steps=1)
    assert torch.equal(first, again) and [texts[0] for texts in encoded] == [WORDS[0], WORDS[1]]


def test_an_editor_of_another_backbone_is_refused_in_one_plain_line(tmp_path, editor, backbone):
    folder = save_pipeline(tmp_path / "wan", heads=1)
    file = save_editor(tmp_path / "editor.safetensors", editor, backbone=backbone)
    with pytest.raises(IveditError, match=r"other shapes.*width 48 \(here 24\)"):
        IVEditPipeline.from_pretrained(folder, file)
    other = save_pipeline(tmp_path / "same-shapes", seed=5)
    with pytest.raises(IveditError, match=r"other weights \(fingerprint \w{12}, here \w{12}\)"):
        IVEditPipeline.from_pretrained(other, file)
    with pytest.warns(UserWarning, match="results may be poor"):
        assert IVEditPipeline.from_pretrained(other, file, any_weights=True).editor is not None


def test_offload_and_tiling_are_asked_for_where_it_is_loaded(tmp_path, editor, backbone):
    folder = save_pipeline(tmp_path / "wan")
    file = save_editor(tmp_path / "editor.safetensors", editor, backbone=backbone)
    plain = IVEditPipeline.from_pretrained(folder, file)
    small = IVEditPipeline.from_pretrained(folder, file, offload=True, vae_tiling=True)
    assert plain.backbone.offload is None and not plain.backbone.vae.use_tiling
    assert torch.equal(small(clips(1, 1), WORDS[:1], steps=1), plain(clips(1, 1), WORDS[:1], steps=1))
    assert [part for part, way in small.backbone.offload.moves if way == "in"] == [
        "vae", "text_encoder", "transformer", "vae",
    ]  # fmt: skip
    # Tiles are seamless enough, and frames larger than a tile go through them in parts.
    large = torch.rand(1, 1, 3, 16, 272, generator=torch.Generator().manual_seed(0))
    whole, tiled = (pipe.backbone.encode_pixels(large) for pipe in (plain, small))
    assert whole.shape == tiled.shape and 0 < (whole - tiled).abs().mean() < 0.2 * whole.abs().mean()
