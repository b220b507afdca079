"""Run folders of any kind, made without a model: the storage, the items and the texts of a search that never was."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from evomerge.recipe.recipe import Document as Merge
from evomerge.recipe.recipe import Input, Recipe, Slice
from evomerge.scoring.gates import Gate
from evomerge.study.run.documents import write_documents
from evomerge.study.run.evaluation import TrialResult
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.items import write_items
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.release import Release, record_holdout, record_release, with_holdout_scores
from evomerge.study.run.store import Store, open_storage
from evomerge.study.run.trial import Trial
from evomerge.types import Dimension, Document, ItemScore, SliceScore, SplitName

ITEMS = 12


@dataclass
class MadeRun:
    """A run with these slices, sources and genes.

    Attributes:
        kinds: a letter for each searched trial: (c)omplete, (b)ad (misses every floor), (p)runed, (f)ailed, (r)unning.
        winner: whether the last good trial passes on the holdout; None: the search has not ended.
        texts: whether the items' texts were kept.
        prompt, answer, reason: of items and of failed trials.
    """

    root: Path
    name: str = "made"
    slices: Sequence[str] = ("shipping", "refunds", "catalog")
    sources: Sequence[str] = ("one", "two")
    kinds: str = "ccbcpfc"
    genes: int = 4
    winner: bool | None = True
    pareto: bool = False
    texts: bool = True
    prompt: str = "What does the parcel cost?"
    answer: str = "seven"
    reason: str = "out of memory"
    metric: str = "acc"
    floor: float = 0.5
    turn: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def dimensions(self) -> list[Dimension]:
        return [Dimension(f"weight[{at}]", 0.0, 1.0, 0.4, gene="weight") for at in range(self.genes)]

    def make(self) -> Path:
        """Writes the folder; returns it."""
        folder = RunFolder(self.root / "runs" / self.name)
        folder.items.mkdir(parents=True)
        self._launch(folder)
        store = Store.create(open_storage(folder.journal, None), self.name, self.dimensions)
        store.record("budget", {"trials": 4 + len(self.kinds), "seconds": None})
        store.record("slices", {n: {"metric": self.metric, "sign": 1, "weight": 1.0} for n in self.slices})
        labels = ["base", *self.sources, "uniform"]
        for at, label in enumerate(labels):
            trial = store.start("reference", label, {}, self._recipe({}), 0)
            self._end(folder, store, trial, 0.2 + 0.2 * at / len(labels))
        floors = Floors(
            {name: Gate(name, self.floor, f"{self.floor:.6g}") for name in self.slices},
            dict.fromkeys(self.slices, 1.0),
            traded=tuple(self.slices) if self.pareto else (),
        )
        store.record("gates", floors.to_data())
        for at, letter in enumerate(self.kinds):
            genome = {d.key: round(self.random.random(), 4) for d in self.dimensions}
            label = ("equal 0.4", "greedy soup")[at] if at < 2 else ""
            trial = store.start("search", label, dict(genome), self._recipe(genome), 0)
            if letter == "f":
                store.end(trial, TrialResult.failure(self.reason, {"total": 1.0}))
            elif letter != "r":
                self._end(folder, store, trial, 0.2 if letter == "b" else 0.7 + 0.02 * at, pruned=letter == "p")
        if self.texts:
            write_documents(folder.items, {name: self._documents() for name in self.slices})
        if self.winner is not None:
            self._release(folder, store, floors)
        return folder.path

    def _launch(self, folder: RunFolder) -> None:
        models = {name: str(self.root / "models" / f"m{at}") for at, name in enumerate(["base", *self.sources])}
        space = {
            "base": models.pop("base"),
            "sources": models,
            "genes": {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0, "init": 0.4}},
            "optimizer": {"name": "surrogate", "seed": 0},
        }
        identity = {
            "space file": space,
            "fitness file": {"objective": "pareto" if self.pareto else "mean", "slices": {}},
            "checkpoints": {name: f"{at:064d}" for at, name in enumerate(["base", *self.sources])},
            "items": {name: f"{at:064d}" for at, name in enumerate(self.slices)},
        }
        launch = {"space": str(self.root / "space.yaml"), "settings": [], "optimizer": None, "fitness": None,
                  "folder": str(self.root), "trust_tasks": False, "allow_pickle": False}  # fmt: skip
        environment = {"launch": launch, "study": self.name, "identity": identity, "versions": {"evomerge": "0"},
                       "device": "cpu", "storage": None, "memory": None, "workers": 1}  # fmt: skip
        folder.space.write_text(yaml.safe_dump(space))
        folder.environment.write_text(json.dumps(environment))

    def _recipe(self, genome: dict[str, float]) -> Recipe:
        """Two runs of layers; the genes' values are the weights of tensors."""
        values = [{"filter": f"layers.0.part_{key}", "value": value} for key, value in genome.items()]
        weight = [*values, {"value": self.random.random()}]
        references = {name: str(self.root / "models" / f"m{at + 1}") for at, name in enumerate(self.sources)}
        layers = ((0, 2), (2, 4))
        slices = tuple(
            Slice(tuple(Input(model, span, {"weight": weight}) for model in references.values())) for span in layers
        )
        return Recipe((Merge("task_arithmetic", slices, str(self.root / "models" / "m0"), out_dtype="float32"),))

    def _scores(self, level: float, right: int) -> dict[str, SliceScore]:
        return {
            name: SliceScore(
                min(1.0, level + 0.01 * at),
                0.05,
                tuple(
                    ItemScore(
                        f"task/{i}", float((i + self.turn) % ITEMS < right), answer=self.answer if i % 2 else None
                    )
                    for i in range(ITEMS)
                ),
            )
            for at, name in enumerate(self.slices)
        }

    def _result(self, level: float, pruned: bool = False) -> TrialResult:
        self.turn += 5  # each trial is right on others
        scores = self._scores(level, round(level * ITEMS))
        return TrialResult(
            {"materialize": 0.5, "score": 2.0, "total": 2.6},
            scores,
            digest=f"{self.random.randrange(10**15):064d}",
            objective=sum(s.value for s in scores.values()) / len(scores),
            evaluated=ITEMS * len(self.slices) // (2 if pruned else 1),
            items=ITEMS * len(self.slices),
            reason="predicted to lose" if pruned else None,
            pruned_by="racing" if pruned else None,
        )

    def _end(self, folder: RunFolder, store: Store, trial: Trial, level: float, pruned: bool = False) -> None:
        result = self._result(level, pruned)
        self._keep(folder, trial, "search", result)
        store.end(trial, result)

    def _keep(self, folder: RunFolder, trial: Trial, split: SplitName, result: TrialResult) -> None:
        write_items(folder.items, trial.number, split, {name: s.items for name, s in result.scores.items()})

    def _documents(self) -> list[Document]:
        choices = (self.answer, "eight", "nine")
        return [Document(f"task/{i}", "holdout", i, f"{self.prompt} {i}", choices, self.answer) for i in range(ITEMS)]

    def _release(self, folder: RunFolder, store: Store, floors: Floors) -> None:
        search = Leaderboard(floors, store.trials())
        chosen = [t for t in search.trials if t.kind == "reference"]
        best = next((t for t in search.merges() if t.kind == "search"), None)
        chosen += [best] if best is not None else []
        for trial in chosen:
            level = (trial.objective or 0.0) if trial.kind == "reference" or self.winner else 0.4
            result = self._result(min(level, 1.0))
            self._keep(folder, trial, "holdout", result)
            record_holdout(store, trial, result)
        rescored = [t for trial in chosen if (t := with_holdout_scores(store, trial)) is not None]
        holdout = Leaderboard(floors, rescored)
        after = sum(t.state != "running" for t in search.trials)
        chances = {best.number: 0.9} if best is not None else {}
        budget = {"trials": after, "seconds": None}
        record_release(store, Release(holdout, holdout.best(), after, budget, chances))
