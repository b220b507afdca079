"""Licences of cards: which one a merge has, and which cannot stand together."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from evomerge.cards.front_matter import Card, read_card
from evomerge.cards.licences import Licence, conflicts, licence_of_cards, strictest
from evomerge.errors import InputError


def licences(*names: str | None) -> dict[str, Licence]:
    return {f"m{i}": Licence(name) for i, name in enumerate(names)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("mit", "apache-2.0"), "apache-2.0"),
        (("apache-2.0", "mit", None), "apache-2.0"),
        (("apache-2.0", "cc-by-nc-4.0"), "cc-by-nc-4.0"),
        (("cc-by-nc-4.0", "cc-by-nc-sa-4.0"), "cc-by-nc-sa-4.0"),
        (("llama3.1", "apache-2.0"), "llama3.1"),
        (("llama3.1", "cc-by-nc-4.0"), "cc-by-nc-4.0"),
        (("gpl-3.0", "openrail"), "openrail"),
        (("cc-by-nc-nd-4.0", "cc-by-nc-4.0"), "cc-by-nc-nd-4.0"),
        (("apache-2.0", "my-lab-licence"), "my-lab-licence"),
        ((None, None), None),
    ],
)
def test_the_strictest_licence_is_the_merge_s(names: tuple[str | None, ...], expected: str | None) -> None:
    assert strictest(licences(*names)).name == expected
    assert strictest(licences(*reversed(names))).name == expected


@pytest.mark.parametrize(
    ("one", "two", "apart"),
    [
        ("mit", "apache-2.0", False),
        ("apache-2.0", "cc-by-nc-4.0", False),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", False),
        ("llama3.1", "llama3.1", False),
        ("llama3.1", "gemma", True),
        ("gpl-3.0", "cc-by-sa-4.0", True),
        ("cc-by-sa-4.0", "cc-by-nc-sa-4.0", True),
        ("cc-by-nc-4.0", "openrail", True),
        ("my-lab-licence", "llama3.1", True),
    ],
)
def test_a_conflict_names_both(one: str, two: str, apart: bool) -> None:
    told = conflicts(licences(one, two))
    assert bool(told) is apart
    assert all(f"m0 ({one}) and m1 ({two})" in line for line in told)


def test_other_licences_keep_their_name_and_link(tmp_path: Path) -> None:
    card = read_card("---\nlicense: other\nlicense_name: Lab-Licence\nlicense_link: https://lab.ai/x\n---\n")
    assert card is not None
    assert licence_of_cards([card]) == Licence("lab-licence", True, "https://lab.ai/x")
    (tmp_path / "LICENSE").write_text("You may.")
    beside = "---\nlicense: other\nlicense_name: lab\nlicense_link: LICENSE\n---\n"
    card = read_card(beside, tmp_path)
    assert card is not None
    assert licence_of_cards([card]) == Licence("lab", True, "LICENSE", "You may.")
    card = read_card(beside, tmp_path / "none", "org/name@" + "a" * 40)
    assert card is not None
    assert licence_of_cards([card]).link == f"https://huggingface.co/org/name/blob/{'a' * 40}/LICENSE"


@pytest.mark.parametrize(
    "text",
    [
        "license: 'x\n---\n# y'",
        "license: [{a: b}]",
        "license: <script>",
        "license_link: javascript:alert(1)",
        "license_link: ../../etc/passwd",
        "pipeline_tag: {a: b}",
        "language: ['<b>', 1, null, 'a\\n---']",
        "datasets: ['a b', 'x/../y', {a: 1}]",
        "!!python/object/apply:os.system [ls]",
    ],
)
def test_hostile_front_matter_says_nothing(text: str) -> None:
    with suppress(InputError):
        card = read_card(f"---\n{text}\n---\n") or Card()
        assert (card.licence, card.licence_link, card.pipeline, card.languages, card.datasets) == (*(None,) * 3, (), ())
