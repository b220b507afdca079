"""Fetches checkpoints from the Hugging Face hub: a name with a revision becomes a folder and its commit."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from evomerge.checkpoints.pickled import are_allowed, check_allowed
from evomerge.errors import InputError, Where

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*"]
_PICKLED = ["pytorch_model*.bin", "adapter_model.bin"]
_UNWANTED = ["*/*", "*.bin", "*.pt", "*.pth", "*.py", "consolidated*"]


def looks_like_hub_id(name: str) -> bool:
    """Whether the text can be a hub id: ``name`` or ``owner/name``."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith((".yaml", ".yml", ".json"))


def split_revision(reference: str) -> tuple[str, str | None]:
    """``name@revision`` -> (name, revision)."""
    name, _, revision = reference.partition("@")
    return name, revision or None


def fetch(name: str, revision: str | None, where: Where | None = None) -> tuple[Path, str]:
    """Download (or find in the hub's cache) the safetensors, configuration and tokenizer files. Where there are no
    safetensors, and pickled weights may be read, these.

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
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
        if not any(folder.glob("*.safetensors")) and (are_allowed() or _is_pickled(name, folder.name)):
            check_allowed(shown, where=where)
            unwanted = [pattern for pattern in _UNWANTED if pattern != "*.bin"]
            folder = Path(
                snapshot_download(name, revision=folder.name, allow_patterns=_PICKLED, ignore_patterns=unwanted)
            )
    except InputError:
        raise
    except RevisionNotFoundError:
        raise InputError(f"{name} has no revision {revision!r} on the hub", "correct it", where) from None
    except RepositoryNotFoundError:
        problem = f"there is no folder and no hub repository {shown}"
        raise InputError(problem, "correct the name, or log in if it is private", where) from None
    except Exception as error:  # the network can fail with anything; the user needs one line
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        problem = f"there is no folder {shown}, and the hub cannot be reached ({reason})"
        raise InputError(problem, "correct the path, or download the model while online", where) from None
    return folder, folder.name


def _is_pickled(name: str, commit: str) -> bool:
    """Whether a repository on the hub has pickled weights; False where it cannot be asked."""
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(name, revision=commit)
    except Exception:  # offline, with the other files in the cache
        return False
    return any(fnmatch(file, pattern) for file in files for pattern in _PICKLED)
