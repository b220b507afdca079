"""The look ahead: nine tenths into its budget, a search that is unlikely to end with a winner asks the holdout about
its finalists. If all of them fail, it goes on, and aims higher above its floors.

The holdout decides whether the search goes on as before, and nothing else: who the finalists are, and how far above the
floors the rest of the search aims, follows from the search items alone.
"""

from __future__ import annotations

from dataclasses import replace

from evomerge.study import holdout
from evomerge.study.advice import CHANCE
from evomerge.study.loop import Budget
from evomerge.study.run.release import looked, record_look
from evomerge.study.session import Session

HOPELESS = 0.05
"""A smaller chance of a winner is no matter of how far above the floors a search aims."""


def look_ahead(session: Session, budget: Budget) -> None:
    """Looks, if it is time and was not done yet for this budget. Called between two generations, which a session that
    continues a killed one reaches at the same trials.

    Three searches do not look: one with `confidence`, where every finalist more widens the bounds of all; one that
    trades slices off, which has a front in place of finalists; and one whose last tenth is too short to find anything.
    """
    nearly, store = budget.nearly(), session.store
    if nearly is None or session.plan.fitness.confidence is not None or session.plan.fitness.traded:
        return
    look = looked(store)
    if look.budget == budget.to_data() or nearly.left(session, 1):
        return
    _, finalists = holdout.shortlist(session, in_full=False)
    look = replace(look, budget=budget.to_data())
    if HOPELESS <= finalists.chance < CHANCE:
        session.observer.phase(f"a winner is unlikely ({finalists.chance:.0%}): asking the holdout about the finalists")
        if holdout.release(session, nearly.to_data()).winner is None:
            following = 1 + max(trial.number for trial in session.trials.leaderboard.trials)
            failed = (*look.failed, *(finalist.trial.number for finalist in finalists.chosen))
            look = replace(look, raised=following if look.raised is None else look.raised, failed=failed)
            session.observer.note("none of the finalists passes: the rest of the search aims higher above the floors")
        session.observer.phase("searching on")
    record_look(store, look)
    session.aim()
