"""The files that candidates read, on every node: found there, checked against the run's, or sent there once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.checkpoints.checkpoint import NAMED_TEMPLATES, Checkpoint
from evomerge.checkpoints.hub import arrive
from evomerge.checkpoints.identity import FileDigest, file_digest, fingerprint, identity
from evomerge.checkpoints.references import resolve
from evomerge.errors import InputError
from evomerge.files.objects import ModelRef, SpaceSpec

_PIECE = 64 << 20
"""Bytes of a file that are on their way at a time, twice."""
_SENT = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.bpe", f"{NAMED_TEMPLATES}/*.jinja")
"""What is sent besides the files by which a checkpoint is known."""


@dataclass(frozen=True)
class Part:
    """A model, an adapter or a file of weights that candidates read.

    Attributes:
        reference: as recipes write it: ``hub id@commit``, or an absolute path.
        place: where the driver has it.
        files: by which it is known, by their names in `place`; of a file of weights, by its own.
        others: names of further files that a model may be loaded with.
    """

    reference: str
    place: str
    files: tuple[tuple[str, FileDigest], ...]
    others: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """sha256 (hex) over names and contents."""
        return fingerprint(self.files)


def parts(checkpoints: Iterable[Checkpoint]) -> tuple[Part, ...]:
    """The parts of opened checkpoints, with the digests of their files."""
    found: dict[str, dict[str, FileDigest]] = {}
    places: dict[str, Path] = {}
    for checkpoint in checkpoints:
        checkpoint.fetch()
        for reference, place in zip(checkpoint.parts, checkpoint.places, strict=True):
            places[reference] = place
            files = [file for file in checkpoint.files() if place in (file, file.parent)]
            found.setdefault(reference, {}).update({file.name: file_digest(file) for file in files})
    return tuple(
        Part(reference, str(place), tuple(sorted(found[reference].items())), _others(place, found[reference]))
        for reference, place in places.items()
    )


def _others(place: Path, known: Mapping[str, FileDigest]) -> tuple[str, ...]:
    names = {str(file.relative_to(place)) for pattern in _SENT for file in place.glob(pattern) if file.is_file()}
    return tuple(sorted(names - {*known}))


def anywhere(spec: SpaceSpec, checkpoints: Mapping[str, Checkpoint]) -> SpaceSpec:
    """The space with references that mean the same on every node: the commits and folders that were opened here."""

    def model(name: str, ref: ModelRef) -> ModelRef:
        return replace(ref, path=checkpoints[name].resolved(), revision=None, copy=None)

    sources = {name: model(name, ref) for name, ref in spec.sources.items()}
    return replace(spec, base=model("base", spec.base), sources=sources)


class Sender:
    """Runs in a Ray actor on the driver's node, and sends the files of parts from there."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self._places = {part.reference: Path(part.place) for part in parts}
        self._names = {part.reference: {*part.others, *(name for name, _ in part.files)} for part in parts}

    def piece(self, reference: str, name: str, start: int) -> bytes:
        """`_PIECE` bytes of a file from `start`; fewer at its end."""
        assert name in self._names[reference], "no file of the run's models"
        place = self._places[reference]
        with (place if place.is_file() else place / name).open("rb") as stream:
            stream.seek(start)
            return stream.read(_PIECE)


def prepared(parts: Iterable[Part], sender: Any) -> dict[str, str]:
    """Makes sure that every part is on this node, with the run's bits. Returns the folders of those that are elsewhere
    than their reference says.

    Raises:
        InputError: one that is here has other bits.
    """
    elsewhere = {}
    for part in parts:
        here = _here(part)
        if here is None:
            elsewhere[part.reference] = str(_received(part, sender))
        else:
            _check(part, here)
    return elsewhere


def cache() -> Path:
    """The folder of this node that keeps what was sent."""
    # torch takes a second to import.
    from evomerge.merging.resident.factor_cache import default_folder

    return default_folder().parent / "sources"


def _here(part: Part) -> Path | None:
    """Where a part is by its reference; None where it is not, and cannot be fetched from the hub."""
    if Path(part.reference).is_absolute():
        return Path(part.reference) if Path(part.reference).exists() else None
    try:
        folder, _ = resolve(part.reference)
        for name, _ in part.files:
            arrive(folder / name)
    except InputError:
        return None
    return folder


def _check(part: Part, here: Path) -> None:
    """InputError where a file is missing or has other bits. What was read once on this node is not read again."""
    from filelock import FileLock

    found = [(name, here if here.is_file() else here / name, digest) for name, digest in part.files]
    state = json.dumps([part.id, *([str(file), identity(file)] for _, file, _ in found)])
    note = cache() / "checked" / hashlib.sha256(state.encode()).hexdigest()
    note.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{note}.lock"):
        if note.exists():
            return
        for name, file, digest in found:
            if not file.is_file() or file_digest(file) != digest:
                raise InputError(f"it has other bits of {part.reference} ({name})", "copy the run's model there")
        note.touch()


def _received(part: Part, sender: Any) -> Path:
    """The copy of a part in this node's cache, which the first that asks makes."""
    from filelock import FileLock

    target = cache() / part.id
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            digests = dict(part.files)
            for name in (*digests, *part.others):
                _receive(part, name, partial / name, digests.get(name), sender)
            os.rename(partial, target)
    return target / part.files[0][0] if Path(part.place).suffix == ".gguf" else target


def _receive(part: Part, name: str, target: Path, digest: FileDigest | None, sender: Any) -> None:
    """Writes a file as its pieces come. InputError where it has not the run's bits in the end."""
    import ray

    target.parent.mkdir(exist_ok=True)
    whole = hashlib.sha256()
    start, coming = 0, sender.piece.remote(part.reference, name, 0)
    with target.open("wb") as stream:
        while piece := ray.get(coming):
            start += len(piece)
            coming = sender.piece.remote(part.reference, name, start)
            whole.update(piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    if digest is not None and whole.hexdigest() != digest.sha256:
        raise InputError(f"{name} of {part.reference} came with other bits", "run the same command again")
