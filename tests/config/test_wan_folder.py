"""A folder that is no Wan text-to-video pipeline is refused before anything heavy is imported or made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ivedit
from ivedit.config import ConfigError, load
from ivedit.config.wan_folder import read_folder
from ivedit.run import main

SHIPPED = Path(ivedit.__file__).parent / "assets" / "wan-sprites"
INDEX, TRANSFORMER = "model_index.json", "transformer/config.json"

UNFIT = {
    "Stable Diffusion": (INDEX, {"_class_name": "StableDiffusionPipeline"}, "is a StableDiffusionPipeline folder"),
    "image-to-video": (INDEX, {"_class_name": "WanImageToVideoPipeline"}, "is a WanImageToVideoPipeline folder"),
    "VACE": (TRANSFORMER, {"_class_name": "WanVACETransformer3DModel"}, "is a WanVACETransformer3DModel"),
    "two experts": (INDEX, {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "second expert"),
    "experts that switch": (INDEX, {"boundary_ratio": 0.875}, "boundary_ratio = 0.875"),
    "other text encoder": (INDEX, {"text_encoder": ["transformers", "CLIPTextModel"]}, "declared as CLIPTextModel"),
    "no vae": ("vae", None, "no vae folder; fetch it again"),
    "no transformer": ("transformer", None, "no transformer folder"),
    "no config of the text encoder": ("text_encoder/config.json", None, "text_encoder/config.json is missing"),
    "empty": (INDEX, None, "give the folder of a diffusers pipeline"),
    "broken JSON": (TRANSFORMER, '{"num_layers": ', "transformer/config.json is not valid JSON"),
    "bytes": (TRANSFORMER, b"\xff\xfe\x00", "transformer/config.json is not valid JSON"),
    "a list": ("vae/config.json", "[]", "vae/config.json holds no JSON object"),
    "a size that is none": (TRANSFORMER, {"num_layers": None}, "num_layers = null is no size"),
    "a channel list": ("vae/config.json", {"dim_mult": 3}, "hold what no Wan pipeline's do"),
    "no shift": ("scheduler/scheduler_config.json", {"shift": None, "flow_shift": None}, "neither `flow_shift` nor"),
    "broken notes": ("ivedit.json", "no", "ivedit.json is not valid JSON"),
}


def copied(to: Path) -> Path:
    """The JSON files of the shipped pipeline, without a weight."""
    return shutil.copytree(SHIPPED, to, ignore=shutil.ignore_patterns("*.safetensors"))


def change(folder: Path, file: str, content: dict | str | bytes | None) -> None:
    path = folder / file
    if content is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif isinstance(content, dict):
        path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_folder_is_refused_by_the_run_and_its_plan_before_a_run_folder_is_made(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    file, content, reason = UNFIT[case]
    change(copied(tmp_path / "other"), file, content)
    for more in ([], ["--plan", "h200"]):
        assert main(["backbone=./other", *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: backbone.path=./other (command line") and reason in line
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_of_a_known_name_is_looked_at_too_and_a_fit_one_needs_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    folder = copied(tmp_path / "wan2.1_1.3b")
    assert load("quickstart", "backbone=wan2.1_1.3b").backbone.path == "wan2.1_1.3b"
    assert read_folder(folder, "it").text_length == read_folder(SHIPPED, "it").text_length
    change(folder, INDEX, {"_class_name": "WanVACEPipeline"})
    with pytest.raises(ConfigError, match="is a WanVACEPipeline folder"):
        load("quickstart", "backbone=wan2.1_1.3b")


def test_what_the_hubs_cache_has_of_a_pipeline_is_looked_at_without_torch(tmp_path: Path):
    def cached(name: str) -> Path:
        place = tmp_path / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("a" * 40)
        return copied(place / "snapshots" / ("a" * 40))

    change(cached("somebody/sd"), INDEX, {"_class_name": "StableDiffusionPipeline"})
    change(cached("somebody/part"), "vae", None)  # a plan may have fetched the configs alone
    asked = """
import sys
from ivedit.config import ConfigError, load
for name in sys.argv[1:]:
    try:
        print(load("quickstart", f"backbone={name}").backbone.path)
    except ConfigError as error:
        print(error)
print("torch" in sys.modules)
"""
    names = ["somebody/sd", "somebody/part", "somebody/else"]
    done = subprocess.run(
        [sys.executable, "-c", asked, *names], env={"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    refused, *passed, torch = done.stdout.splitlines()
    assert "somebody/sd is a StableDiffusionPipeline folder" in refused
    assert passed == ["somebody/part", "somebody/else"] and torch == "False"
