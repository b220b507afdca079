"""The quickstart's texts: the support desk of a shop that ships goods, in two editions.

The *old* edition holds last year's tariff, refund rules and catalogue; the *new* edition holds this year's. Prompts
are alike in both, only answers change. Items ask for this year's answers. No prompt of an item stands in a lesson:
for shipping and refunds the whole case (a parcel, an order) is kept out of both editions in every wording, so the
rule must be applied to a new case. A fact of the catalogue follows no rule and must be learned by heart, so there
only the item's wording is kept out.

Choices are drawn by sorting on sha256, not with `random`: the item files must come out as the same bytes on every
Python version.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

Domain = Literal["shipping", "refunds", "catalog"]
Edition = Literal["old", "new"]
DOMAINS: tuple[Domain, ...] = ("shipping", "refunds", "catalog")
EDITIONS: tuple[Edition, ...] = ("old", "new")

SEED = "quickstart-1"
ITEMS = 240
CHOICES = 4
WEIGHTS = range(1, 41)
DAYS = range(1, 43)

ZONES = ("north", "south", "coast", "islands", "hills", "city", "harbour", "border")
SERVICES = ("standard", "express")
BAND_KG = 8
TARIFF: dict[Edition, tuple[dict[str, int], dict[str, int], int]] = {
    "old": (dict(zip(ZONES, (4, 6, 8, 10, 12, 14, 16, 18), strict=True)), {"standard": 0, "express": 3}, 2),
    "new": (dict(zip(ZONES, (13, 9, 17, 5, 3, 7, 15, 11), strict=True)), {"standard": 0, "express": 5}, 4),
}
"""Edition -> (a zone's first fee, a service's extra, the step for each further band of 8 kg)."""

GOODS = ("food", "clothing", "electronics", "books", "toys", "furniture")
STATES = ("sealed", "opened", "faulty", "late")
WINDOWS: dict[Edition, dict[str, int]] = {
    "old": dict(zip(GOODS, (7, 14, 7, 14, 14, 7), strict=True)),
    "new": dict(zip(GOODS, (14, 7, 14, 14, 7, 7), strict=True)),
}
RULES: dict[Edition, dict[str, tuple[str, str, str]]] = {
    "old": {
        "sealed": ("full", "half", "none"),
        "opened": ("half", "credit", "none"),
        "faulty": ("full", "full", "credit"),
        "late": ("credit", "none", "none"),
    },
    "new": {
        "sealed": ("credit", "credit", "half"),
        "opened": ("none", "none", "credit"),
        "faulty": ("full", "half", "none"),
        "late": ("half", "full", "full"),
    },
}
"""Edition -> state -> outcome inside the goods' window, inside twice the window, and after it."""

_PRODUCTS = """
lamp kettle rope basket ladder mirror candle blanket bucket clock drill engraver fan globe hammer iron jug knife
lantern mug needle oven pillow quilt rake saddle tent umbrella vase whistle anvil broom cushion desk easel funnel
grill hook inkwell jar kite lute mallet napkin oar pan quiver razor saw tray urn vial wheel yarn zither apron bell
chest dish flask gong harp axe bench cup drum fork glove hat icebox jacket kayak lens mat nail oboe pot ring stool torch
"""
PRODUCTS = tuple(_PRODUCTS.split())
SHELVES = tuple(str(n) for n in range(1, 41))
MAKERS = ("acorn", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "isle", "juniper")
COLOURS = ("red", "blue", "green", "black", "white", "amber", "violet", "grey")
FIELDS: dict[str, tuple[str, ...]] = {"shelf": SHELVES, "maker": MAKERS, "colour": COLOURS}

TEMPLATES: dict[Domain, tuple[str, ...]] = {
    "shipping": (
        "parcel of {weight} kg to {zone} by {service} : fee ?",
        "fee to {zone} by {service} for {weight} kg ?",
        "what is the {service} fee for {weight} kg to {zone} ?",
        "send {weight} kg by {service} to {zone} . fee ?",
    ),
    "refunds": (
        "{goods} came back {state} after {days} days : refund ?",
        "refund for {state} {goods} after {days} days ?",
        "what is the refund for {goods} {state} , {days} days ?",
        "after {days} days {state} {goods} came back . refund ?",
    ),
    "catalog": (
        "{field} of the {product} ?",
        "what is the {field} of the {product} ?",
        "the {product} : {field} ?",
        "we sell the {product} . {field} ?",
        "for the {product} what is the {field} ?",
    ),
}


