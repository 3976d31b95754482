"""The pages quote what the records of the benchmarks say; a digit that is changed on a page is found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from ivedit.evaluation.statistics import paired_difference
from tests.pages import ROOT, read

RECORDS = ROOT / "benchmarks" / "records"
RESULTS = ROOT / "docs" / "results"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
GB, GIB = 1e9, 2**30


def record(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def agree(text: str, *values: float) -> None:
    """The numbers in `text` are `values`, in this order, rounded to the digits that are shown."""
    shown = [number.replace(",", "") for number in NUMBER.findall(text)]
    assert len(shown) == len(values), f"{text!r} shows {len(shown)} numbers, its record has {len(values)}"
    for number, value in zip(shown, values, strict=True):
        half = 0.5 * 10.0 ** -len(number.partition(".")[2])
        assert abs(float(number) - value) <= half + 1e-9, f"{text!r} shows {number}, its record says {value}"


def with_another_digit(text: str, start: int, end: int) -> str:
    """`text` whose number from `start` to `end` ends in a digit that no rounding makes of the true one."""
    last = max(place for place in range(start, end) if text[place].isdigit())
    return text[:last] + str((int(text[last]) + 5) % 10) + text[last + 1 :]


def table(page: str, head: str) -> dict[str, list[str]]:
    """The rows of the table whose first heading is `head`, by their first cell; the record holds the rest."""
    lines = page.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(f"| {head}"))
    rows = {}
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip().replace("*", "") for cell in line.strip("|").split("|"))
        rows[name] = cells
    return rows


def check_rows(page: str, head: str, wanted: dict[str, list[tuple[float, ...]]]) -> None:
    rows = table(page, head)
    assert list(rows) == list(wanted)
    for name, cells in rows.items():
        assert len(cells) == len(wanted[name]), name
        for cell, values in zip(cells, wanted[name], strict=True):
            agree(cell, *values)


def training_rows() -> dict[str, list[tuple[float, ...]]]:
    part = record("wan_training")["training"]
    assert [row["editor"] for row in part["rows"]] == ["ours", "side_by_side"]
    ours, other = (
        [
            (row["batch"],), (row["trained_weights"] / 1e6,), (row["pairs_per_second"],), (row["tflop_per_pair"],),
            (100 * row["share_of_ceiling"],), (row["peak_gb"],),
        ]
        for row in part["rows"]
    )  # fmt: skip
    assert part["ratio"] == part["rows"][0]["pairs_per_second"] / part["rows"][1]["pairs_per_second"]
    ratio = [(), (), (part["ratio"],), (part["ratio_counted"],), (), ()]
    return {"ours": ours, "side by side, rank 32": other, "ratio": ratio}


def sampling_rows() -> dict[str, list[tuple[float, ...]]]:
    part = record("wan_sampling")["sampling"]
    rows = {row["row"]: (1000 * row["seconds"], row["tflop"]) for row in part["rows"]}
    return {
        "frozen backbone": [(value,) for value in rows["frozen"]],
        "ours": [(rows["ours"][0], part["to_frozen"]), (rows["ours"][1], part["to_frozen_counted"])],
        "side by side": [
            (rows["side_by_side"][0], part["faster_than_side_by_side"]),
            (rows["side_by_side"][1], part["faster_counted"]),
        ],
    }  # fmt: skip


def plan_rows() -> dict[str, list[tuple[float, ...]]]:
    names = {
        "compiled": "1.3B, batch 8, compiled", "eager": "1.3B, batch 8, eager",
        "checkpointed": "1.3B, batch 16, compiled, gradient checkpointing",
        "adamw_full_width": "1.3B, batch 4, width C, AdamW, compiled",
        "side_by_side": "1.3B, batch 4, compiled, side by side", "four_draws": "1.3B, 2 pairs of 4 draws, compiled",
        "captured": "1.3B, batch 8, compiled, captured", "5b": "5B, batch 16, compiled",
        "14b": "14B, batch 4, compiled, gradient checkpointing",
    }  # fmt: skip
    found: dict[str, list[tuple[float, ...]]] = {}
    for name, case in record("plan_check_h200")["cases"].items():
        sides = case["planned"], case["measured"]
        peaks = [(side["peak_bytes"] / GIB,) for side in sides]
        found[names[name]] = [*peaks, *((side["pairs_per_second"],) for side in sides)]
    return found


def two_gpus_rows() -> dict[str, list[tuple[float, ...]]]:
    data = record("two_gpus")
    pace, apart, memory = data["pairs_per_second"], data["largest_relative_difference"], data["memory_gib"]
    assert max(apart.values()) <= data["tolerance"] and data["ratio"] >= data["ratio_bar"]
    assert len(set(memory["two_gpus_each"])) == 1
    return {
        "pairs/s, one GPU": [(pace["one"]["median"],)],
        "pairs/s, two GPUs": [(pace["two"]["median"], data["ratio"])],
        "losses of a few steps, largest difference to one GPU in millionths of the loss: DDP": [
            (1e6 * apart["two_ddp"],)
        ],
        "the same: captured steps": [(1e6 * apart["two_captured"],)],
        "the same: FSDP2": [(1e6 * apart["two_fsdp"],)],
        "10 blocks of 14B and their modules, one GPU, GiB": [(memory["one_gpu"],)],
        "shared by two with FSDP2, each, GiB": [(memory["two_gpus_each"][0],)],
    }


def data_path_rows() -> dict[str, list[tuple[float, ...]]]:
    data = record("data_path")
    arms = {name: median(values) for name, values in data["arms"].items()}

    def cells(arm: str, *, ratio: bool) -> list[tuple[float, ...]]:
        found = []
        for how in ("in order", "shuffled"):
            ratios = data["ratios"].get(f"set to {arm}, {how}", [])
            beside = (median(ratios), min(ratios), max(ratios)) if ratio else ()
            found.append((arms[f"{arm}, {how}"], *beside))
        return found

    return {
        "`data.reader=set`": cells("set", ratio=False),
        "plain `datasets` with Pillow": cells("datasets", ratio=True),
        "`datasets` with our scaling": cells("datasets, our scaling", ratio=True),
        "the filled cache, in memory; on disk": [(arms["filled cache (memory)"], arms["filled cache (disk)"]), ()],
    }


def metrics_rows() -> dict[str, list[tuple[float, ...]]]:
    arms = record("metrics_speed")["arms"]
    names = {"small": "240 clips of 17 x 64 x 64", "large": "2 clips of 81 x 480 x 832"}
    for name, arm in arms.items():
        agree(names[name], *(arm[key] for key in ("clips", "frames", "height", "width")))
    return {
        names[name]: [
            (arm["check"]["wall"],), (arm["measure"]["wall"],), (arm["measure"]["wall"] / arm["clips"],),
            (arm["measure"]["cpu"],), (arm["peak_gb"],),
        ]
        for name, arm in arms.items()
    }  # fmt: skip


TABLES: dict[str, tuple[str, str, Callable[[], dict[str, list[tuple[float, ...]]]]]] = {
    "training": ("benchmarks/README.md", "training | batch", training_rows),
    "two GPUs": ("benchmarks/README.md", "two NVIDIA H200, NCCL", two_gpus_rows),
    "sampling": ("benchmarks/README.md", "sampling, 81 frames, one step", sampling_rows),
    "data path": ("benchmarks/README.md", "pairs/s, two cores", data_path_rows),
    "metrics": ("benchmarks/README.md", "clips | checking, s", metrics_rows),
    "plan": ("benchmarks/README.md", "one H200, 480x832, Muon", plan_rows),
    "plan, beside what it is for": ("docs/scale.md", "| peak memory, GiB: plan", plan_rows),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_a_table_is_that_of_its_record_and_a_changed_digit_is_found(name: str):
    page, head, wanted = TABLES[name]
    text = read(page)
    check_rows(text, head, wanted())
    begin = text.index(f"| {head}")
    cells = [
        (begin + line.start() + number.start(), begin + line.start() + number.end())
        for line in re.finditer(r"^\|.*$", text[begin : text.index("\n\n", begin)], re.M)
        for number in NUMBER.finditer(line.group())
        if number.start() > line.group().index("|", 1) and line.start() > 0
    ]
    assert len(cells) >= 8
    for start, end in cells:
        with pytest.raises(AssertionError):
            check_rows(with_another_digit(text, start, end), head, wanted())


def quoted() -> dict[str, tuple[float, ...]]:
    """What sentences say, as patterns whose groups are numbers, with what the records say."""
    training, steady = record("wan_training")["training"], record("wan_steady")["training"]["steady"]
    pace = training["rows"][0]["pairs_per_second"]
    two, by_ddp = record("two_gpus"), record("two_gpus_ddp")
    tried = {
        row["editor"] + str(row["batch"]): row["pairs_per_second"]
        for name in ("ours", "side_by_side")
        for row in record(f"wan_batches_{name}")["training"]["rows"]
    }
    sampling, sprites = record("wan_sampling")["sampling"], record("wan_sprites")["sprites"]
    large = record("plan_check_h200")["cases"]["14b"]
    clips = tuple(row["peak_bytes"] / GB for row in record("long_clip")["rows"])
    measured = large["measured"]["pairs_per_second"], large["measured"]["peak_bytes"] / GB
    return {
        r"(?:trains at|batch 16:) (\S+) pairs/s": (pace,),
        r"two H200s train the 1\.3B at (\S+) pairs/s, (\S+) times one": (
            two["pairs_per_second"]["two"]["median"], two["ratio"],
        ),
        r"(?:two GPUs train|side-by-side mechanism, and) (\S+) times as fast": (two["ratio"],),
        r"measured on two H200s: (\d+)%": (50 * two["ratio"],),
        r"(?:at batch 8, it was (?=1)|micro-batch \()(\S+) times": (by_ddp["ratio"],),
        r"Other batches: ours (\S+) pairs/s at 4 and (\S+) at 16": (tried["ours4"], tried["ours16"]),
        r"side by side (\S+) at 4, (\S+) at 6, (\S+) at 10 and (\S+) at 12": tuple(
            tried[f"side_by_side{batch}"] for batch in (4, 6, 10, 12)
        ),
        r"200 steady steps of batch 8 ran at (\S+) pairs/s": (steady["pairs_per_second"]["framework"],),
        r"where a step takes (\d+) ms, (\S+)%": (
            64e3 / sprites["pairs_per_second"]["framework"], 100 * sprites["overhead"],
        ),
        r"Muon in place of AdamW: (\S+) ms captured": (64e3 / sprites["pairs_per_second"]["framework"],),
        r"interleaved: (\S+)% over all of them": (100 * steady["overhead"],),
        r"(\d+)% of the matrix-product ceiling": (100 * training["rows"][0]["share_of_ceiling"],),
        r"(\S+) times (?:ViFeEdit's mechanism|the side-by-side mechanism)": (training["ratio"],),
        r"(?:65,000 pairs (?:take|in)|at the pace of those 200 steps:) \**(\S+) minutes": (
            steady["paper_schedule_minutes"],
        ),
        r"(?:costs|cost) (\S+) times (?:the|a step of the) frozen backbone": (sampling["to_frozen"],),
        r"(\S+) times less than side by side": (sampling["faster_than_side_by_side"],),
        r"Reading the source takes ours (\d+) ms": (1000 * sampling["rows"][1]["source_seconds"],),
        r"trains, (\S+) pairs/s, (\S+) GB at the peak": measured,
        r"batch 4: (\S+) pairs/s in (\S+) GB": measured,
        r"ceiling (\d+) TFLOP/s": (record("wan_training")["ceiling_tflops"],),
        r"(\S+) GB for one frame, (\S+) GB for a window of 81, (\S+) GB for 600 frames": clips,
        r"narrow random weights and Wan 2\.2's factors: (\S+), (\S+) and (\S+) GB": clips,
    }


PAGES = ("README.md", "CHANGELOG.md", "benchmarks/README.md", "docs/scale.md", "docs/export.md")


def check_sentence(text: str, pattern: str, values: tuple[float, ...]) -> int:
    """How often the pattern stands in `text`; every time with the record's numbers."""
    found = [match.groups() for match in re.finditer(pattern, " ".join(text.split()))]
    for groups in found:
        for shown, value in zip(groups, values, strict=True):
            agree(shown, value)
    return len(found)


