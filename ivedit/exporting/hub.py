"""Upload an exported folder to the hub: only what the export wrote, only when told to, with the user's own login."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ivedit.editor import read_editor_header, resolve_editor_file
from ivedit.errors import ConfigError, IveditError
from ivedit.exporting.folder import Exported
from ivedit.exporting.scrub import leaks

__all__ = ["Upload", "plan_upload", "push"]

_TEXTS = (".md", ".yaml", ".json")


@dataclass(frozen=True)
class Upload:
    """What goes where.

    Attributes:
        name: USER/NAME. private: for a new one; one that is public is not made private.
        folder: whose ``files`` ({path inside of it: bytes}) go up.
    """

    name: str
    private: bool
    folder: Path
    files: dict[str, int]

    def __str__(self) -> str:
        """One line for each file, and the sum."""
        width = max(map(len, self.files))
        lines = [f"  {name.ljust(width)}  {_size(size)}" for name, size in self.files.items()]
        kind = "private" if self.private else "public"
        return "\n".join([
            f"{len(self.files)} files, {_size(sum(self.files.values()))}, to {self.name} ({kind} if it is new):", *lines
        ])  # fmt: skip


def plan_upload(exported: Exported, name: str, *, private: bool) -> Upload:
    """What `push` would send.

    Raises:
        ConfigError: no licence is stated, or a text holds what must not be shown.
    """
    problems = []
    if exported.license is None:
        problems.append(
            "--push needs --license (e.g. apache-2.0): the editor was trained on data that others may have rights in"
        )
    weights = resolve_editor_file(exported.folder)
    texts = {path: (exported.folder / path).read_text("utf-8") for path in exported.files if path.endswith(_TEXTS)}
    texts[f"the header of {weights.name}"] = json.dumps(read_editor_header(weights)).replace("\\\\", "\\")
    for path, text in texts.items():
        if found := next(leaks(text), None):
            problems.append(f"{path} holds {found}, which is not to be shown; export the run again")
    if problems:
        raise ConfigError(problems)
    return Upload(name, private, exported.folder, dict(exported.files))


def push(upload: Upload) -> str:
    """Create the model repository where there is none, and commit the files to it; returns its address.

    Weights and samples of an earlier push that are not among the files are deleted there. The token is that of
    ``hf auth login`` or the environment variable HF_TOKEN; the hub is that of HF_ENDPOINT.

    Raises:
        IveditError: no login, a refusal, or no connection; what was exported stays.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        reason = "no login for the hub; run `hf auth login` or set HF_TOKEN"
        raise IveditError(f"nothing was uploaded: {reason}{_again(upload)}")
    api = HfApi(library_name="ivedit")
    try:
        api.create_repo(upload.name, private=upload.private, exist_ok=True)
        if upload.private and not api.model_info(upload.name).private:
            raise IveditError(
                f"nothing was uploaded: {upload.name} exists and is public; make it private on its page, or leave out "
                "--private"
            )
        done = api.upload_folder(
            repo_id=upload.name, folder_path=upload.folder, allow_patterns=list(upload.files),
            delete_patterns=["editor*.safetensors*", "samples/*"], commit_message="Upload a trained ivedit editor",
        )  # fmt: skip
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        raise IveditError(f"{upload.name}: {_refusal(upload.name, status, error)}{_again(upload)}") from error
    except IveditError:
        raise
    except Exception as error:  # without a connection the client raises many types, some of its HTTP library's own
        raise IveditError(f"{upload.name}: the upload failed: {_first(error)}{_again(upload)}") from error
    return str(getattr(done, "repo_url", None) or f"{api.endpoint}/{upload.name}")


def _refusal(name: str, status: int | None, error: Exception) -> str:
    if status == 401:
        return "the hub does not accept this login; run `hf auth login` again, or set another HF_TOKEN"
    if status == 403:
        return f"this login may not write there; use a token with write access to {name.partition('/')[0]}"
    return f"the hub refused the upload (HTTP {status}): {_first(error)}"


def _again(upload: Upload) -> str:
    return f". The export is in {upload.folder}; the same command tries again"


def _first(error: BaseException) -> str:
    """First line of the innermost reason."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} GB"
