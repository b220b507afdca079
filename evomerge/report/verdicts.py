"""Says how a search ended: the winner and what is to be known of it, or what would help."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import islice

from evomerge.errors import InputError
from evomerge.numbers import number
from evomerge.report.items_scored import ItemsScored
from evomerge.report.results import carried_over, closest, missed_floors, result_table
from evomerge.report.shown import Sheet
from evomerge.report.tables import describe
from evomerge.scoring.gates import Gate
from evomerge.scoring.stats.paired import EXACT, Comparison
from evomerge.study.advice import CHANCE, MOST_TIMES
from evomerge.study.after.compare import Side, between
from evomerge.study.run.leaderboard import Leaderboard, better_parent, passing_parent
from evomerge.study.run.recorded import recorded_scores
from evomerge.study.run.release import Advice, Ended
from evomerge.study.run.trial import Trial

SURE = 0.05
"""A difference that is so improbable by chance is taken for one."""


def ending(result: Ended) -> list[Sheet | str]:
    """The table of both splits, and what it says."""
    return [result_table(result), *verdict(result)]


def verdict(result: Ended, look_closer: bool = True) -> list[str]:
    """Says how a search ended, how many items it scored, and what to do next. With `look_closer`, the winner is also
    compared with the best other merges, item by item."""
    items = ItemsScored.of(result.search.trials)
    counts = [str(items)] if items.in_full else []
    return [*counts, *_outcome(result, look_closer), *front_words(result)]


def front_words(result: Ended) -> list[str]:
    """Lists the points of a front with their search scores and their places on the holdout split; empty without one."""
    points = result.search.front()
    if not points:
        return []
    known, still = {t.number for t in result.holdout.trials}, {t.number for t in result.holdout.front()}
    able = {t.number for t in result.holdout.trials if result.holdout.outcome(t).feasible}
    count = f"{len(points)} trade-off{'s' if len(points) > 1 else ''}"
    words = [f"front: {count} by the search items; `evomerge export {result.folder.handle} --trial N` takes any"]
    for trial in points:
        holdout = "not scored on the holdout items"
        if trial.number in known:
            passes = "another is as good" if trial.number in able else "misses a floor"
            holdout = f"holdout: {'on the front' if trial.number in still else passes}"
        words.append(f"  {result.search.floors.describe(trial)} ({holdout})")
    return words


def _outcome(result: Ended, look_closer: bool) -> list[str]:
    name = result.folder.handle
    if result.winner is not None:
        parent = better_parent(result.holdout, result.winner)
        gain = carried_over(result.search, result.holdout, result.winner)
        words = [f"winner: {describe(result.winner)} passes every floor; `evomerge export {name} -o best.yaml`"]
        words += [str(gain)] if gain else []
        words += _asked(result)
        if parent is not None:
            words.append(f"note: {parent.label} itself passes every floor and scores better; no merge beat it")
        words += worse_than_base(result)
        return [*words, *(ties(result) if look_closer else [])]
    last = closest(result.holdout)
    if last is None:
        return ["no winner: no merge could be scored", *_failures(result)]
    missed = missed_floors(result.holdout, last)
    words = [f"no winner: no candidate passes every floor on the holdout split; closest is {describe(last)}: {missed}"]
    parent = passing_parent(result.holdout)
    words += [f"note: {parent.label} itself passes every floor"] if parent is not None else []
    advice = result.release.advice if result.release else None
    if advice is not None:
        return [*words, *advice_words(advice, result.holdout, name)]
    # Of a front no chances were reckoned.
    bounds = {v.slice: v.bound for v in result.holdout.verdicts(last) if not v.passed}
    return [*words, "what would help:", *_lower_floors(describe(last), bounds, result.holdout), _more_trials(name)]


def _failures(result: Ended) -> list[str]:
    """Says why trials failed: the commonest reason."""
    reasons = Counter(t.reason for t in result.search.trials if t.state == "failed" and t.reason)
    if not reasons:
        return []
    reason, count = reasons.most_common(1)[0]
    return [f"  {sum(reasons.values())} trials failed, {count} of them so: {reason} (more in {result.folder.log})"]


def _asked(result: Ended) -> list[str]:
    """Says how many finalists the holdout was asked about, and what chance the winner had."""
    chances = result.release.chances if result.release else {}
    known = {t.number for t in result.holdout.trials}
    n_asked = sum(number in known for number in chances)
    if not chances or result.winner is None:
        return []
    chance = chances.get(result.winner.number)
    # The uniform average is scored as a reference, whether it is a finalist or not.
    words = "the winner is none of them" if chance is None else f"the search items gave the winner {chance:.0%} to pass"
    return [f"the holdout was asked about {n_asked} of {len(chances)} finalists; {words}"]


def advice_words(advice: Advice, holdout: Leaderboard, run: str) -> list[str]:
    """Says what would help: lower floors, more items, more trials of the run, each with how much."""
    name = next((describe(t) for t in holdout.trials if t.number == advice.trial), f"trial {advice.trial}")
    words = _lower_floors(name, advice.floors, holdout)
    if advice.items is not None and advice.items > MOST_TIMES:
        words.append(f"  more items: {name} needs more than {MOST_TIMES} times as many in each split")
    elif advice.items is not None:
        many = f"{advice.items:g} times as many in each split" if advice.items > 1 else "as many others in each split"
        words.append(f"  more items: with {many}, {name} passes with 80 % probability")
    elif words:
        words.append(f"  more items: no number of them helps {name}, which lies below a floor on both splits together")
    if advice.chances is not None:
        before, now = advice.chances
        so_far = f"the best chance by the search items was {before:.0%} after half of the trials, and is {now:.0%}"
        more = "; more of them are not likely to help"
        if advice.trials:
            more = f"; at this pace it is 80 % after {advice.trials}: `evomerge resume {run} --trials {advice.trials}`"
        elif now >= CHANCE:
            more = "; it is high: other items may decide otherwise"
        words.append(f"  more trials: {so_far}{more}")
    else:
        words.append(_more_trials(run))
    return ["what would help:", *words]


def _lower_floors(name: str, bounds: Mapping[str, float], holdout: Leaderboard) -> list[str]:
    lower = [_lower(holdout.gates[slice_], bound) for slice_, bound in bounds.items()]
    return [f"  lower floors: {name} passes with {', '.join(lower)} (`evomerge rank` shows it)"] if lower else []


def _more_trials(run: str) -> str:
    return f"  more trials: `evomerge resume {run} --trials N`, with a larger total"


def _lower(gate: Gate, bound: float) -> str:
    """A floor that is passed, and how far below the one that is missed it lies, both in the metric's direction."""
    # Rounded to the side on which the trial passes.
    floor = math.floor(bound * 1e4) / 1e4
    less = "" if gate.floor is None else f" ({gate.floor - floor:.4g} {'lower' if gate.sign > 0 else 'higher'})"
    return f"{gate.slice} {gate.sign * floor:.6g}{less}"


