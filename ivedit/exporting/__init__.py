"""Make a trained editor a folder that others can use, and put it on a hub when asked to."""

from ivedit.exporting.folder import Exported, Wishes, export_editor
from ivedit.exporting.hub import Upload, plan_upload, push

__all__ = ["Exported", "Upload", "Wishes", "export_editor", "plan_upload", "push"]
