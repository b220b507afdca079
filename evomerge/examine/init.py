"""`evomerge.init`: a first search space and fitness file for some models and tasks, which run as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.pickled import with_pickles
from evomerge.checkpoints.preflight import check_family, token_changes
from evomerge.checkpoints.samples.deltas import Deltas, measure
from evomerge.errors import InputError, Where
from evomerge.examine.checks.advice import advice
from evomerge.examine.checks.lineage import unrelated
from evomerge.examine.checks.parents import Parents, named, opened
from evomerge.examine.from_evolve import convert
from evomerge.examine.references import check_places
from evomerge.examine.starter_fitness import choose_slices, fitness_text
from evomerge.examine.starter_space import TRIALS, choose_space, space_text
from evomerge.files.pair import read_files
from evomerge.safety.durable import write_whole
from evomerge.study.observer import Observer
from evomerge.study.prepare import check_files, make_plan
from evomerge.study.prepare import check_places as check_model_places
from evomerge.study.run.folder import check_run_name


@dataclass(frozen=True)
class Initialized:
    """The files that were written. `fitness`: or that was given; `notes`: lines on what was not kept of a file that was
    converted."""

    space: Path
    fitness: Path
    genes: int
    notes: tuple[str, ...] = ()


@with_pickles
def init(
    base: str | Path | None = None,
    sources: Sequence[str | Path] = (),
    *,
    tasks: Sequence[str] = (),
    output: str | Path = "space.yaml",
    fitness: str | Path | None = None,
    trials: int | None = None,
    force: bool = False,
    allow_pickle: bool = False,
    evolve: str | Path | None = None,
    observer: Observer | None = None,
) -> Initialized:
    """Writes a commented search space, and beside it a fitness file. They are checked as a dry run does before they
    take their names.

    Args:
        base, sources: folders or hub ids; adapters are sources like any other.
        tasks: a slice for each: names of lm-eval, or paths of task YAML.
        output: the space file. The fitness file is `fitness.yaml` beside `space.yaml`, else NAME-fitness.yaml.
        fitness: a fitness file that is there already, in place of tasks.
        trials: the budget (default: 100), for which the number of genes is chosen.
        force: write over files that are there.
        allow_pickle: as in `search`.
        evolve: a configuration of mergekit-evolve to convert, in place of models and tasks.
        observer: is told what happens.

    Raises:
        InputError: an argument is wrong, the models cannot be merged, or a file is there already.
    """
    observer = observer or Observer()
    if evolve is not None:
        if base is not None or tasks or fitness is not None:
            problem = "models and tasks are those of mergekit-evolve's file"
            raise InputError(problem, "leave the others out", Where("--from-mergekit-evolve"))
        return _converted(Path(evolve), Path(output), trials, force, observer)
    if base is None:
        raise InputError("no models", "give a base and its sources", Where("BASE"))
    if not sources:
        raise InputError("one model is no merge", "give a base and at least one source", Where("SOURCE"))
    if not tasks and fitness is None:
        mend = "give --tasks NAME,... (names of lm-eval, or task files), or a fitness file by --fitness"
        raise InputError("no tasks: nothing says what a merge must be able to do", mend, Where("--tasks"))
    if tasks and fitness is not None:
        raise InputError("tasks and a fitness file are two answers to one question", "give one", Where("--fitness"))
    space_file, fitness_file = _files(Path(output), fitness)
    written = [space_file, *([fitness_file] if fitness is None else [])]
    _check_free(written, force)
    check_places(None, [base, *sources])
    slices = choose_slices(tasks) if tasks else None
    observer.phase("reading headers")
    parents = opened(str(base), named([str(source) for source in sources]))
    check_family(parents.base, parents.sources, lambda _: None)
    observer.phase("sampling weights")
    deltas = measure(parents.base, parents.sources, progress=lambda s: observer.progress("sampled tensors", s))
    _check_related(deltas)
    count = TRIALS if trials is None else trials
    texts: dict[Path, str] = {}
    for tokenizer in _tokenizers(parents):
        tips = advice(deltas, parents.base.layers, count)[1:] if deltas.tensors else []
        space = choose_space(parents, deltas, tokenizer, count, _seen(deltas), tips)
        texts = {space_file: space_text(space, space_file, _beside(fitness_file, space_file))}
        if slices is not None:
            texts[fitness_file] = fitness_text(slices, fitness_file)
        observer.phase("checking the files")
        try:
            genes = _checked(texts, space_file, fitness_file)
            break
        except InputError as error:
            if tokenizer == "base":
                raise
            observer.note(f"tokenizer {tokenizer} does not work with these models ({error.problem})")
    for file, text in reversed(texts.items()):
        write_whole(file, text)
    return Initialized(space_file, fitness_file, genes)


def _converted(file: Path, output: Path, trials: int | None, force: bool, observer: Observer) -> Initialized:
    space, fitness = _files(output, None)
    _check_free([space, fitness], force)
    observer.phase("reading headers")
    told = convert(Path.cwd() / file, space, fitness, trials)
    texts = told.texts(space, fitness, file)
    observer.phase("checking the files")
    genes = _checked(texts, space, fitness)
    for written, text in reversed(texts.items()):
        write_whole(written, text)
    return Initialized(space, fitness, genes, tuple(told.notes))


def run_name(sources: Sequence[str]) -> str:
    """The name of a run of these sources: their names, as far as a name goes."""
    return "-".join(named(sources))[:80].strip("-.")


def _files(output: Path, fitness: str | Path | None) -> tuple[Path, Path]:
    """The absolute paths of both files. InputError where the space cannot be written there."""
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output} is no name of a space", "give it the ending .yaml", Where("--output"))
    space = Path.cwd() / output
    if not space.parent.is_dir():
        raise InputError(f"there is no folder {space.parent}", "create it", Where("--output"))
    check_run_name(space.stem, "a run has the name of its space: use letters, digits, ., - and _", Where("--output"))
    if fitness is not None:
        return space, Path.cwd() / fitness
    stem = space.stem.removesuffix("space") if space.stem.endswith("space") else f"{space.stem}-"
    return space, space.with_name(f"{stem}fitness.yaml")


def _check_free(files: Sequence[Path], force: bool) -> None:
    there = next((file for file in files if file.exists()), None)
    if there is not None and not force:
        raise InputError(f"{there} is there already", "name another file by -o, or write over it by --force")


def _check_related(deltas: Deltas) -> None:
    """InputError where a source does not descend from the base: no weights make a merge of the two."""
    strangers = unrelated(deltas)
    if strangers:
        mend = "give the base that it was trained from, or align it first: `evomerge align`"
        raise InputError(f"{', '.join(strangers)} does not descend from the base", mend)


def _tokenizers(parents: Parents) -> list[str]:
    """The policies to try: the union where a source brings tokens, and else the base's."""
    changes = token_changes(parents.base, parents.sources, "base", lambda _: None)
    return ["union", "base"] if changes.dropped else ["base"]