@pytest.mark.parametrize("pattern", quoted())
def test_sentences_quote_the_records_wherever_they_stand_and_a_changed_digit_is_found(pattern: str):
    values = quoted()[pattern]
    assert sum(check_sentence(read(page), pattern, values) for page in PAGES) >= 1
    for page in PAGES:
        text = " ".join(read(page).split())
        for match in re.finditer(pattern, text):
            for group in range(1, len(values) + 1):
                with pytest.raises(AssertionError):
                    check_sentence(with_another_digit(text, *match.span(group)), pattern, values)


def test_the_clips_of_the_long_clip_record_are_those_that_the_pages_name():
    rows = record("long_clip")["rows"]
    assert [row["frames"] for row in rows] == [1, 81, 600] and all(row["clip"] == [480, 832] for row in rows)


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_every_record_is_named_by_the_page_of_the_benchmarks(path: Path):
    pages = read("benchmarks/README.md") + read("docs/evaluation.md")
    assert f"records/{path.name}" in pages


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def method_minus(arm: str) -> list[str]:
    """The cells of the method minus an arm: success in points, edited and kept region in dB, over the same clips."""
    ours, other = (result(name)["rows"][name]["per_clip"] for name in ("imvideoedit", arm))
    cells = []
    for metric, unit in (("success", 100), ("edited_psnr", 1), ("kept_psnr", 1)):
        # None, no value, becomes NaN
        found = paired_difference(*(unit * np.array(clips[metric], np.float64) for clips in (ours, other)))
        values = [round(value, 1) for value in (found.mean, found.low, found.high) if value is not None]
        cells.append("{} [{}, {}]".format(*(f"{value:+.1f}" if value else "0.0" for value in values)))
    return cells


