"""Keeps the paths of this machine out of what is published: a model in the current folder is shown by its path there,
any other one by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_PATH = re.compile(
    r"(?<![\w.:/\\])(?:/[^\s/'\"`:,;()<>|]+){2,}/?"  # two names or more: a single slash is often no path
    r"|(?<!\w)[A-Za-z]:\\[^\s'\"`:,;()<>|]+|(?<!\w)~[\w-]*/[^\s'\"`:,;()<>|]+"
)
"""What looks like an absolute path in a text."""


class Places:
    """Names the models of a run, and rewrites absolute paths."""

    def __init__(self, models: Mapping[str, str], roots: Iterable[Path], copies: Path | None = None) -> None:
        """Args:
        models: name -> reference.
        roots: folders whose inside is shown by a path relative to them, the first that fits.
        copies: the folder of the sources' aligned copies, which stand in recipes in their place.
        """
        self.models = dict(models)
        self._names = {reference: name for name, reference in models.items()}
        if copies is not None:
            self._names |= {str(copies / name): name for name in models}
        homes = {Path("/"), Path.home()}
        self._roots = [root for root in dict.fromkeys(map(_resolved, roots)) if root not in homes]

    def name(self, reference: str) -> str:
        """What a model is called in its space; else its published reference."""
        return self._names.get(reference) or self.reference(reference)

    def is_known(self, reference: str) -> bool:
        """Whether the reference says as much after it was published: a hub id, or a path in one of the folders."""
        return all(not _is_absolute(part) or self._inside(part) for part in _parts(reference))

    def reference(self, reference: str) -> str:
        """A model's reference without what is this machine's own."""
        return "+".join(self._part(part, reference) for part in _parts(reference))

    def text(self, text: object) -> str:
        """A text without absolute paths."""
        return _PATH.sub(lambda found: self._part(found[0], found[0]), str(text))

    def data(self, value: Any) -> Any:
        """Every text in a value without absolute paths."""
        if isinstance(value, Mapping):
            return {key: self.data(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(inner) for inner in value]
        return self.text(value) if isinstance(value, str) else value

    def _part(self, part: str, whole: str) -> str:
        if not _is_absolute(part):
            return part
        return self._inside(part) or self._names.get(whole) or _last(part)

    def _inside(self, part: str) -> str | None:
        path = Path(part)
        for root in self._roots:
            if path != root and path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return None


def _parts(reference: str) -> Sequence[str]:
    """A model and its adapter, where both are paths; a plus sign may also be a part of a folder's name."""
    return re.split(r"\+(?=/|[A-Za-z]:\\)", reference)


def _is_absolute(part: str) -> bool:
    return part.startswith(("/", "~")) or bool(re.match(r"[A-Za-z]:\\", part))


def _last(part: str) -> str:
    path = PureWindowsPath(part) if "\\" in part else PurePosixPath(part)
    return path.name or "path"


def _resolved(root: Path) -> Path:
    try:
        return root.resolve()
    except (OSError, RuntimeError):
        return root.absolute()
