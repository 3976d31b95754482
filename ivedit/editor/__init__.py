"""The trained part: 2D edit modules on a frozen transformer, one per chosen block, in several families."""

from ivedit.config.editor_file import is_hub_name, read_editor_header, resolve_editor_file
from ivedit.editor import predict_update, side_by_side, single_attention, tuned_attention  # noqa: F401  (registers)
from ivedit.editor.base import Editor, parameter_count
from ivedit.editor.build import build_editor, count_weights, editor_config
from ivedit.editor.context import EditText, GateRecord, SourceContext
from ivedit.editor.export import (
    check_editor,
    check_editors,
    load_editor,
    read_editor_weights,
    save_editor,
    write_editor,
)
from ivedit.editor.registry import VARIANTS, register, variant_names

__all__ = [
    "VARIANTS",
    "EditText",
    "Editor",
    "GateRecord",
    "SourceContext",
    "build_editor",
    "check_editor",
    "check_editors",
    "count_weights",
    "editor_config",
    "is_hub_name",
    "load_editor",
    "parameter_count",
    "read_editor_header",
    "read_editor_weights",
    "register",
    "resolve_editor_file",
    "save_editor",
    "variant_names",
    "write_editor",
]
