"""The real checkpoints of benchmarks/search.py, in memory: genome and split -> outcome."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from specialists import write_files

from evomerge.evaluator.evaluator import Evaluator, place_candidates
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.gates import feasible, judge, scales, settle, shortfall
from evomerge.study.observer import Observer
from evomerge.study.prepare import launched_plan
from evomerge.study.run.manifest import Launch
from evomerge.types import Genome, Outcome, Scores, SplitName

ITEMS = 24


class Specialists:
    """`scored` are the outcomes, on the search split, of base, sources and average; `parents` the genomes of the
    first two, which are no merges."""

    def __init__(self, root: Path, folder: Path, seed: int) -> None:
        torch.set_num_threads(1)
        plan = launched_plan(Launch(str(_space(root, folder, seed))))
        self._space, self._fitness = plan.space, plan.fitness
        placement = place_candidates(plan.models, plan.fitness, "cpu", None)
        self._bench = Evaluator.load(plan.models, plan.fitness, placement, Observer())
        models = {"base": plan.space.models.base, **plan.space.models.sources}
        recipes = {name: plan.space.parent(reference) for name, reference in models.items()}
        self._scores: dict[tuple[str, SplitName], Scores] = {}
        self._gates, self._scales = {}, {}
        splits: tuple[SplitName, SplitName] = ("search", "holdout")
        for split in splits:
            measured = {name: self._scored(recipe, split) for name, recipe in recipes.items()}
            self._gates[split] = settle(self._bench.suite.info.slices, measured)
            self._scales[split] = scales(measured, self._gates[split])
        self.dimensions, self.references = plan.space.dimensions, plan.space.reference_genomes
        self.parents = [self.references[name].genome for name in models]
        recipes["uniform"] = plan.space.uniform()
        self.scored = {name: self._outcome(recipe, "search") for name, recipe in recipes.items()}
        self.base_on_holdout = self._outcome(recipes["base"], "holdout").objective

    def outcome(self, genome: Genome, split: SplitName) -> Outcome:
        return self._outcome(self._space.recipe(genome), split)

    def _outcome(self, recipe: Recipe, split: SplitName) -> Outcome:
        scores = self._scored(recipe, split)
        verdicts = judge(scores, self._gates[split], self._scales[split])
        values = tuple(score.value for score in scores.values())
        margins = tuple((v.bound - v.floor) / self._scales[split][v.slice] for v in verdicts if v.floor is not None)
        mean = sum(values) / len(values)
        return Outcome(False, feasible(verdicts), mean, shortfall(verdicts), margins, values)

    def _scored(self, recipe: Recipe, split: SplitName) -> Scores:
        key = (recipe.id, split)
        if key not in self._scores:
            self._scores[key] = self._bench.evaluate(recipe, split, lambda name: None).scores
        return self._scores[key]


def _space(root: Path, folder: Path, seed: int) -> Path:
    """The files of specialists.py, with items dealt by `seed`, and nothing said of where to begin."""
    space = write_files(root, folder, 200)
    fitness = yaml.safe_load((root / "fitness.yaml").read_text())
    fitness["split"] = {"search": 0.5, "seed": seed}
    for piece in fitness["slices"].values():
        piece["items"] = ITEMS
    (root / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
    about = yaml.safe_load(space.read_text())
    del about["genes"]["weight"]["init"]
    space.write_text(yaml.safe_dump(about, sort_keys=False))
    return space