def _seen(deltas: Deltas) -> list[str]:
    """What was seen, as comments."""
    shown = []
    for source in deltas.sources:
        size, changed = deltas.mean_size(source), deltas.relative(source)
        if size is not None and changed is not None:
            shown.append(f"{source} {size.value:.2g} ({changed.value:.1%} of the base's norm)")
    return [f"mean change of a weight: {', '.join(shown)}"] if shown else []


def _beside(fitness: Path, space: Path) -> str:
    """The fitness file as the space names it."""
    return os.path.relpath(fitness, space.parent)


def _checked(texts: dict[Path, str], space: Path, fitness: Path) -> int:
    """Checks both files as a search would before it reads a weight, under names that nobody sees. Returns the number of
    searched values. InputError where one is wrong."""
    hidden = {file: file.with_name(f".{file.name}.partial.yaml") for file in texts}
    try:
        for file, text in texts.items():
            write_whole(hidden[file], text)
        spec, scores = read_files(hidden[space], fitness=hidden.get(fitness, fitness))
        check_model_places(spec)
        check_files(spec, scores)
        plan = make_plan(spec, scores)
        # torch and transformers take seconds to import: what is wrong above is told before.
        from evomerge.evaluator.evaluator import check_candidates

        check_candidates(plan.models, plan.fitness)
        return len(plan.space.dimensions)
    except InputError as error:
        if error.where is None or error.where.file not in hidden.values():
            raise
        # Nobody can look into a file that is gone: what is wrong is named by its key.
        raise InputError(error.problem, error.mend, Where(key=error.where.key)) from None
    finally:
        for file in hidden.values():
            file.unlink(missing_ok=True)
