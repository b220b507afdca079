"""Fetches checkpoints from the Hugging Face hub: a name with a revision becomes a folder and its commit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from evomerge.checkpoints.pickled import check_allowed
from evomerge.errors import InputError, Where

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*"]
_PICKLED = ["pytorch_model*.bin", "adapter_model.bin"]
_SAFE = ["*.safetensors", "model.safetensors.index.json"]
_UNWANTED = ["*/*", "*.bin", "*.pt", "*.pth", "*.py", "consolidated*"]


def looks_like_hub_id(name: str) -> bool:
    """Whether the text can be a hub id: ``name`` or ``owner/name``."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith((".yaml", ".yml", ".json"))


def split_revision(reference: str) -> tuple[str, str | None]:
    """``name@revision`` -> (name, revision)."""
    name, _, revision = reference.partition("@")
    return name, revision or None


def fetch(
    name: str, revision: str | None, where: Where | None = None, wanted: Sequence[str] = _WANTED
) -> tuple[Path, str]:
    """Download (or find in the hub's cache) the safetensors, configuration and tokenizer files, or those that `wanted`
    names, as patterns. Where weights are wanted, and there are no safetensors, and pickled ones may be read, these.

    Returns:
        The local folder, and the commit hash that it holds.

    Raises:
        InputError: no such repository or revision, it cannot be reached, or its weights are pickled, and that is not
            allowed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    shown = f"{name}@{revision}" if revision else name
    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=list(wanted), ignore_patterns=_UNWANTED)
        )
    except RevisionNotFoundError:
        raise InputError(f"{name} has no revision {revision!r} on the hub", "correct it", where) from None
    except RepositoryNotFoundError:
        problem = f"there is no folder and no hub repository {shown}"
        raise InputError(problem, "correct the name, or log in if it is private", where) from None
    except Exception as error:  # the network can fail with anything; the user needs one line
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        problem = f"there is no folder {shown}, and the hub cannot be reached ({reason})"
        raise InputError(problem, "correct the path, or download the model while online", where) from None
    if wanted is _WANTED:
        _take_pickled(folder, name, where)
    return folder, folder.name


def _take_pickled(folder: Path, name: str, where: Where | None) -> None:
    """Where a repository has pickled weights only, downloads them, if they may be read. InputError if not, or if the
    hub cannot be reached."""
    if any(any(folder.glob(pattern)) for pattern in _SAFE):
        return
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        files = list_repo_files(name, revision=folder.name)
    except Exception:  # offline: the folder shows what is missing
        return
    files = [file for file in files if "/" not in file]
    pickled = [file for file in files if any(fnmatch(file, pattern) for pattern in _PICKLED)]
    if not pickled or any(file.endswith(".safetensors") for file in files):
        return
    check_allowed(name, where=where)
    try:
        snapshot_download(name, revision=folder.name, allow_patterns=pickled)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        problem = f"{pickled[0]} of {name} cannot be fetched from the hub ({reason})"
        raise InputError(problem, "run the same command again, or download the model first", where) from None
