"""A race among recorded candidates: from whom they are predicted, and that it decides by items alone."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from evomerge.evaluator.jobs import EvalTask
from evomerge.optimize.ordering import rank_key
from evomerge.scoring.gates import Gate
from evomerge.scoring.stats.aggregation import ItemWeights, MeanKind
from evomerge.scoring.stats.forecast import Forecaster
from evomerge.study.racing.bounds import ScoreBounds
from evomerge.study.racing.race import Control, Entry, Race
from evomerge.study.racing.rungs import ItemNames, ItemSchedule
from evomerge.study.run.items import Items
from evomerge.study.run.leaderboard import Floors
from evomerge.types import ItemScore, Outcome

COUNT, FIRST = 40, 8


def answers(right: set[int]) -> dict[str, dict[str, ItemScore]]:
    return {"s": {str(i): ItemScore(str(i), float(i in right), 1.0, float(i in right)) for i in range(COUNT)}}


class Recorded:
    """A course over one slice of right and wrong answers, a tenth of which is met first; and who answers them."""

    def __init__(self, pruning: tuple[str, ...] = ("racing",)) -> None:
        composition = ItemWeights.of(MeanKind(1, best=1.0, worst=0.0), answers(set())["s"].values())
        self.item_weights = {"s": composition}
        self.forecasters = {"s": Forecaster(composition, None)}
        self.rungs = self.ladder = [FIRST / COUNT]
        self.total, self.pools = COUNT, []
        self.fitness = SimpleNamespace(pruning=pruning, batch_size=8)

    def rung(self, share: float) -> ItemNames:
        return {"s": frozenset(str(i) for i in range(round(share * COUNT)))}

    def part(self, rung: ItemNames) -> float:
        return len(rung["s"]) / COUNT

    def next_rung(self, rung: ItemNames, part: float) -> float:
        return 1.0 if rung or part > FIRST / COUNT else FIRST / COUNT

    def count(self, items: Items) -> int:
        return len(items.get("s", ()))

    def race(self, controls: list[set[int]], field: list[set[int]]) -> tuple[Race, list[Entry]]:
        entries = [Entry(cast(Any, SimpleNamespace(number=n, reason=None))) for n in range(len(field))]
        truth = {id(entry): answers(right) for entry, right in zip(entries, field, strict=True)}

        def score(entry: Entry, names: ItemNames) -> EvalTask[None]:
            for name, items in names.items():
                entry.items.setdefault(name, {}).update({i: truth[id(entry)][name][i] for i in items})
            yield from ()

        def run_all(tasks: Iterable[EvalTask[None]]) -> list[Any]:
            return [job for task in tasks for job in task]  # there is none

        weights = self.item_weights["s"]
        known = [Control({"s": weights.units(answers(right)["s"])}, {"s": len(right) / COUNT}) for right in controls]
        bounds = ScoreBounds(
            Floors({"s": Gate("s", 0.0)}, {"s": 1.0}), lambda scores: scores["s"], self.item_weights, {}, None
        )
        best = rank_key(Outcome(feasible=True, objective=max(c.scores["s"] for c in known)))
        return Race(
            cast(ItemSchedule, self),
            bounds,
            known,
            best,
            entries,
            [],
            {"s": 1.0},
            parents=2,
            seed=(0,),
            score=score,
            keep=lambda entry: None,
            run_all=run_all,
        ), entries


def test_candidates_are_predicted_from_the_merge_that_answers_most_as_they_do() -> None:
    best = {0, 1, *range(8, 32)}
    alike = {0, 1, 2, 3, 4, 5, 8, 9}
    recorded = Recorded()
    race, entries = recorded.race([best, alike], [{*range(6), 8, 9, n} for n in range(10, 18)])
    rung = recorded.rung(FIRST / COUNT)
    list(race._run_all(race._score(entry, rung) for entry in entries))
    race._choose_control(rung)
    for entry in entries:
        assert race.predicted(entry)["s"] == pytest.approx(len(alike) / COUNT), "not 0.75, as by the best"


def test_a_race_over_what_a_killed_one_left_decides_the_same() -> None:
    field = [{*range(40)}, {*range(39)}, *({*range(8, 8 + n)} for n in range(6))]
    known = [{*range(n)} for n in range(16, 20)]
    first, entries = Recorded().race(known, field)
    first.run()
    ended = [entry.pruned for entry in entries]
    again, others = Recorded().race(known, field)
    for entry, other in zip(entries[::2], others[::2], strict=True):
        other.items = {name: dict(items) for name, items in entry.items.items()}
    again.run()
    assert [entry.pruned for entry in others] == ended
    assert [entry.items for entry in others] == [entry.items for entry in entries]
    assert None in ended
    assert any(ended)


def test_the_rank_of_a_candidate_with_all_items_is_the_same_in_each_draw() -> None:
    rivals = [{*range(n)} for n in (10, 20, 30)]
    race, entries = Recorded().race([{*range(25)}], [{*range(5), *range(8, 30)}, *rivals])
    items = answers(set())["s"]
    for entry, right in zip(entries[1:], rivals, strict=True):
        entry.items = {"s": {name: answers(right)["s"][name] for name in items}}
    entries[0].items = {"s": {str(i): answers({*range(5)})["s"][str(i)] for i in range(FIRST)}}
    race._rivals = entries[1:]
    rung = Recorded().rung(FIRST / COUNT)
    keys = race._drawn_keys(entries, rung)
    assert all(len({row[at] for row in keys}) == 1 for at in (1, 2, 3))
    assert len({row[0] for row in keys}) > 1


def test_no_candidate_falls_out_while_its_rank_is_noise() -> None:
    """All answer alike on the first items: whoever is better shows later."""
    field = [{0, 1, 2, 3, *range(8, 8 + 3 * n)} for n in range(8)]
    race, entries = Recorded().race([{*range(n)} for n in range(16, 20)], field)
    race.run()
    assert all(entry.pruned is None and len(entry.items["s"]) == COUNT for entry in entries)


def test_candidates_that_differ_clearly_fall_out_on_few_items() -> None:
    field = [{*range(40)}, {*range(39)}, *({*range(8, 8 + n)} for n in range(6))]
    race, entries = Recorded().race([{*range(n)} for n in range(16, 20)], field)
    race.run()
    # One is scored in full, and the other one known well enough.
    assert [entry.pruned is None for entry in entries] == [True] + [False] * 7
    assert all(len(entry.items["s"]) == FIRST for entry in entries[2:])


def test_where_nothing_is_known_of_merges_all_items_are_scored() -> None:
    race, entries = Recorded().race([{*range(16)}], [{*range(40)}, *({*range(8, 8 + n)} for n in range(7))])
    race.run()
    assert all(len(entry.items["s"]) == COUNT for entry in entries)
