"""Whether a study can be searched along slopes: by its files alone, before anything is loaded."""

from __future__ import annotations

from evomerge.errors import InputError
from evomerge.files.objects import FitnessSpec, GeneSpec, SpaceSpec
from evomerge.optimize.declarations import declaration, uses_gradient
from evomerge.registry import CHOICES, METHODS
from evomerge.scoring.tasks.task_files import scan

UNWEIGHTED = "give it `weight: 0` (its floor still holds), or use `warm_start: gradient` of another optimizer"
"""What to do with a slice that `gradient` cannot follow."""


def check_slopes(spec: SpaceSpec, fitness: FitnessSpec) -> None:
    """InputError where slopes are asked for of a method, a gene or a slice that has none."""
    name = spec.optimizer["name"]
    if not uses_gradient(name, spec.options):
        return
    alone = declaration(name).needs_gradient
    _check_methods(spec, "use another optimizer" if alone else "use `warm_start: true`")
    smooth = [gene for gene in spec.genes if not gene.choices and _has_slope(spec, gene)]
    other = next((gene for gene in spec.genes if gene not in smooth), None)
    if other is not None and (alone or not smooth):
        problem = f"{other.name} only chooses elements, and has no slope for {name} to follow"
        if other.choices:
            problem = f"{other.name} is a choice, and has no slope for {name} to follow"
        held = f"fix it (`fixed: {{{other.name}: {other.init:g}}}`)" if isinstance(other.init, float) else "fix it"
        mend = f"{held}, or use `warm_start: gradient` of another optimizer, which searches it without"
        raise InputError(problem, mend if alone else "search a weight, or use `warm_start: true`", other.where)
    _check_slices(fitness, name, alone)


def _check_methods(spec: SpaceSpec, mend: str) -> None:
    for method in spec.methods:
        if not METHODS[CHOICES[method].method].differentiable:
            able = [
                choice
                for choice in CHOICES
                if METHODS[CHOICES[choice].method].differentiable and choice != "uniform_soup"
            ]
            problem = f"{method} gives no slopes for its parameters"
            raise InputError(problem, f"{mend}, or one of {', '.join(able)}", spec.at("genes.method"))


def _has_slope(spec: SpaceSpec, gene: GeneSpec) -> bool:
    """In each of the methods that take it."""
    takers = [CHOICES[m] for m in spec.methods if any(p.name == gene.name for p in CHOICES[m].parameters)]
    return all(gene.name in METHODS[choice.method].differentiable for choice in takers)


def _check_slices(fitness: FitnessSpec, optimizer: str, alone: bool) -> None:
    """Of those that count; what a task of lm-eval's own asks is only known when it is built (`TrialGradients`)."""
    local = scan(fitness.include)
    counting = [piece for piece in fitness.slices.values() if piece.weight > 0]
    reasons = {}
    for piece in counting:
        leaves = local.closure(piece.task)[0] if piece.task is not None else []
        if piece.python is not None:
            reasons[piece.name] = "a Python function"
        elif any(leaf.config.get("output_type") == "generate_until" for leaf in leaves):
            reasons[piece.name] = "generated text"
    lost = next((piece for piece in counting if piece.name in reasons), None)
    if lost is not None and (alone or len(reasons) == len(counting)):
        problem = f"slice {lost.name} is scored by {reasons[lost.name]}, which has no slope for {optimizer} to follow"
        mend = UNWEIGHTED if alone else "add a slice of texts or choices, or use `warm_start: true`"
        raise InputError(problem, mend, lost.where)
