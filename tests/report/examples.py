"""Results of searches and of single models, made up: any names, any number of slices, no model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from evomerge.examine.evaluate import Evaluated
from evomerge.examine.path import Point, ScoredPath
from evomerge.report.gains import gained_table
from evomerge.report.paths import path_summary, path_table
from evomerge.report.rankings import compared_table, compared_words, ranked_tables, ranked_words
from evomerge.report.results import result_table
from evomerge.report.runs import runs_table, status_tables, status_words
from evomerge.report.shown import Sheet
from evomerge.report.tables import evaluated_table
from evomerge.report.verdicts import verdict
from evomerge.scoring.gates import Gate, judge
from evomerge.scoring.slices import SliceInfo
from evomerge.scoring.stats.paired import Comparison
from evomerge.study.after.compare import Compared
from evomerge.study.after.rank import Ranked
from evomerge.study.after.status import Status, Unreadable
from evomerge.study.run.driver import Driver
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.release import Contributions, Release
from evomerge.study.run.trial import Trial
from evomerge.study.search import Result
from evomerge.types import ItemScore, SliceScore

SLICES = [
    "customer_support_shipping", "refunds", "english_general_knowledge_v2", "arc_easy", "mmlu_professional_medicine",
    "gsm8k_platinum", "toxicity-of-answers", "catalog_questions_german", "bits_of_the_news_2024", "hellaswag",
    "long_context_retrieval_32k", "truthfulqa_mc2",
]  # fmt: skip
SOURCES = ["mistralai/Mistral-7B-Instruct-v0.3", "org-with-a-long-name/shipping-lora", "refunds-and-returns-adapter"]


@dataclass
class Made:
    """Scores of references and trials on these slices; every third slice's metric is better when it is lower."""

    slices: Sequence[str] = tuple(SLICES[:3])
    sources: Sequence[str] = tuple(SOURCES)
    labels: Sequence[str] = ("equal weights 0.5", "a greedy soup of all sources")
    metric: str = "acc"
    model: str = "models/support-7b+adapters/refunds-and-returns"
    front: bool = False
    folder: Path = Path("runs/support-search-2024")
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def sign(self, at: int) -> int:
        return -1 if at % 3 == 2 else 1

    @property
    def gates(self) -> dict[str, Gate]:
        texts = ["0.5", f"0.97 of {self.sources[-1]} 0.5155", f"{self.sources[0]} 2.1 + 0.4"]
        floors = [0.5, 0.5, -2.5]
        return {n: Gate(n, floors[at % 3], texts[at % 3], self.sign(at)) for at, n in enumerate(self.slices)}

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        return {n: {"metric": self.metric, "sign": self.sign(at), "weight": 1.0} for at, n in enumerate(self.slices)}

    @property
    def infos(self) -> dict[str, SliceInfo]:
        signs = {name: self.sign(at) for at, name in enumerate(self.slices)}
        return {n: SliceInfo(n, s, self.metric, 1.0, None, (), None, "") for n, s in signs.items()}

    def score(self, at: int) -> float:
        return -self.random.uniform(1.5, 2.7) if self.sign(at) < 0 else self.random.uniform(0.45, 1.0)

    def trial(self, number: int, kind: Any, label: str, state: Any = "complete") -> Trial:
        scores = {} if state in ("failed", "running") else {n: self.score(at) for at, n in enumerate(self.slices)}
        return Trial(
            number,
            kind,
            label,
            {},
            "[]",
            f"{number:064d}",
            0,
            state,
            scores,
            stderr=dict.fromkeys(scores, 0.0123),
            objective=sum(scores.values()) / len(scores) if scores else None,
            digest=str(number),
            seconds={"total": 12.5},
            reason="no more memory" if state == "failed" else None,
            pruned_by="racing" if state == "pruned" else None,
            evaluated=10 if state == "pruned" else 0,
            items=100,
        )

    def board(self, kinds: str) -> Leaderboard:
        """References, and one trial for each letter: (c)omplete, (p)runed, (f)ailed, (r)unning."""
        names = ["base", *self.sources, "uniform"]
        trials = [self.trial(at, "reference", name) for at, name in enumerate(names)]
        states = {"c": "complete", "p": "pruned", "f": "failed", "r": "running"}
        for at, letter in enumerate(kinds):
            label = self.labels[at] if at < len(self.labels) else ""
            trials.append(self.trial(len(names) + at, "search", label, states[letter]))
        floors = Floors(self.gates, dict.fromkeys(self.slices, 1.0), traded=tuple(self.slices) if self.front else ())
        return Leaderboard(floors, trials)

    @property
    def both(self) -> tuple[Leaderboard, Leaderboard]:
        return self.board("ccpcpfr"), self.board("cc")

    @property
    def gained(self) -> Contributions:
        groups = [("weight", source) for source in self.sources] + [("lambda", "")]
        parts = {
            (*g, place): self.random.gauss(0, 0.02) for g in groups for place in ("", "layer 0", "layers 10 to 31")
        }
        return Contributions(5, 7, (0.7, 0.8), parts)

    @property
    def result(self) -> Result:
        search, holdout = self.both
        return Result(RunFolder(self.folder), search, holdout, holdout.best(), self.infos, 0.95, self.gained)

    def status(self, driver: Driver | None = None, finished: bool = False) -> Status:
        search, holdout = self.board("ccpcpf" if finished else "ccpcpfr"), self.board("cc")
        release = Release(holdout, holdout.best() or holdout.trials[-1], search.n_finished if finished else 4)
        budget = {"trials": 60, "seconds": 7200.0}
        return Status(RunFolder(self.folder), budget, self.facts, search, release, (), self.gained, driver)

    @property
    def ranked(self) -> Ranked:
        search, holdout = self.both
        folder, left = RunFolder(self.folder), tuple(t for t in search.trials if t.kind == "search")[-1:]
        winner, fitness = holdout.best(), Path(self.model).with_suffix(".yaml")
        return Ranked(folder, fitness, self.facts, None, search, holdout, search.trials[5], winner, left)

    @property
    def compared(self) -> Compared:
        a, b = self.board("cc").trials[-2:]
        comparisons = {
            n: Comparison(0.9, 0.8123, 0.0877, (0.0123, 0.1631), 0.0004, "paired bootstrap", 120) for n in self.slices
        }
        totals = dict.fromkeys(self.slices, 150)
        return Compared(RunFolder(self.folder), "holdout", a, b, self.facts, comparisons, totals)

    def slice_scores(self, t: float = 0.0) -> dict[str, SliceScore]:
        scores = {}
        for at, name in enumerate(self.slices):
            right = round(50 * self.random.uniform(0.4, 1.0))
            items = tuple(ItemScore(str(i), float(i < right)) for i in range(50))
            good = SliceScore(right / 50, 0.05, items, loss=1.0 + t * (1 - t))
            scores[name] = SliceScore(self.score(at), 0.0214, (), loss=2.0 + t) if self.sign(at) < 0 else good
        return scores

    @property
    def evaluated(self) -> Evaluated:
        scores, gates = self.slice_scores(), self.gates
        verdicts = judge(scores, gates, {})
        return Evaluated(self.model, "holdout", "d" * 64, 0.8, self.infos, scores, gates, verdicts, {}, 0.95)

    @property
    def path(self) -> ScoredPath:
        wanted, gates = [i / 4 for i in range(5)], self.gates
        points = []
        for t in wanted:
            scores = self.slice_scores(t)
            points.append(Point(t, "d", 0.5, scores, judge(scores, gates, {})))
        infos: Any = {n: SimpleNamespace(**vars(info), show=info.show, counts={}) for n, info in self.infos.items()}
        return ScoredPath(
            self.model,
            self.sources[0],
            "holdout",
            infos,
            gates,
            points,
            wanted,
            {},
            0.95,
            dict.fromkeys(self.slices, 50),
        )

    @property
    def sheets(self) -> dict[str, Sheet]:
        driver = Driver(1234567, "gpu-node-17.cluster.example.org", "2024-05-06 07:08:09")
        states = [self.status(), self.status(driver), self.status(finished=True), self.unreadable]
        return {
            "result": result_table(self.result),
            "status, search": status_tables(self.status())[0],
            "status, holdout": status_tables(self.status())[1],
            "runs": runs_table(states),
            "ranked, search": ranked_tables(self.ranked)[0],
            "ranked, both": ranked_tables(self.ranked)[1],
            "compared": compared_table(self.compared),
            "evaluated": evaluated_table(self.evaluated),
            "path": path_table(self.path),
            "gained": gained_table(self.gained),
        }

    @property
    def unreadable(self) -> Unreadable:
        return Unreadable(RunFolder(self.folder), f"{self.model} is damaged (KeyError: 'digest')")

    @property
    def words(self) -> list[str]:
        return [
            *verdict(self.result),
            status_words(self.status()),
            *ranked_words(self.ranked),
            compared_words(self.compared),
            *path_summary(self.path),
        ]
