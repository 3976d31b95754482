"""The GPUs that a plan can be made for: their sizes and speeds, and which one is in this machine."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from ivedit.errors import ConfigError, or_nearest

__all__ = ["Gpu", "chosen_gpu", "detected_gpu", "gpu_named", "gpu_names"]

_TABLE = Path(__file__).resolve().parent / "gpus.yaml"
DEFAULT = "h200"


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: What `--plan` calls it.
        match: Part of the name that nvidia-smi gives.
        memory_gib: Memory that torch may use, GiB.
        bf16_tflops: Dense peak by the data sheet, TFLOP/s.
        bandwidth_gbs: Memory bandwidth by the data sheet, GB/s.
        product, attention: Shares of the peak that matrix products and fused attention over many keys reach.
        attention_half: Keys at which attention reaches half of its share.
        traffic: Share of the bandwidth that everything else reaches.
        launch_us: Host time to launch one kernel, microseconds.
        share: measured on that GPU, or assumed.
    """

    name: str
    match: str
    memory_gib: float
    bf16_tflops: float
    bandwidth_gbs: float
    product: float
    attention: float
    attention_half: float
    traffic: float
    launch_us: float
    share: str

    @property
    def memory(self) -> float:
        """Bytes that torch may use."""
        return self.memory_gib * 2**30

    def seconds(self, kind: str, flops: float, moved: float, length: int = 0) -> float:
        """Time of one kernel: its operations or its traffic, whichever takes longer; see `Operation`."""
        reached = self.product
        if kind == "attention":
            reached = self.attention * length / (length + self.attention_half)
        return max(flops / (self.bf16_tflops * 1e12 * reached), moved / (self.bandwidth_gbs * 1e9 * self.traffic))


def _table() -> dict[str, Gpu]:
    content = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    names = {field.name for field in fields(Gpu)} - {"name"}
    for name, entry in content.items():
        if set(entry) != names:
            raise ValueError(f"{_TABLE.name}: {name} must have exactly {sorted(names)}")
    return {name: Gpu(name, **entry) for name, entry in content.items()}


def gpu_names() -> list[str]:
    """Names that `gpu_named` takes."""
    return list(_table())


def gpu_named(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        ConfigError: There is none.
    """
    table = _table()
    if name.lower() not in table:
        raise ConfigError(f"--plan {name}: there is no such GPU in the table; {or_nearest(name.lower(), table)}")
    return table[name.lower()]


def detected_gpu() -> Gpu | None:
    """The first GPU of this machine as nvidia-smi names it; None without one, or with one that is not in the table."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return next((gpu for gpu in _table().values() if found and gpu.match.lower() in found[0].lower()), None)


def chosen_gpu(name: str) -> tuple[Gpu, str]:
    """The GPU named, else the one in this machine, else an H200; and how it was chosen.

    Raises:
        ConfigError: There is no GPU of that name in the table.
    """
    if name:
        return gpu_named(name), "named"
    if found := detected_gpu():
        return found, "found by nvidia-smi"
    return gpu_named(DEFAULT), "none found here, so this one is taken; --plan NAME names another"
