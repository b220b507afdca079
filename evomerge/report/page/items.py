"""Items that the merge gets wrong and a parent right, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.report.page.run import SPLITS, Run
from evomerge.study.after.differences import differences
from evomerge.study.run.trial import Trial
from evomerge.types import ItemScore, SplitName

SHOWN, MOST = 8, 40
"""Items of a slice that are shown, and of a page."""

Scored = Mapping[str, Mapping[str, ItemScore]]


def items_data(run: Run) -> dict[str, Any] | None:
    """Returns, for each slice and parent, on how many items either is better, and the items that most parents get right
    and the merge wrong. None where there is no merge, or no items of it."""
    subject = run.subject
    split = _split(run, subject)
    if subject is None or split is None:
        return None
    merged, parents = run.items(subject.number, split), _parents(run, split)
    slices = [_slice(run, name, merged, parents) for name in run.slices if merged.get(name) and parents]
    shown = max(1, min(SHOWN, MOST // max(1, len(slices))))
    for part in slices:
        part["items"] = part["items"][:shown]
    return {
        "split": split,
        "trial": subject.number,
        "with_texts": any(item["prompt"] for part in slices for item in part["items"]),
        "slices": slices,
    }


def _split(run: Run, subject: Trial | None) -> SplitName | None:
    """The first split on which the merge and a parent have items."""
    if subject is None:
        return None
    usable = (split for split in SPLITS if run.items(subject.number, split) and _parents(run, split))
    return next(usable, None)


def _parents(run: Run, split: SplitName) -> dict[str, Scored]:
    parents = [t for t in run.references() if t.is_parent and run.on(split, t.number)]
    return {t.label: items for t in parents if (items := run.items(t.number, split))}


def _slice(run: Run, name: str, merged: Scored, parents: Mapping[str, Scored]) -> dict[str, Any]:
    sign, texts = run.signs[name], run.documents.get(name, {})
    own = merged[name]
    counts = {}
    for parent, scored in parents.items():
        found = differences(own, scored.get(name, {}), sign, texts, 0)
        counts[parent] = {
            "merge_better": found.first_better,
            "parent_better": found.second_better,
            "items": found.items,
        }
    lost = sorted(own, key=lambda item: _loss(item, name, own, parents, sign), reverse=True)
    lost = [item for item in lost if _loss(item, name, own, parents, sign)[0] > 0]
    return {
        "slice": name,
        "right_or_wrong": all(i.score in (0.0, 1.0) for i in own.values()),
        "items_of_merge": len(own),
        "parents": counts,
        "lost": len(lost),
        "gained": sum(_gained(item, name, own, parents, sign) for item in own),
        "items": [_item(run, item, name, own, parents, sign) for item in lost[:SHOWN]],
    }


def _scores(item: str, name: str, parents: Mapping[str, Scored]) -> list[float]:
    found = (scored.get(name, {}).get(item) for scored in parents.values())
    return [i.score for i in found if i is not None and i.score is not None]


def _loss(item: str, name: str, own: Mapping[str, ItemScore], parents: Mapping[str, Scored], sign: int) -> Any:
    """How much worse the merge is than the best parent, and how many parents are better: the order of the items."""
    score, others = own[item].score, _scores(item, name, parents)
    if score is None or not others:
        return 0.0, 0
    worse = [sign * (other - score) * own[item].weight for other in others]
    return max(0.0, *worse), sum(loss > 0 for loss in worse)


def _gained(item: str, name: str, own: Mapping[str, ItemScore], parents: Mapping[str, Scored], sign: int) -> bool:
    """Whether the merge is better than every parent."""
    score, others = own[item].score, _scores(item, name, parents)
    return score is not None and bool(others) and all(sign * (score - other) > 0 for other in others)


def _item(
    run: Run, item: str, name: str, own: Mapping[str, ItemScore], parents: Mapping[str, Scored], sign: int
) -> dict[str, Any]:
    document, score = run.documents.get(name, {}).get(item), own[item].score or 0.0
    given = {parent: scored.get(name, {}).get(item) for parent, scored in parents.items()}
    return {
        "item": item,
        "number": document.number if document else None,
        "prompt": document.prompt if document else None,
        "choices": list(document.choices) if document else [],
        "right_answer": document.answer if document else None,
        "merge": {"score": own[item].score, "answer": own[item].answer, "written": own[item].written},
        "parents": {
            parent: {
                "score": found.score,
                "answer": found.answer,
                "written": found.written,
                "better": found.score is not None and sign * (found.score - score) > 0,
            }
            for parent, found in given.items()
            if found is not None
        },
    }
