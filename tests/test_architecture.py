"""The shape of the package: imports go one way, libraries stay where they belong, files are read in a sitting."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ivedit"
FILES = sorted(PACKAGE.rglob("*.py"))

ENTRY_POINTS = {"run", "sweep", "edit", "evaluate", "report", "export"}
GROUND = {  # anything may import these
    "errors", "registry", "experiments", "config", "media", "animation", "quiet", "filetypes", "ranks",
}  # fmt: skip
RECORD = {"runfolder", "recording", "tracking", "tracking_uri"}
BOTTOM = {"flow", "data", "sprites"}

# Who may import whom: the top-level parts of ivedit, from the top down.
MAY_IMPORT = {
    **{name: {"*"} for name in ENTRY_POINTS},
    "pretrain": {"training", "evaluation", "pipeline", "editor", "backbone"} | BOTTOM | RECORD | GROUND,
    # A sweep's parent stays light: no torch, no training code; children are processes of `ivedit.run`.
    "sweeping": {"evaluation", "tracking", "recording", "runfolder", "tracking_uri"} | GROUND,
    "judge": {"evaluation", "data", "sprites", "recording", "runfolder"} | GROUND,
    "reporting": {"evaluation", "sweeping", "tracking", "recording", "runfolder", "tracking_uri"} | GROUND,
    # What a run would need, by running training and sampling on tensors without content.
    "planning": {"training", "editor", "backbone"} | BOTTOM | RECORD | GROUND,
    "training": {"evaluation", "pipeline", "editor", "backbone"} | BOTTOM | RECORD | GROUND,
    "evaluation": {"pipeline", "editor", "backbone"} | BOTTOM | RECORD | GROUND,
    "exporting": {"evaluation", "pipeline", "editor", "backbone", "recording", "runfolder"} | BOTTOM | GROUND,
    "pipeline": {"editing", "editor", "backbone"} | BOTTOM | GROUND,
    "editing": {"editor", "backbone", "runfolder", "windows"} | BOTTOM | GROUND,
    "editor": {"backbone"} | BOTTOM | GROUND,
    "backbone": BOTTOM | GROUND,
    "data": {"sprites"} | GROUND,
    "flow": GROUND,
    "sprites": GROUND,
    "tracking": {"recording", "runfolder", "tracking_uri"} | GROUND,
    "tracking_uri": {"runfolder"} | GROUND,
    "recording": {"runfolder"} | GROUND,
    "runfolder": GROUND,
    "windows": {"flow"} | GROUND,
    "media": {"errors"},
    "animation": {"media"},
    "config": {"errors", "experiments", "registry"},
    "experiments": {"errors"},
    "registry": {"errors"},
    "tasks": {"recording", "runfolder"} | GROUND,
    "quiet": set(),
    "ranks": {"errors"},
    "vigil": {"ranks"},
    "meeting": {"ranks", "runfolder", "errors"},
    "errors": set(),
    "filetypes": {"errors"},
    "__init__": set(),
}

# Which files may import a library at all.
ONLY_IN = {
    "lightning": ("training/", "pretrain/", "data/datamodule.py", *(f"{name}.py" for name in ENTRY_POINTS)),
    "pytorch_lightning": (),
    "mlflow": ("tracking/",),
    "optuna": ("sweeping/",),
    "torchvision": ("evaluation/metrics/vision.py",),
}

LIGHT = (
    "run.py", "sweep.py", "edit.py", "evaluate.py", "report.py", "export.py", "runfolder.py", "errors.py",
    "registry.py", "experiments.py", "filetypes.py",
)  # fmt: skip
HEAVY = {
    "accelerate", "av", "cv2", "datasets", "diffusers", "lightning", "matplotlib", "mlflow", "numpy", "optuna", "PIL",
    "safetensors", "scipy", "tokenizers", "torch", "torchmetrics", "transformers",
}  # fmt: skip
HEAVY_PARTS = {
    "backbone", "data", "editing", "editor", "evaluation", "exporting", "flow", "pipeline", "planning", "pretrain",
    "sprites", "training",
}  # fmt: skip

DISTRIBUTION = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml",
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path, *, only_at_import: bool = False) -> Iterator[tuple[str, int]]:
    """Every module imported in a file, absolute, with its line; inside functions too unless ``only_at_import``."""
    package = ["ivedit", *path.relative_to(PACKAGE).parent.parts]

    def runs_later(node: ast.AST) -> bool:
        if isinstance(node, ast.If):
            return "TYPE_CHECKING" in ast.unparse(node.test)
        return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))

    def visit(node: ast.AST) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*above, *(child.module or "").split(".")]).rstrip(".")
                if module == "ivedit":  # from ivedit import experiments
                    yield from ((f"ivedit.{alias.name}", child.lineno) for alias in child.names)
                else:
                    yield module, child.lineno
            elif not (only_at_import and runs_later(child)):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_go_one_way():
    wrong = []
    for path in FILES:
        here, allowed = part(path), MAY_IMPORT.get(part(path))
        if allowed is None:
            wrong.append(f"{here} is new: give it a place in MAY_IMPORT")
            continue
        for module, line in imports(path):
            there = module.split(".")[1] if module.startswith("ivedit.") else here
            if there != here and there not in allowed and "*" not in allowed:
                wrong.append(f"{name_of(path)}:{line} imports {module}, but {here} may not import {there}")
    assert not wrong, "\n".join(wrong)


def test_libraries_stay_where_they_belong():
    wrong = []
    for path in FILES:
        for module, line in imports(path):
            places = ONLY_IN.get(module.split(".")[0])
            if places is not None and not name_of(path).startswith(places):
                wrong.append(f"{name_of(path)}:{line} imports {module}; allowed in {places or 'no file'}")
    assert not wrong, "\n".join(wrong)


def test_entry_points_and_configuration_import_nothing_heavy():
    wrong = []
    for path in FILES:
        if name_of(path) in LIGHT or part(path) == "config":
            for module, line in imports(path, only_at_import=True):
                root, *rest = module.split(".")
                if root in HEAVY or (root == "ivedit" and rest and rest[0] in HEAVY_PARTS):
                    wrong.append(f"{name_of(path)}:{line} imports {module}; import it in the function that needs it")
    assert not wrong, "\n".join(wrong)


def test_every_library_imported_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for name, texts in project["optional-dependencies"].items() if name != "dev" for text in texts]
    declared, optional = (
        {re.split(r"[^A-Za-z0-9_.-]", text, maxsplit=1)[0].lower() for text in texts}
        for texts in (project["dependencies"], extras)
    )
    used: dict[str, str] = {}
    for path in FILES:
        for module, line in imports(path):
            root = module.split(".")[0]
            if root not in sys.stdlib_module_names and root != "ivedit":
                used.setdefault(DISTRIBUTION.get(root, root).lower(), f"{name_of(path)}:{line}")
    missing = {name: place for name, place in used.items() if name not in declared | optional}
    assert not missing, f"imported but not in pyproject.toml: {missing}"
    always = [f"{name_of(p)} imports {module}" for p in FILES for module, _ in imports(p, only_at_import=True)
              if module.split(".")[0] in optional - declared]  # fmt: skip
    assert not always, f"of an extra, so to be imported in the function that needs it: {always}"


def test_a_file_is_read_in_one_sitting():
    long = {name_of(p): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long, f"more than 400 lines: {long}"


def test_a_file_is_named_after_what_it_does_and_says_it():
    assert not [name_of(path) for path in FILES if path.stem in ("utils", "helpers", "misc", "common")]
    silent = [name_of(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent, f"no docstring: {silent}"