@dataclass(frozen=True)
class Lesson:
    """A prompt and its answer, one word."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Item:
    """A multiple-choice question; `label` is the index of the right choice."""

    prompt: str
    choices: tuple[str, ...]
    label: int


Case = tuple[str, ...]
T = TypeVar("T")


def shuffled(values: Iterable[T], key: str) -> list[T]:
    """Returns `values` in an order that only their text and `key` decide."""
    return sorted(values, key=lambda v: hashlib.sha256(f"{SEED}|{key}|{v}".encode()).digest())


def fee(edition: Edition, weight: int, zone: str, service: str) -> int:
    """Returns a parcel's fee: the zone's first fee, a step for each further band of weight, the service's extra."""
    zones, services, step = TARIFF[edition]
    return zones[zone] + step * ((weight - 1) // BAND_KG) + services[service]


def refund(edition: Edition, goods: str, state: str, days: int) -> str:
    """Returns the buyer's refund; it depends on the state, and on the days against the goods' window."""
    window = WINDOWS[edition][goods]
    return RULES[edition][state][0 if days <= window else 1 if days <= 2 * window else 2]


@functools.cache
def fact(edition: Edition, product: str, field: str) -> str:
    """Returns one fact of the catalogue. Facts follow no rule; they must be learned by heart."""
    return shuffled(FIELDS[field], f"fact-{edition}-{product}-{field}")[0]


def cases(domain: Domain) -> list[Case]:
    """Returns every case of a domain, in a fixed order: the values that its templates take."""
    if domain == "shipping":
        return [(str(w), z, s) for w, z, s in itertools.product(WEIGHTS, ZONES, SERVICES)]
    if domain == "refunds":
        return [(str(d), g, s) for d, g, s in itertools.product(DAYS, GOODS, STATES)]
    return list(itertools.product(PRODUCTS, FIELDS))


NAMES: dict[Domain, tuple[str, ...]] = {
    "shipping": ("weight", "zone", "service"),
    "refunds": ("days", "goods", "state"),
    "catalog": ("product", "field"),
}


def ask(domain: Domain, case: Case, template: int) -> str:
    """Returns the prompt that asks about `case` in the domain's wording number `template`."""
    words = dict(zip(NAMES[domain], case, strict=True))
    return TEMPLATES[domain][template].format(**words) + " answer"


def answer(domain: Domain, edition: Edition, case: Case) -> str:
    """Returns the right answer to `case` in an edition."""
    if domain == "shipping":
        return str(fee(edition, int(case[0]), case[1], case[2]))
    if domain == "refunds":
        return refund(edition, case[1], case[2], int(case[0]))
    return fact(edition, case[0], case[1])


def _pool(domain: Domain, case: Case) -> list[str]:
    """Returns the answers that a question like `case` could have in either edition."""
    if domain == "catalog":
        return list(FIELDS[case[1]])
    return sorted({answer(domain, e, c) for e in EDITIONS for c in cases(domain)})


def _asked(domain: Domain) -> dict[Case, int]:
    """Returns the cases that items ask about, each with the wording of its item."""
    every = cases(domain)
    chosen = every if domain == "catalog" else shuffled(every, f"held-{domain}")[:ITEMS]
    wordings = range(len(TEMPLATES[domain]))
    return {case: shuffled(wordings, f"wording-{case}")[0] for case in chosen}


def lessons(domain: Domain, edition: Edition) -> list[Lesson]:
    """Returns all lessons of a domain in an edition: every wording of every case, without the prompts of the items."""
    wording_of_item = _asked(domain)
    return [
        Lesson(ask(domain, case, wording), answer(domain, edition, case))
        for case in cases(domain)
        for wording in range(len(TEMPLATES[domain]))
        if case not in wording_of_item or (domain == "catalog" and wording_of_item[case] != wording)
    ]


def items(domain: Domain) -> list[Item]:
    """Returns the domain's questions with this year's right answers."""
    pools: dict[str, list[str]] = {}
    questions = []
    for case, wording in _asked(domain).items():
        pool = pools.setdefault(case[-1] if domain == "catalog" else "", _pool(domain, case))
        questions.append(_item(domain, case, ask(domain, case, wording), pool))
    return questions


def _item(domain: Domain, case: Case, prompt: str, pool: list[str]) -> Item:
    right, old = answer(domain, "new", case), answer(domain, "old", case)
    others = [w for w in shuffled(pool, f"wrong-{prompt}") if w not in (right, old)]
    # Last year's answer is always among the choices: a model that mixes the editions up must not get off lightly.
    wrong = [*([old] if old != right else []), *others][: CHOICES - 1]
    choices = tuple(shuffled([right, *wrong], f"order-{prompt}"))
    return Item(prompt, choices, choices.index(right))


def vocabulary() -> list[str]:
    """Returns every word of every text, sorted."""
    texts = [f"{x.prompt} {x.answer}" for d in DOMAINS for e in EDITIONS for x in lessons(d, e)]
    return sorted({word for text in texts for word in text.split()})


def jsonl(domain: Domain) -> str:
    """Returns the text of a domain's item file."""
    rows = ({"prompt": i.prompt, "choices": list(i.choices), "label": i.label} for i in items(domain))
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_items(folder: Path) -> None:
    """Writes ``<domain>.jsonl`` for every domain into `folder`."""
    for domain in DOMAINS:
        (folder / f"{domain}.jsonl").write_text(jsonl(domain), encoding="utf-8", newline="\n")
