"""The settings of evaluation and of a judge.

See `ivedit.config.schema`, which puts the sections together; nothing heavy is imported here either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ivedit.config.declare import declare

__all__ = ["EvaluationConfig", "JudgeConfig"]

_f = declare


@dataclass
class EvaluationConfig:
    """What is measured at the end of a run, on held-out videos."""

    enabled: bool = _f(True, "Evaluate after training.")
    split: str = _f(
        "test", "Sprites split of the clips.",
        choices=("val", "test", "test_combination", "test_phrasing", "test_three"),
    )
    clips: int = _f(240, "Held-out clips, equal numbers per operation.", min=1)
    frames: int = _f(17, "Frames of a clip.", min=1)
    batch_size: int = _f(16, "Clips sampled at once.", min=1)
    controls: list[str] = _f(
        ["source_copy", "frozen", "vae_ceiling"], "Control rows: source_copy, frozen, vae_ceiling, still_clip."
    )
    editors: dict[str, str] = _f(
        {}, "More trained editors to show as rows, {row name: safetensors file or run folder or `shipped`}."
    )
    triage: bool = _f(True, "Also score training pairs and held-out pairs as single frames.")
    triage_pairs: int = _f(90, "Pairs in each triage row.", min=1)
    gate_maps: bool = _f(True, "Score the gate against the true mask and draw it.")
    strips: int = _f(9, "Film strips and mp4s to write.", min=0)
    bootstrap: int = _f(2000, "Resamples for the 95% intervals over clips.", min=100)
    edited_db: float = _f(16.0, "Edit success: edited region above this PSNR (dB) ...")
    kept_db: float = _f(20.0, "... and kept region above this one.")
    save_edits: bool = _f(
        False,
        "Keep edits, sources, true edits and masks as lossless mp4s in the run folder's edits/, with the manifest that "
        "`python -m ivedit.evaluate` reads; a judge needs them and keeps them itself.",
    )
    weights: dict[str, str] = _f(
        {},
        "Weights for metrics that need some: folders in transformers' layout, {clip: FOLDER, dino: FOLDER, pickscore: "
        "FOLDER}, and torchvision's own files, {lpips: FILE, raft: FILE}; a metric without its weights is skipped and "
        "never fetches any.",
    )
    sha256: dict[str, str] = _f(
        {}, "Expected sha256 of such weights, {clip: HEX}, as a table's footer shows it; other weights are refused."
    )


@dataclass
class JudgeConfig:
    """A vision-language model that scores edits (see docs/judge.md)."""

    backend: str = _f(
        "none",
        "Who judges. http: a server that speaks chat completions (vLLM, llama.cpp, Ollama, hosted); local: a model in "
        "a folder; replay: a stored record, which asks nobody.",
        choices=("none", "http", "local", "replay"),
    )
    base_url: Optional[str] = _f(None, "http: the server's address up to its version, such as http://HOST:8000/v1.")
    model: Optional[str] = _f(None, "http: the name that the server knows the model by. replay: whose replies.")
    path: Optional[str] = _f(None, "local: folder of the model, in transformers' layout. replay: the record.")
    returned_model: Optional[str] = _f(
        None, "http: the name that the server answers with, where it is neither judge.model nor that with a date."
    )
    key_env: Optional[str] = _f(None, "http: name of the environment variable that holds the key; null: none is sent.")
    request: dict[str, str] = _f(
        {},
        "http: further fields of the request, each as JSON; null leaves a field out that would be sent: "
        "{max_completion_tokens: 2048, max_tokens: 'null'}.",
    )
    metrics: list[str] = _f(
        ["IA", "TC", "VF", "AA"],
        "What is asked: IA instruction adherence, TC temporal consistency, VF visual fidelity, AA aesthetic appeal; "
        "OVE: the three questions of OpenVE-Bench with their cap.",
    )
    pairwise: list[str] = _f(
        [], "Ask also which of two methods' edits is better, in both orders, in these of IA, TC, VF, AA."
    )
    repeats: int = _f(5, "Times each question is asked; averaged inside a clip.", min=1)
    seed: int = _f(0, "Seed of the first repeat; the others follow. Also of the order of the clips.", min=0)
    temperature: float = _f(0.7, "Of the judge's sampling.", min=0, max=2)
    top_p: float = _f(1.0, "Nucleus of the judge's sampling.", above=0, max=1)
    max_tokens: int = _f(1024, "Longest answer.", min=64)
    frames: int = _f(8, "Moments shown of a clip, and frames of each of the two windows for TC.", min=2, max=64)
    smallest: int = _f(256, "Smaller frames are shown enlarged by the largest whole factor up to this side.", min=1)
    largest: int = _f(768, "Frames with a longer side above this are shown scaled down to it.", min=16)
    concurrency: int = _f(8, "Questions under way at once.", min=1)
    requests_per_minute: Optional[float] = _f(None, "Calls started in a minute at most; null: no limit.", above=0)
    attempts: int = _f(6, "Calls for one reply at most, with growing pauses or those that the server asks for.", min=1)
    timeout: float = _f(120.0, "http: seconds for one call.", above=0)
    record: Optional[str] = _f(
        None, "File that keeps every reply and finds it again; null: judge.jsonl in the output folder."
    )
    anchors: Optional[str] = _f(
        None, "What the anchors said about this judge (a JSON file of --anchors); null: no metric is proven."
    )