# The winner beside others, item by item


def worse_than_base(result: Ended) -> list[str]:
    """Says on which slices the winner is worse than the base beyond chance, though it passes their floors."""
    winner, base = result.winner, result.holdout.base
    if winner is None or base is None or not base.scores:
        return []
    comparisons = _compared(result, result.holdout, "holdout", winner, base)
    lost = []
    for name, c in comparisons.items():
        if c.p is not None and c.p < SURE and c.difference * result.holdout.gates[name].sign < 0:
            within = "within its floor" if result.holdout.gates[name].floor is not None else "it has no floor"
            chance = "" if c.test == EXACT else ", p < 0.001" if c.p < 0.001 else f", p = {c.p:.3f}"
            lost.append(f"{name} {number(c.first)} against {number(c.second)} ({within}{chance})")
    return [f"note: worse than the base beyond chance on the holdout items: {'; '.join(lost)}"] if lost else []


def ties(result: Ended, most: int = 10) -> list[str]:
    """Says which of the best other merges cannot be told apart from the winner by the search items."""
    if result.winner is None or result.search.floors.traded:
        return []
    known = {t.number: t for t in result.search.trials}
    winner = known[result.winner.number]
    best = (t for t in result.search.merges_in_order() if t.digest != winner.digest and t.duplicate_of is None)
    others = list(islice((t for t in best if result.search.outcome(t).feasible), most))
    tied = [t for t in others if _is_tie(_compared(result, result.search, "search", winner, t))]
    if not tied or winner.state != "complete":
        return []
    names = ", ".join(t.name for t in tied)
    return [f"cannot be told apart from the winner by the search items: {names} (of the {len(others)} best others)"]


def _is_tie(comparisons: Mapping[str, Comparison]) -> bool:
    known = [c.p for c in comparisons.values() if c.p is not None]
    return bool(known) and all(p >= SURE for p in known)


def _compared(result: Ended, board: Leaderboard, split: Side, first: Trial, second: Trial) -> dict[str, Comparison]:
    """Compares two trials on a split; empty where items of them are damaged or missing."""
    whole = [t for t in board.trials if t.is_parent and t.state == "complete"][:1]
    try:
        scores = [recorded_scores(result.folder.items, trial, split) for trial in (first, second, *whole)]
    except InputError:
        return {}
    return between(first, second, scores, result.facts)
