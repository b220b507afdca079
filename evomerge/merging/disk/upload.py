"""Pushes a written checkpoint to the hub: to a new repository, private unless it is asked to be public."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.hub import looks_like_hub_id
from evomerge.errors import InputError, UnreachableError, Where
from evomerge.escape import shortened

_FLAG = Where("--push-to-hub")
_LOG_IN = "run `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Upload:
    """A repository that a checkpoint goes to.

    Attributes:
        repository: ``owner/name``.
        public: whether anybody may see it.
    """

    repository: str
    public: bool = False

    @classmethod
    def checked(cls, name: str | None, public: bool = False) -> Upload | None:
        """The upload to a repository of this name, or None. It is asked for before anything is merged.

        Args:
            name: ``owner/name``, or a name in the account of the token.
            public: whether anybody may see it.

        Raises:
            InputError: nobody is logged in, the repository is there already, or the hub cannot be reached.
        """
        if name is None:
            if public:
                raise InputError("--public goes with --push-to-hub", "name the repository", Where("--public"))
            return None
        if not looks_like_hub_id(name):
            raise InputError(f"{name!r} is no name of a repository", "write owner/name", _FLAG)
        from huggingface_hub import HfApi

        with _explained():
            owner = HfApi().whoami()["name"]
            repository = name if "/" in name else f"{owner}/{name}"
            exists = HfApi().repo_exists(repository)
        if exists:
            raise InputError(f"the repository {repository} is there already", "give another name", _FLAG)
        return cls(repository, public)

    def push(self, folder: Path) -> str:
        """Makes the repository and uploads a checkpoint to it; returns its address. InputError if that fails; the
        checkpoint is on the disk then."""
        from huggingface_hub import HfApi

        with _explained(f"; the checkpoint is in {folder}"):
            address = HfApi().create_repo(self.repository, private=not self.public, exist_ok=False)
            HfApi().upload_folder(
                repo_id=self.repository, folder_path=folder, commit_message="Merged checkpoint, by evomerge"
            )
        return str(address)


@contextmanager
def _explained(more: str = "") -> Iterator[None]:
    """Turns whatever the hub's library raises into an error of one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise InputError(
            f"nobody is logged in to the hub{more}", "run `hf auth login`, or set HF_TOKEN", _FLAG
        ) from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        reason = shortened(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 160)
        mend = "choose another name, or check the rights of the token"
        if status == 401:
            mend = _LOG_IN
        raise InputError(f"the hub refuses ({reason}){more}", mend, _FLAG) from None
    except InputError:
        raise
    except Exception as error:  # the network can fail with anything; the user needs one line
        reason = shortened(" ".join(str(error).split()) or type(error).__name__, 160)
        raise UnreachableError(f"the hub cannot be reached ({reason}){more}", "try again while online", _FLAG) from None
