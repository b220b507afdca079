"""A search-space file with the fitness file that it names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from evomerge.files.fitness_file import read_fitness
from evomerge.files.objects import FitnessSpec, SpaceSpec
from evomerge.files.space_file import read_space

_FITNESS = "fitness."


def read_files(
    file: Path,
    settings: Sequence[str] = (),
    optimizer: str | None = None,
    fitness: Path | None = None,
    folder: Path | None = None,
    known: Collection[str] | None = None,
) -> tuple[SpaceSpec, FitnessSpec]:
    """Reads and validates both files.

    Args:
        file: the search-space file.
        settings: ``dotted.key=value`` overrides; those that start with ``fitness.`` are of the fitness file.
        optimizer, fitness: in place of the file's.
        folder: where relative paths in settings start.
        known: the only paths that patterns of sources may match; None: all.

    Raises:
        InputError: something in them is wrong.
    """
    inner = [s.strip().removeprefix(_FITNESS) for s in settings if s.strip().startswith(_FITNESS)]
    outer = [s for s in settings if not s.strip().startswith(_FITNESS)]
    spec = read_space(file, outer, optimizer, fitness, folder, known)
    return spec, read_fitness(spec.fitness, inner, folder, spec.at("fitness"))
