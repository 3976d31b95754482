"""Every setting of ivedit, declared once: name, type, default, range and meaning.

The text beside a field is what ``--help`` prints, what the CLI reference in ``docs/`` shows and what an error
message quotes. Nothing heavy is imported here: the whole configuration layer answers in a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ivedit.config.declare import declare
from ivedit.config.schema_data import DataConfig
from ivedit.config.schema_evaluation import EvaluationConfig, JudgeConfig

__all__ = [
    "BackboneConfig",
    "Config",
    "DataConfig",
    "EditorConfig",
    "EvaluationConfig",
    "FlowConfig",
    "JudgeConfig",
    "PretrainConfig",
    "SamplingConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainConfig",
    "declare",
]

_f = declare


@dataclass
class BackboneConfig:
    """The frozen text-to-video diffusion transformer."""

    path: str = _f(
        "wan-sprites",
        "wan-sprites (the tiny one that ships with the package), wan2.1_1.3b, wan2.1_14b, wan2.2_5b, or the folder or "
        "hub name of any Wan text-to-video pipeline in diffusers' layout. `backbone=NAME` says the same.",
    )
    dtype: str = _f(
        "auto",
        "Storage type of the frozen weights. auto: bfloat16 on a GPU, float32 on a CPU.",
        choices=("auto", "float32", "bfloat16"),
    )
    gradient_checkpointing: bool = _f(
        False, "Recompute each frozen block in the backward pass: less memory, about a third more time."
    )


@dataclass
class EditorConfig:
    """The trained 2D edit modules, one per chosen block (see docs/method.md)."""

    variant: str = _f(
        "predict_update",
        "Which family of edit module (a registry name): predict_update, single_attention, side_by_side, "
        "tuned_attention, or one from `plugins`.",
    )
    width: Optional[int] = _f(
        None, "Inner width r of every module attention; null: the backbone's own width C.", min=8
    )
    every: int = _f(1, "A module in every n-th block (1: in all).", min=1)
    rounds: int = _f(1, "Predict, difference, update and gate this many times inside a block.", min=1, max=8)
    difference: bool = _f(
        True, "Update from the difference d = p - Wd x; false: from the prediction p itself (a control)."
    )
    text_update: bool = _f(
        True,
        "Text tokens join the keys and values of the Update attention (of the single attention without "
        "predict-update), so that the instruction can write and not only attenuate.",
    )
    copy_path: bool = _f(
        True, "An ungated, zero-initialised copy path beside the gated edit path, so that the gate can become a mask."
    )
    gate: str = _f(
        "text",
        "text: from features and instruction; features: without text; none: g = 1 everywhere.",
        choices=("text", "features", "none"),
    )
    gate_grain: str = _f(
        "channel", "One gate value per token and channel, per token and head, or per token.",
        choices=("channel", "head", "token"),
    )
    source_attention: str = _f(
        "per_frame",
        "How the source stream attends over a clip's frames. per_frame: as in training, where there is one frame.",
        choices=("per_frame", "joint"),
    )
    mlp: int = _f(
        0,
        "Hidden width of a per-token map of target and source features beside the update, inside the gate; 0: none. "
        "The parameter-matched ablations owe their gain to one.",
        min=0,
    )
    rank: int = _f(32, "Rank of the low-rank weights (side_by_side and tuned_attention).", min=1)
    match_parameters: Optional[int] = _f(
        None,
        "Widen the modules to about this many trained weights (parameter-matched ablations); null: leave as is.",
        min=1,
    )


@dataclass
class TextConfig:
    """Which words go where."""

    target: str = _f(
        "instruction", "What the frozen cross-attention of the target stream reads.",
        choices=("instruction", "target_caption"),
    )
    gate: str = _f(
        "instruction",
        "What the edit modules read. shuffled: another pair's instruction (a control).",
        choices=("instruction", "shuffled"),
    )
    source: str = _f(
        "empty", "What the source stream's cross-attention reads.", choices=("empty", "instruction")
    )
    dropout: float = _f(0.1, "Share of training samples whose texts are dropped (for guidance).", min=0, max=1)
    length: Optional[int] = _f(
        None,
        "Padded text length in tokens; null: what the backbone folder's ivedit.json says (64 in wan-sprites), else 512 "
        "as Wan pads.",
        min=1,
    )


@dataclass
class FlowConfig:
    """Flow matching: x_sigma = (1 - sigma) x0 + sigma noise, velocity = noise - x0."""

    timesteps: str = _f(
        "uniform", "Distribution of the unshifted training timestep r.", choices=("uniform", "logit_normal")
    )
    logit_mean: float = _f(0.0, "Mean of logit(r) for logit_normal.")
    logit_std: float = _f(1.0, "Standard deviation of logit(r) for logit_normal.", above=0)
    shift: Optional[float] = _f(
        None, "sigma = k r / (1 + (k - 1) r); null: k of the backbone folder's scheduler.", above=0
    )
    change_share: float = _f(
        0.0,
        "Least share of the training loss that belongs to the places where source and target latents differ, whatever "
        "their area; 0: every place counts alike. Needs no mask.",
        min=0,
        max=1,
    )
    draws_per_pair: int = _f(
        1, "How many (sigma, noise) draws share one source pass in a training step.", min=1
    )


@dataclass
class TrainConfig:
    """Optimisation."""

    epochs: int = _f(5, "Passes over the pairs.", min=0)
    max_steps: Optional[int] = _f(None, "Stop after this many optimiser steps, whatever the epochs say.", min=0)
    max_minutes: Optional[float] = _f(
        None, "Checkpoint and stop after this long; `resume=` continues.", above=0
    )
    batch_size: int = _f(64, "Pairs per device and micro-batch.", min=1)
    accumulate: int = _f(1, "Micro-batches per optimiser step.", min=1)
    optimizer: str = _f(
        "adamw", "adamw, or muon: orthogonalised momentum for matrices, AdamW for the rest.",
        choices=("adamw", "muon"),
    )
    momentum: float = _f(0.95, "Momentum of muon.", min=0, max=1)
    lr: float = _f(1e-3, "Peak learning rate.", above=0)
    weight_decay: float = _f(0.01, "AdamW weight decay.", min=0)
    beta1: float = _f(0.9, "AdamW beta1.", min=0, max=1)
    beta2: float = _f(0.99, "AdamW beta2.", min=0, max=1)
    clip: float = _f(1.0, "Gradient norm clipping; 0: off.", min=0)
    warmup_steps: int = _f(50, "Steps of linear warm-up, then cosine decay to lr * final_lr.", min=0)
    final_lr: float = _f(0.05, "Learning rate at the end, as a share of lr.", min=0, max=1)
    ema: float = _f(0.999, "Decay of the exponential moving average of the trained weights; 0: off.", min=0, max=1)
    precision: str = _f(
        "auto", "auto: bf16-mixed on a GPU, 32-true on a CPU.", choices=("auto", "32-true", "bf16-mixed")
    )
    capture: str = _f(
        "auto",
        "Replay the training step as a CUDA graph. auto: on GPUs of one machine, not with gradient checkpointing or "
        "train.strategy=fsdp.",
        choices=("auto", "on", "off"),
    )
    compile: str = _f(
        "auto",
        "Compile the blocks of the training step (about a minute, kept on disk for the next run). auto: of a large "
        "backbone on a GPU.",
        choices=("auto", "on", "off"),
    )
    validate_every: int = _f(200, "Steps between validation losses; 0: only at the end.", min=0)
    checkpoint_every: int = _f(200, "Steps between checkpoints; the last one is always kept.", min=1)
    log_every: int = _f(20, "Steps between logged training metrics.", min=1)
    accelerator: str = _f("auto", "auto, cpu or cuda.", choices=("auto", "cpu", "cuda"))
    devices: int = _f(1, "Processes or GPUs on one machine.", min=1)
    nodes: int = _f(1, "Machines.", min=1)
    strategy: str = _f(
        "auto",
        "ddp: every rank has all weights; fsdp: the ranks of a machine share one copy of the frozen and the trained "
        "ones (FSDP2), for models that do not fit on one GPU, at the price of gathering them. auto: ddp.",
        choices=("auto", "ddp", "fsdp"),
    )
    threads: Optional[int] = _f(None, "CPU threads of a process; null: leave as the environment says.", min=1)


@dataclass
class SamplingConfig:
    """How a clip is drawn from the edited backbone."""

    steps: int = _f(25, "Denoising steps.", min=1)
    scheduler: str = _f("euler", "Solver, through diffusers.", choices=("euler", "unipc"))
    guidance: float = _f(1.0, "v = v_neg + w (v_pos - v_neg); 1: no second branch.", min=0)
    shift: Optional[float] = _f(None, "Flow shift while sampling; null: the backbone folder's.", above=0)
    seed: int = _f(0, "Noise of clip i is a function of (this seed, i).", min=0)
    compile: str = _f(
        "auto", "Compile the blocks. auto: of a large backbone on a GPU.", choices=("auto", "on", "off")
    )


@dataclass
class TrackingConfig:
    """Where runs are recorded. The run folder is complete by itself; MLflow is a view of it."""

    kind: str = _f("mlflow", "mlflow, or none (import later with `python -m ivedit.report --import`).",
                   choices=("mlflow", "none"))
    uri: Optional[str] = _f(
        None, "MLflow tracking URI; null: MLFLOW_TRACKING_URI, else sqlite in `output_dir`/mlflow.db."
    )
    experiment: str = _f("ivedit", "MLflow experiment.")
    tags: dict[str, str] = _f({}, "Extra MLflow tags.")


@dataclass
class PretrainConfig:
    """How the shipped tiny pipeline was made (tasks pretrain_*)."""

    folder: str = _f("wan-sprites-new", "Pipeline folder to write into, relative to the working directory.")
    scenes: int = _f(100000, "Distinct pretraining scenes (clips in the pool).", min=1)
    frames_per_scene: int = _f(3, "DiT: single frames in the pool, per scene.", min=1)
    warm_start: bool = _f(False, "Start from the weights that already lie in the folder.")
    compile: bool = _f(False, "torch.compile the training step (minutes of compiling, then nearly twice as fast).")
    image_steps: int = _f(1500, "VAE: steps on single images, before the clips.", min=0)
    frame_share: float = _f(0.5, "DiT: share of steps on single frames; the others are on clips.", min=0, max=1)
    frame_batch: int = _f(512, "Images or frames per image step.", min=1)
    clip_batch: int = _f(128, "Clips per clip step.", min=1)
    base_dim: int = _f(24, "VAE: channels of the first level.", min=4)
    kl_weight: float = _f(1e-5, "VAE: weight of the KL term.", min=0)
    code_weight: float = _f(
        0.0, "VAE: weight that keeps each latent frame near the image code of its last frame.", min=0
    )
    layers: int = _f(8, "DiT: blocks.", min=1)
    heads: int = _f(4, "DiT: heads of 64.", min=1)
    ffn: int = _f(1024, "DiT: feed-forward width.", min=8)
    shift: float = _f(3.0, "DiT: flow shift, in training and in the folder's scheduler.", above=0)
    edge_share: float = _f(0.08, "DiT: share of draws near sigma 0 and near sigma 1 together.", min=0, max=1)


@dataclass
class Config:
    """A whole run."""

    name: str = _f("run", "Name of the run, of its folder and of its row in tables.")
    summary: str = _f("", "One line: what this experiment changes and why.")
    task: str = _f(
        "edit",
        "What to do: edit trains the edit modules; pretrain_text, pretrain_reader, pretrain_vae and pretrain_dit train "
        "a part of the tiny pipeline; or a task from `plugins`.",
    )
    seed: int = _f(0, "Seed of weights, data order, noise.", min=0)
    output_dir: str = _f("runs", "Folder for run folders, relative to the working directory.")
    plugins: list[str] = _f([], "Python modules to import first: they register variants, readers and metrics.")
    resume: Optional[str] = _f(None, "Run folder to continue from its last checkpoint.")
    init_from: Optional[str] = _f(None, "Trained modules (safetensors) to start from, with a new optimiser.")
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    editor: EditorConfig = field(default_factory=EditorConfig)
    text: TextConfig = field(default_factory=TextConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
