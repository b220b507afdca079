"""`search --from RUN` in a space of paths: another run's winner is one more model of the path, by its recipe."""

from __future__ import annotations

from evomerge.errors import InputError, Where
from evomerge.evaluator.models import OpenModels
from evomerge.files.objects import WINNER, SpaceSpec
from evomerge.recipe.mergekit import write_recipe
from evomerge.study.after.transfer import check_models, starting_trial
from evomerge.study.run.former import FormerWinner, with_recipe
from evomerge.study.run.manifest import Environment

_FLAG = Where("--from")


def with_winner(spec: SpaceSpec, begin: str | None) -> tuple[SpaceSpec, FormerWinner | None]:
    """The space with the winner of the run `begin` as a model of its path; as it is where weights are searched, or no
    run is given. InputError where there is no such trial, or it has no place."""
    flow = spec.dataflow
    if flow is None:
        return spec, None
    if begin is None:
        if WINNER in flow.path and WINNER not in spec.sources:
            problem = "`winner` is the winner of another run, and none is given"
            raise InputError(problem, "add --from RUN, or name a source", spec.at("path"))
        return spec, None
    if flow.both:
        problem = "the blocks of `space: both` are merges of the models, which another run's winner is none of"
        raise InputError(problem, "write `space: dataflow`, or leave it out", _FLAG)
    if WINNER in spec.sources:
        problem = "a source is called winner, as another run's winner would be"
        raise InputError(problem, "call the source otherwise", _FLAG)
    name, _, trial = starting_trial(begin, spec)
    former = FormerWinner(name, trial.number, trial.recipe_id, trial.digest)
    return with_recipe(spec, write_recipe(trial.recipe, f"{former}, the model `winner` of this run")), former


def check_winner(begin: str, models: OpenModels) -> None:
    """InputError where the models of a run are not those of the space that takes its winner."""
    name, state, _ = starting_trial(begin, models.space.spec)
    check_models(name, Environment.read(state.folder), models)
