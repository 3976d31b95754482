"""What of a run may be shown to everybody: no paths of a machine, no user names, no passwords, no addresses of servers.

A configuration is cut to the parts that say how an editor was made; every text in them then loses its absolute paths
(but for the last name, by which the owner knows them). `leaks` looks for what is left, as a second lock in front of an
upload.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ivedit.runfolder import redact

__all__ = ["leaks", "public_config", "scrub"]

SECTIONS = (
    "name", "summary", "task", "seed", "plugins", "init_from", "backbone", "editor", "text", "flow", "data", "train",
    "sampling",
)  # fmt: skip
"""Of a configuration; the rest says where results went and which servers were asked."""

_PRIVATE = {"data": ("cache_dir",)}

_NAME = r"[^\s'\"`,;:|<>()\[\]{}\\/]+"
_ALONE = r"(?<![\w~\\/.-])"  # not in the middle of a relative path
_PATHS = re.compile(
    rf"(?P<url>\b(?!file:)[A-Za-z][\w+.-]*://\S+)"
    rf"|(?P<path>(?:\bfile://|{_ALONE}(?:~[\w.-]*)?)(?:/+{_NAME})+/*|{_ALONE}(?:~[\w.-]*|[A-Za-z]:)(?:[\\/]+{_NAME})+[\\/]*"
    rf"|{_ALONE}\\\\{_NAME}(?:\\{_NAME})*)"
)
_ABSOLUTE = re.compile(r"(?:file://|~[\w.-]*[\\/]|[A-Za-z]:[\\/]|\\\\|/(?=[^\s/]))[^\n]*")
"""A text that is one path as a whole, spaces among it."""

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|\bgh[pousr]_\w{16,}|://[^\s/:@]+:(?!\*)[^\s/@]+@")
_EVERYBODY = {"root", "user", "admin", "ubuntu", "home", "users", "nobody", "runner", "jovyan", "ec2-user", ""}


def _user_names() -> set[str]:
    """Names by which this machine knows who is working; those that name nobody are left out."""
    names = {Path.home().name, os.environ.get("USER", ""), os.environ.get("LOGNAME", "")}
    with contextlib.suppress(OSError, KeyError):  # a container may have no entry for this user
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2 and name.lower() not in _EVERYBODY}


def scrub(value: Any) -> Any:
    """The same value with every text freed of absolute paths, user names and passwords; keys stay.

    ``/data/anna/pairs`` becomes ``.../pairs``, ``~/x`` ``.../x``; relative paths and hub names stay as they are.
    """
    if isinstance(value, Mapping):
        return {key: scrub(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(item) for item in value]
    return _scrub_text(value) if isinstance(value, str) else value


def _scrub_text(text: str) -> str:
    users = _user_names()

    def last_name(match: re.Match[str]) -> str:
        if match["url"]:
            return match["url"]
        name = PurePosixPath(match["path"].replace("\\", "/")).name
        return "..." if name in users or name.startswith("~") or not name else f".../{name}"

    if _ABSOLUTE.fullmatch(text):
        text = "/" + PurePosixPath(text.replace("\\", "/")).name.replace(" ", "_")
    text = _PATHS.sub(last_name, redact(text))
    for user in users:
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(user)}(?![A-Za-z0-9])", "USER", text)
    return _TOKEN.sub("***", text)


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a run's configuration that say how the editor was made, scrubbed."""
    shown: dict[str, Any] = {}
    for name in SECTIONS:
        if config.get(name) is None:
            continue
        part = config[name]
        if isinstance(part, Mapping):
            part = {key: value for key, value in part.items() if key not in _PRIVATE.get(name, ())}
        shown[name] = scrub(part)
    return shown


def leaks(text: str) -> Iterator[str]:
    """Absolute paths, keys and passwords that stand in a text; of a key only that there is one."""
    yield from (match["path"] for match in _PATHS.finditer(text) if match["path"])
    yield from ("a key or password" for _ in _TOKEN.finditer(text))
