"""The checkpoints of benchmarks/search.py, in memory: genome and split -> scores, or the outcome under given floors."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from specialists import write_files

from evomerge.demo import data
from evomerge.demo.train import prepare
from evomerge.evaluator.evaluator import Evaluator, place_candidates
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.gates import feasible, judge, scales, settle, shortfall
from evomerge.scoring.item_noise import ItemNoise, Scored
from evomerge.study.observer import Observer
from evomerge.study.prepare import launched_plan
from evomerge.study.run.leaderboard import Floors
from evomerge.study.run.manifest import Launch
from evomerge.study.run.trial import Trial
from evomerge.study.trials import AIM
from evomerge.types import Genome, Outcome, Scores, SplitName

TEXTS, QUESTIONS = 24, 85
"""Items of a slice on each split: of the specialists, of the quickstart's models."""

FLOOR = 0.90
"""Of each of the quickstart's slices."""


class Checkpoints:
    """The models of a space file. A recipe is scored once on a split, however often it is asked for."""

    def __init__(self, space: Path) -> None:
        torch.set_num_threads(1)
        plan = launched_plan(Launch(str(space)))
        placement = place_candidates(plan.models, plan.fitness, "cpu", None)
        self.space = plan.space
        self._bench = Evaluator.load(plan.models, plan.fitness, placement, Observer())
        self.info = self._bench.suite.info
        self.slices = self.info.slices
        models = {"base": plan.space.models.base, **plan.space.models.sources}
        self.parents = {name: plan.space.parent(reference) for name, reference in models.items()}
        self._scores: dict[tuple[str, SplitName], Scores] = {}

    def scores(self, recipe: Recipe, split: SplitName) -> Scores:
        key = (recipe.id, split)
        if key not in self._scores:
            self._scores[key] = self._bench.evaluate(recipe, split, lambda name: None).scores
        return self._scores[key]


class Floored:
    """Checkpoints whose merges are held to floors: those of the fitness file, with another `margin` where one is given.

    `scored` are the outcomes, on the search split, of base, sources and average; `parents` the genomes of the
    first two, which are no merges.
    """

    def __init__(self, checkpoints: Checkpoints, margin: float | None = None) -> None:
        self.checkpoints = checkpoints
        space, recipes = checkpoints.space, dict(checkpoints.parents)
        slices = checkpoints.slices
        if margin is not None:
            slices = {n: replace(s, floor=replace(s.floor, margin=margin)) for n, s in slices.items() if s.floor}
        self.slices, self._gates, self._scales = slices, {}, {}
        splits: tuple[SplitName, SplitName] = ("search", "holdout")
        for split in splits:
            measured = {name: checkpoints.scores(recipe, split) for name, recipe in recipes.items()}
            self._gates[split] = settle(slices, measured)
            self._scales[split] = scales(measured, self._gates[split])
        self.dimensions, self.references = space.dimensions, space.reference_genomes
        self.parents = [self.references[name].genome for name in recipes]
        recipes["uniform"] = space.uniform()
        self.scored = {name: self._outcome(recipe, "search") for name, recipe in recipes.items()}
        self.base_on_holdout = self._outcome(recipes["base"], "holdout").objective
        info = replace(checkpoints.info, slices=slices)
        self.noise = ItemNoise(info, {name: self.scored_items(recipe) for name, recipe in checkpoints.parents.items()})
        self.floors = Floors(self._gates["search"], self._scales["search"])

    def outcome(self, genome: Genome, split: SplitName) -> Outcome:
        return self._outcome(self.checkpoints.space.recipe(genome), split)

    def scored_items(self, recipe: Recipe) -> Scored:
        """On the search split."""
        scores = self.checkpoints.scores(recipe, "search")
        return Scored(scores, {name: {i.item: i for i in score.items} for name, score in scores.items()})

    def trial(self, number: int, genome: Genome) -> Trial:
        """A searched trial, as a study keeps it."""
        recipe = self.checkpoints.space.recipe(genome)
        scored = self.scored_items(recipe)
        values = {name: score.value for name, score in scored.scores.items()}
        trial = Trial(number, "search", "", genome, "[]", recipe.id, 0, "complete", values)
        return replace(trial, objective=sum(values.values()) / len(values), errors=self.noise.errors(scored))

    def aimed(self, genome: Genome) -> Outcome:
        """What evomerge tells its optimizers, which aim above the floors."""
        return replace(self.floors, aim=AIM).outcome(self.trial(0, genome))

    def _outcome(self, recipe: Recipe, split: SplitName) -> Outcome:
        scores = self.checkpoints.scores(recipe, split)
        verdicts = judge(scores, self._gates[split], self._scales[split])
        values = tuple(score.value for score in scores.values())
        margins = tuple((v.bound - v.floor) / self._scales[split][v.slice] for v in verdicts if v.floor is not None)
        mean = sum(values) / len(values)
        return Outcome(False, feasible(verdicts), mean, shortfall(verdicts), margins, values)


def specialists(root: Path, folder: Path, seed: int) -> Checkpoints:
    """Those of specialists.py, with items dealt by `seed`, and nothing said of where to begin."""
    space = write_files(root, folder, 200)
    fitness = yaml.safe_load((root / "fitness.yaml").read_text())
    about = yaml.safe_load(space.read_text())
    del about["genes"]["weight"]["init"]
    return _opened(root, about, fitness, seed, TEXTS)


def quickstart(root: Path, models: Path, seed: int) -> Checkpoints:
    """The quickstart's models (trained in `models` where they are missing), right or wrong, an absolute floor on each
    slice; a weight for each source in each half of the layers."""
    prepare(models)
    starter = Path(__file__).parents[1]
    shutil.copytree(starter / "fitness/quickstart", root / "quickstart", dirs_exist_ok=True)
    fitness = yaml.safe_load((starter / "fitness/quickstart.yaml").read_text())
    for piece in fitness["slices"].values():
        piece["floor"] = FLOOR
    about = yaml.safe_load((starter / "search_spaces/quickstart.yaml").read_text())
    about["base"] = str(models / "models/quickstart/base")
    about["sources"] = {domain: str(models / f"models/quickstart/{domain}") for domain in data.DOMAINS}
    about["genes"]["weight"].update({"low": 0.0, "high": 1.0})
    del about["genes"]["weight"]["init"], about["optimizer"]
    return _opened(root, {**about, "fitness": "fitness.yaml"}, fitness, seed, QUESTIONS)


def _opened(root: Path, space: dict[str, Any], fitness: dict[str, Any], seed: int, items: int) -> Checkpoints:
    fitness["split"] = {"search": 0.5, "seed": seed}
    for piece in fitness["slices"].values():
        piece["items"] = items
    (root / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
    (root / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    return Checkpoints(root / "space.yaml")
