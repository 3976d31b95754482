"""Several ranks train as one does: DDP and FSDP2, with accumulation, recomputation, Muon, resuming."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ivedit.editor import build_editor, load_editor
from ivedit.errors import IveditError
from ivedit.training import read_checkpoint
from ivedit.training.checkpoint import LAST
from ivedit.training.distributed import edit_parts, share_editing
from ivedit.training.shares import Shares
from tests.backbone.tiny import tiny_backbone
from tests.training.edits import edit_config, run_edit
from tests.training.ranks import CASES, case_config, run_case

ROOT = Path(__file__).parents[2]
# Sums over pairs run in another order. AdamW: the largest difference. Muon: the root mean square over all weights (of a
# step it is 6e-4), since it rounds its direction to bfloat16 and makes every part of it equally long: where a matrix's
# gradient is hardly more than rounding, single weights may end anywhere within a step, on some processors.
LARGEST = 2e-5
OF_MUON = {"weights": 1e-4, "average": 1e-4, "optimiser": 1e-5, "exported": 1e-4}
LOSS_TOLERANCE = {"adamw": 1e-5, "muon": 1e-4}


def train_on_two_ranks(place):
    """The runs of two ranks, and one rank's beside them."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(ROOT / "tests/training/ranks.py"), str(place),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    for name, reference in (("ddp", "one"), ("ddp_hard", "one_hard")):
        run_case(place / reference, name, devices=1)


def content(folder):
    checkpoint = read_checkpoint(folder / "checkpoints" / LAST)
    state = checkpoint["optimizer_states"][0]["state"]
    return {
        "weights": checkpoint["state_dict"],
        "average": checkpoint["callbacks"]["EmaCallback"]["average"],
        "optimiser": {f"{number} {key}": value for number, row in state.items() for key, value in row.items()},
        "exported": load_file(folder / "checkpoints" / "editor.safetensors"),
    }, checkpoint


@pytest.mark.slow
def test_two_ranks_end_where_one_does_and_shared_ones_resume_to_the_same_bits(tmp_path):
    """One test: its processes are started once, also where tests are shared out among workers."""
    train_on_two_ranks(tmp_path)
    for name in CASES:
        if name != "fsdp_in_two_goes":
            ends_where_one_rank_does(tmp_path, name)
    whole, in_two = (content(tmp_path / name)[0] for name in ("fsdp", "fsdp_in_two_goes"))
    for part, tensors in whole.items():
        for key, value in tensors.items():
            assert torch.equal(in_two[part][key], value), f"{part} {key}"
    backbone = tiny_backbone(blocks=2)
    editor = load_editor(tmp_path / "fsdp" / "checkpoints" / "editor.safetensors", backbone)
    assert all(torch.isfinite(p).all() for p in editor.parameters())


def ends_where_one_rank_does(folder, name):
    reference = "one_hard" if name.endswith("hard") else "one"
    ours, checkpoint = content(folder / name)
    theirs, other = content(folder / reference)
    assert checkpoint["global_step"] == other["global_step"] == 3
    optimizer = CASES[name].get("optimizer", "adamw")
    for part, tensors in theirs.items():
        assert ours[part].keys() == tensors.keys()
        apart = {key: (ours[part][key] - value).double() for key, value in tensors.items()}
        if optimizer == "muon":
            square = torch.cat([difference.flatten().square() for difference in apart.values()]).mean()
            assert square.sqrt().item() <= OF_MUON[part], f"{name}: {part}: {square.sqrt().item()}"
            continue
        for key, difference in apart.items():
            assert difference.abs().max().item() <= LARGEST, f"{name}: {part} {key}: {difference.abs().max().item()}"
    losses = [c["callbacks"]["Validation"]["values"]["loss"] for c in (checkpoint, other)]
    assert losses[0] == pytest.approx(losses[1], rel=LOSS_TOLERANCE[optimizer])


def test_every_trained_weight_gets_a_gradient_in_every_variant(tmp_path):
    """DDP is not told to look for unused ones, and would wait for them."""
    for variant in ("predict_update", "single_attention", "side_by_side", "tuned_attention"):
        cfg = edit_config(max_steps=1, batch_size=2)
        cfg.editor.variant, cfg.data.pairs, cfg.text.gate = variant, 4, "instruction"
        _, editor, _ = run_edit(tmp_path / variant, cfg)
        assert [name for name, p in editor.named_parameters() if p.requires_grad and p.grad is None] == []


def test_all_weights_of_every_variant_run_inside_some_block():
    backbone = tiny_backbone(blocks=3)
    for variant in ("predict_update", "single_attention", "side_by_side", "tuned_attention"):
        editor = build_editor({"variant": variant, "every": 2}, backbone)
        parts = edit_parts(editor)
        assert list(parts) == editor.blocks
        held = sum(p.numel() for modules in parts.values() for module in modules for p in module.parameters())
        assert held == sum(p.numel() for p in editor.parameters())


def test_an_editor_with_weights_between_blocks_cannot_be_shared():
    editor = build_editor({}, tiny_backbone(blocks=2))
    editor.temperature = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(IveditError, match=r"temperature of predict_update.*train\.strategy=ddp"):
        edit_parts(editor)


def test_sharing_without_ranks_is_refused():
    backbone = tiny_backbone(blocks=2)
    with pytest.raises(IveditError, match="torchrun"):
        share_editing(backbone, build_editor({}, backbone), case_config(devices=1), torch.device("cpu"))


def test_one_process_keeps_the_parameters_themselves():
    layer = torch.nn.Linear(3, 2)
    shares = Shares(list(layer.parameters()))
    assert shares.kept == list(layer.parameters()) and not shares.spread
    norm = torch.tensor(2.0)
    assert shares.total_norm(norm) is norm and shares.cut(layer.weight) is layer.weight