def test_the_paired_differences_of_the_results_page_are_those_of_its_records():
    rows = table(read("docs/results.md"), "the method minus")
    assert len(rows) >= 21
    for title, cells in rows.items():
        name = title.replace(" with AdamW", "_adamw").replace("`", "")
        assert cells == method_minus(name), title


def test_the_triage_that_the_results_page_tells_is_that_of_its_record():
    page, ours = " ".join(read("docs/results.md").split()), result("imvideoedit")
    pairs, triage = ours["paired"]["imvideoedit"], ours["triage"]["editors"]["imvideoedit"]
    frames = [mean["mean"] if isinstance(mean, dict) else mean for mean in ours["rows"]["imvideoedit"]["per_latent"]]

    def share(part: str, operation: str) -> str:
        return f"{triage[part]['operations'][operation]['success']['mean']:.0%}"

    def interval(found: dict[str, float], sign: int = 1, unit: int = 1, digits: int = 1) -> str:
        ends = sorted(sign * found[end] for end in ("low", "high"))
        mean, low, high = (f"{unit * value:.{digits}f}" for value in (sign * found["mean"], *ends))
        return f"{mean} {'points' if unit == 100 else 'dB'} [{low}, {high}]"

    parts = ("training_pairs", "held_out_pairs")
    for words in (
        f"the edited region gains {interval(pairs['source_copy']['edited_psnr'])}",
        f"with the true caption {interval(pairs['frozen']['edited_psnr'])}",
        f"{interval(triage['image_minus_video']['all'], unit=100, digits=0)}",
        f"({frames[0]:.1f} dB at the first, {min(frames[1:]):.1f} to {max(frames[1:]):.1f} dB later)",
        "succeeds in {:.0%}, on single frames of held-out scenes in {:.0%}".format(
            *(triage[part]["all"]["success"]["mean"] for part in parts)
        ),
        "*reshape* falls from {} to {}".format(*(share(part, "reshape") for part in parts)),
        "compounds from {} to {}".format(*(share(part, "compound") for part in parts)),
        f"it restores it in {ours['triage']['ceiling']['0.5']['all']['success']['mean']:.0%}",
        f"The kept region is {interval(pairs['vae_ceiling']['kept_psnr'], sign=-1)} below the VAE's ceiling",
        f"AUC against the true mask {ours['gate']['imvideoedit']['auc']['mean']:.2f}",
    ):
        assert words in page.replace("**", ""), words
