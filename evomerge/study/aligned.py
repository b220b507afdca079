"""The sources of a space with `align`: copies with their hidden units in the base's order, in the run's folder.

A copy is written once, before the run is launched, and is an ordinary checkpoint from then on: recipes name it, its
content is recorded like that of any source, and a resumed run takes it as it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.files.objects import ModelRef, SpaceSpec
from evomerge.merging.permutation.specification import Specification
from evomerge.merging.permutation.stored import StoredModel, shared_symmetries
from evomerge.merging.permutation.symmetries import Symmetries
from evomerge.study.observer import Observer
from evomerge.study.run.folder import RunFolder

STAMP = "alignment.json"
"""The file in a copy that says what it was made of."""


def alignable(base: Checkpoint, source: Checkpoint, ref: ModelRef) -> tuple[Specification, Symmetries]:
    """What of a source can be brought into the base's order, from headers. InputError, at the source's line, where it
    cannot be aligned."""
    one, other = StoredModel.of(base, ref.where), StoredModel.of(source, ref.where)
    return shared_symmetries(one, other, ref.specification, ref.where)


def with_copies(spec: SpaceSpec, folder: RunFolder) -> SpaceSpec:
    """The space with the aligned copies of a run. InputError where one is not there."""
    sources = dict(spec.sources)
    for name, ref in spec.to_align.items():
        copy = folder.aligned / name
        if not copy.is_dir():
            problem = f"the run {folder.name!r} has lost the aligned copy of {name} ({copy})"
            raise InputError(problem, "restore it, or launch a new run", ref.where)
        sources[name] = replace(ref, copy=copy)
    return replace(spec, sources=sources)


@contextmanager
def aligned_copies(
    spec: SpaceSpec, base: Checkpoint, sources: dict[str, Checkpoint], folder: RunFolder, observer: Observer
) -> Iterator[SpaceSpec]:
    """Writes the copies that a space asks for, and yields it with them. If the run is not launched in the context, what
    was written is deleted again."""
    if not spec.to_align:
        yield spec
        return
    written: list[Path] = []
    try:
        for name, ref in spec.to_align.items():
            if write_copy(name, ref, base, sources[name], folder.aligned / name, observer):
                written.append(folder.aligned / name)
        yield with_copies(spec, folder)
    except BaseException:
        if not folder.environment.exists():
            for copy in written:
                shutil.rmtree(copy, ignore_errors=True)
            with suppress(OSError):  # what others have written there stays
                folder.aligned.rmdir()
                folder.path.rmdir()
        raise


def write_copy(name: str, ref: ModelRef, base: Checkpoint, source: Checkpoint, copy: Path, observer: Observer) -> bool:
    """Aligns a source and writes it, unless the copy of a launch that died is there; returns whether it was written.
    Raises InputError."""
    from evomerge.merging.permutation.alignment import align_models, write_aligned

    specification, symmetries = alignable(base, source, ref)
    stamp = {"base": base.fingerprint(), "source": source.fingerprint(), "specification": specification.digest()}
    if _is_of(copy, stamp):
        return False
    observer.phase(f"aligning {name} with the base")
    one, other = StoredModel.of(base, ref.where), StoredModel.of(source, ref.where)
    result = align_models(one, other, specification, symmetries, progress=observer.progress)
    facts = {**stamp, "cosine": {"before": result.before, "after": result.after}, "moved": result.moved}
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    write_aligned(
        other, symmetries, result.orders, copy, overwrite=copy.exists(), files={STAMP: text}, where=ref.where,
        progress=observer.progress,
    )  # fmt: skip
    moved = f"{result.moved:.0%} of its units moved" if result.moved else "nothing had to move"
    observer.note(f"aligned {name}: {moved}, cosine with the base {result.before:.4f} -> {result.after:.4f}")
    return True


def _is_of(copy: Path, stamp: dict[str, str]) -> bool:
    try:
        found = json.loads((copy / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and stamp.items() <= found.items()
