"""A sweep of real, tiny runs: trained, evaluated, reported."""

import pytest
import yaml

from ivedit.report import main
from ivedit.run import main as run
from ivedit.runfolder import RUN_PATH_VARIABLE
from ivedit.sweeping.plan import build_stage, keep_definition
from ivedit.sweeping.resolve import resolve

TINY = {
    "data.pairs": 4, "data.validation_pairs": 2, "data.operations": ["recolour"], "train.batch_size": 2,
    "train.max_steps": 2, "train.validate_every": 0, "train.log_every": 1, "train.accelerator": "cpu",
    "train.threads": 1, "editor.width": 64, "flow.draws_per_pair": 1, "sampling.steps": 1, "evaluation.clips": 4,
    "evaluation.batch_size": 4, "evaluation.frames": 5, "evaluation.triage": False, "evaluation.gate_maps": False,
    "evaluation.controls": ["source_copy", "frozen"], "evaluation.strips": 1, "evaluation.bootstrap": 100,
}  # fmt: skip


@pytest.mark.slow
def test_what_runs_leave_is_what_the_report_shows(tmp_path, monkeypatch, capsys):
    content = {
        "kind": "grid", "arms": ["imvideoedit", "ablation_no_gate"], "seeds": [0, 1], "settings": TINY,
        "claims": [{"better": "imvideoedit", "than": "ablation_no_gate"}],
    }  # fmt: skip
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(content))
    sweep = resolve([f"sweep={tmp_path / 'pair.yaml'}", f"output_dir={tmp_path}", "tracking.kind=none"])
    keep_definition(sweep)
    stage = build_stage(sweep, "final", lambda _: ())
    for slot in range(stage.n_trials):
        monkeypatch.setenv(RUN_PATH_VARIABLE, str(sweep.runs / stage.folder_name(slot)))
        assert run([*stage.settings(slot), "tracking.kind=none"]) == 0
    capsys.readouterr()
    assert main([str(sweep.folder)]) == 0
    text = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:]] for line in text.splitlines() if line[:2] == "| "]
    rows = {line[0]: line[1:] for line in lines}
    assert rows["imvideoedit"][4:6] == ["2", "4/4"] and rows["imvideoedit"][9] == "2"
    flops = [float(rows[arm][7].removesuffix("G")) for arm in ("imvideoedit", "ablation_no_gate")]
    assert flops[0] > flops[1] > 0
    assert rows["source_copy"][0].startswith("0.0%") and "frozen" in rows
    # two steps teach nothing, and the table says so
    assert "FAILED" in rows["imvideoedit - ablation_no_gate"][7]
    page = (sweep.folder / "tables" / "report.html").read_text()
    assert page.count("<div class=strip>") == 1 and page.count("data:image/png;base64,") == 4
    assert str(tmp_path) not in page + text
