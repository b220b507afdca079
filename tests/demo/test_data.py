"""The quickstart's texts: same bytes each time, right labels, and no item in a lesson."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.demo import data

FOLDER = Path(__file__).parents[2] / "fitness" / "quickstart"
DOMAINS = pytest.mark.parametrize("domain", data.DOMAINS)


@DOMAINS
def test_committed_items_are_what_the_generator_makes(domain: data.Domain, tmp_path: Path) -> None:
    data.write_items(tmp_path)
    assert (tmp_path / f"{domain}.jsonl").read_bytes() == (FOLDER / f"{domain}.jsonl").read_bytes()


@DOMAINS
def test_no_item_is_taught_in_either_edition(domain: data.Domain) -> None:
    asked = {item.prompt for item in data.items(domain)}
    taught = {lesson.prompt for edition in data.EDITIONS for lesson in data.lessons(domain, edition)}
    assert len(asked) == data.ITEMS
    assert not asked & taught


def _case(domain: data.Domain, prompt: str) -> frozenset[str]:
    """What is left of a prompt without the words that its wordings have in common."""
    frame = {w for t in data.TEMPLATES[domain] for w in t.split() if "{" not in w} | {"answer"}
    return frozenset(prompt.split()) - frame


@pytest.mark.parametrize("domain", ["shipping", "refunds"])
def test_an_asked_case_is_taught_in_no_wording(domain: data.Domain) -> None:
    asked = {_case(domain, item.prompt) for item in data.items(domain)}
    taught = {_case(domain, lesson.prompt) for lesson in data.lessons(domain, "new")}
    assert len(asked) == data.ITEMS
    assert not asked & taught


def test_each_fact_is_taught_in_other_wordings() -> None:
    taught = {(_case("catalog", x.prompt), x.answer) for x in data.lessons("catalog", "new")}
    for item in data.items("catalog"):
        assert (_case("catalog", item.prompt), item.choices[item.label]) in taught


@DOMAINS
def test_choices_are_distinct_and_no_position_gives_the_label_away(domain: data.Domain) -> None:
    items = data.items(domain)
    assert all(len(set(item.choices)) == data.CHOICES for item in items)
    for position in range(data.CHOICES):
        assert 0.15 < sum(item.label == position for item in items) / len(items) < 0.35


def test_fees_by_hand() -> None:
    first = {"north": 13, "south": 9, "coast": 17, "islands": 5, "hills": 3, "city": 7, "harbour": 15, "border": 11}
    for item in data.items("shipping"):
        words = item.prompt.split()
        kg = int(words[words.index("kg") - 1])
        zone = next(w for w in words if w in first)
        bands = next(n for n, top in enumerate((8, 16, 24, 32, 40)) if kg <= top)
        assert item.choices[item.label] == str(first[zone] + 4 * bands + 5 * ("express" in words))


def test_refunds_by_hand() -> None:
    long = {"food", "electronics", "books"}
    for item in data.items("refunds"):
        words = set(item.prompt.replace(",", " ").split())
        days = next(int(w) for w in words if w.isdigit())
        window = 14 if words & long else 7
        stage = 0 if days <= window else 1 if days <= 2 * window else 2
        if "sealed" in words:
            right = ("credit", "credit", "half")[stage]
        elif "opened" in words:
            right = ("none", "none", "credit")[stage]
        elif "faulty" in words:
            right = ("full", "half", "none")[stage]
        else:
            right = ("half", "full", "full")[stage]
        assert item.choices[item.label] == right


def test_last_years_fact_is_among_the_choices() -> None:
    old = {_case("catalog", x.prompt): x.answer for x in data.lessons("catalog", "old")}
    for item in data.items("catalog"):
        assert old[_case("catalog", item.prompt)] in item.choices


def test_every_word_is_in_the_vocabulary() -> None:
    words = set(data.vocabulary())
    for domain in data.DOMAINS:
        for line in (FOLDER / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert words.issuperset([*row["prompt"].split(), *row["choices"]])
