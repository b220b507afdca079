"""Items on which two trials differ: which are listed, in what order, and how their texts are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.study.after.differences import differences
from evomerge.study.run.documents import documents_file
from evomerge.study.run.items import load_items, write_items
from evomerge.types import Document, ItemScore

from ...conftest import LETTERS
from ...report.page.made import MadeRun

Said = pytest.CaptureFixture[str]
Study = Callable[..., Path]


def named(*items: ItemScore) -> dict[str, ItemScore]:
    return {item.item: item for item in items}


def test_scores_come_first_then_answers_then_texts() -> None:
    documents = {name: Document(name, "search", number, name) for number, name in enumerate("edcba")}
    first = named(
        ItemScore("a", 0.0, answer="[invalid]", written="x"),
        ItemScore("b", 0.0, answer="1"),
        ItemScore("c", 1.0, answer="3"),
        ItemScore("d", 1.0, answer="3"),
        ItemScore("e", 1.0, answer="7", written="so 7"),
        ItemScore("alone", 1.0, answer="1"),
    )
    second = named(
        ItemScore("a", 0.0, answer="[invalid]", written="y"),
        ItemScore("b", 0.0, answer="2"),
        ItemScore("c", 0.0, answer="4"),
        ItemScore("d", 1.0, answer="3"),
        ItemScore("e", 0.0, answer="7", written="so 7"),
    )
    found = differences(first, second, 1, documents, 9)
    assert [d.first.item for d in found.most] == ["c", "e", "b", "a"]
    assert (found.first_better, found.second_better, found.items) == (2, 0, 5)
    assert (found.answered, found.answers_differ, found.differ) == (5, 3, 4)
    assert len(differences(first, second, 1, documents, 2).most) == 2
    turned = differences(first, second, -1, documents, 0)
    assert (turned.first_better, turned.second_better, turned.differ, turned.most) == (0, 2, 4, ())


def test_answers_without_scores_are_compared() -> None:
    """An item of BLEU has no number of its own."""
    first, second = named(ItemScore("a", None, answer="x")), named(ItemScore("a", None, answer="y"))
    found = differences(first, second, 1, {}, 9)
    assert (found.items, found.answers_differ, [d.size for d in found.most]) == (0, 1, [0.0])
    assert differences(first, named(ItemScore("a", 1.0)), 1, {}, 9).differ == 0, "there is nothing to compare"


# The command


def compare(run: Path, *words: str) -> int:
    return main(["compare", str(run), "base", "one", "--split", "search", *words])


def rewrite(run: Path, number: int, change: Callable[[ItemScore], ItemScore]) -> None:
    """Changes a trial's items."""
    items = load_items(run / "items", number, "search")
    write_items(run / "items", number, "search", {name: list(map(change, of.values())) for name, of in items.items()})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return MadeRun(tmp_path, winner=False).make()


def test_as_data(run: Path, capsys: Said) -> None:
    assert compare(run, "--answers", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["without_answers"] == []
    found = told["items"]["shipping"]
    base, one = (load_items(run / "items", number, "search")["shipping"] for number in (0, 1))
    assert found["first_better"] == sum(base[i].score > one[i].score for i in base)  # type: ignore[operator]
    assert found["second_better"] == sum(base[i].score < one[i].score for i in base)  # type: ignore[operator]
    assert found["answered"] == sum(item.answer is not None for item in base.values())
    for item in found["differ_most"]:
        assert item["prompt"].startswith("What does the parcel cost?")
        assert item["first"]["score"] != item["second"]["score"]


def test_a_few_screens_unless_more_are_asked_for(run: Path, capsys: Said) -> None:
    rewrite(run, 0, lambda item: replace(item, answer="eight"))
    assert compare(run, "--answers") == 0
    said = capsys.readouterr().out
    assert said.count("\n  item ") == 18, "six of each slice"
    assert len(re.findall(r"; listed: 6 of \d+\n", said)) == 3
    assert "`--most N` lists more" in said
    assert compare(run, "--answers", "--slice", "refunds", "--most", "999") == 0
    said = capsys.readouterr().out
    assert "shipping" not in said
    assert "listed:" not in said
    assert said.count("\n  item ") > 6
    assert compare(run, "--answers", "--most", "0") == 0
    assert "\n  item " not in capsys.readouterr().out
    assert compare(run) == 0
    assert "better on" not in capsys.readouterr().out.partition("objective")[2]


ODD = {
    "\x1b[2J\x1b]0;title\x07red": r"\x1b[2J\x1b]0;title\x07red",
    "[bold]a[/bold] <b>&amp; `x` :smile:": "[bold]a[/bold] <b>&amp; `x` :smile:",
    "\u202egnissim\u2066": r"\u202egnissim\u2066",
    "שלום 👍": "שלום 👍",
    "one\ntrial 1: 1.0000\r\u2028two": r"one\ntrial 1: 1.0000\r\u2028two",
    "": "''",
    " \n\t": r"' \n\t'",
    "begins " + "x" * 5000 + " ends": " [...] ",
    "\ud800": "?",
}


@pytest.mark.parametrize("text", ODD)
def test_odd_answers(text: str, run: Path, capsys: Said) -> None:
    """A text is on one line, whatever it holds; nothing in it moves the cursor, or is taken for markup."""
    storable = text.encode("utf-8", "replace").decode()  # as a run keeps it
    rewrite(run, 0, lambda item: replace(item, score=1.0, answer=storable))
    rewrite(run, 1, lambda item: replace(item, score=0.0, answer="none", written=storable))
    assert compare(run, "--answers", "--slice", "shipping", "--most", "1") == 0
    said = capsys.readouterr().out
    lines = said.partition("\n  item ")[2].splitlines()
    answered = next(line for line in lines if line.startswith("    base: 1.0000, answered: "))
    wrote = next(line for line in lines if line.startswith("      wrote: "))
    assert ODD[text] in answered
    assert ODD[text] in wrote
    assert len(answered) < 300
    assert [c for c in said if ord(c) < 32 and c != "\n"] == []
    assert compare(run, "--answers", "--slice", "shipping", "--json") == 0
    told = json.loads(capsys.readouterr().out)["items"]["shipping"]["differ_most"]
    assert {item["first"]["answer"] for item in told} == {storable}


def test_an_answer_of_one_side_only(run: Path, capsys: Said) -> None:
    rewrite(run, 0, lambda item: replace(item, score=1.0, answer=None))
    rewrite(run, 1, lambda item: replace(item, score=0.0, answer="seven"))
    assert compare(run, "--answers", "--slice", "shipping", "--most", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "    base: 1.0000" in lines
    assert "    one: 0.0000, answered: seven" in lines


def test_where_answers_or_texts_were_not_kept(run: Path, capsys: Said) -> None:
    documents_file(run / "items").unlink()
    assert compare(run, "--answers") == 0
    assert "kept no texts" in capsys.readouterr().out
    for number in (0, 1):
        rewrite(run, number, lambda item: replace(item, answer=None))
    assert compare(run, "--answers") == 0
    said = capsys.readouterr().out
    assert "\nshipping: " not in said
    assert "no answers were kept of shipping, refunds, catalog; `--slice NAME` lists the items whose scores" in said
    assert compare(run, "--answers", "--slice", "shipping") == 0
    said = capsys.readouterr().out
    assert re.search(r"\nshipping: base is better on \d+, one on \d+ of \d+ items; no answers were kept", said)
    assert "\n  item task/" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--most", "3"], "--most: says how many items are listed, and none are; ask for --answers, too"),
        (
            ["--answers", "--slice", "shiping"],
            "the run 'made' has no slice 'shiping'; did you mean 'shipping'?",
        ),
        (["--answers", "--most", "-1"], "--most: -1 is no number of items; give 0 or more"),
        (["--most", "few"], "--most: 'few' is not a whole number"),
    ],
)
def test_wrong_words(words: Sequence[str], says: str, run: Path, capsys: Said) -> None:
    assert compare(run, *words) == 2
    assert says in capsys.readouterr().err


def test_a_slice_in_place_of_a_trial(run: Path) -> None:
    with pytest.raises(InputError, match=r"'refunds' is a slice, and no trial; name it with `--slice refunds`"):
        evomerge.compare(run, "base", "refunds")


def test_the_old_name_of_the_parameter(run: Path) -> None:
    with pytest.warns(FutureWarning, match="'items' is called 'answers'"):
        found = evomerge.compare(run, "base", "one", items=True)  # type: ignore[call-arg]
    assert found.differences is not None


# Answers that were generated


@pytest.fixture
def generated(tiny_study: Study) -> None:
    """A finished run whose models write letters; a filter takes the first vowel."""

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        rows = [{"question": f"{a}{b}{a}", "answer": b} for a in LETTERS[:5] for b in LETTERS[:5]]
        Path("tasks/write.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        take = {"function": "take_first"}
        task = {
            "task": "write",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": "write.jsonl"}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [" "], "max_gen_toks": 6, "do_sample": False},
            "filter_list": [
                {"name": "vowel", "filter": [{"function": "regex", "regex_pattern": "([aei])"}, take]},
                {"name": "all", "filter": [take]},
            ],
            "metric_list": [{"metric": "exact_match"}],
            "metadata": {"version": 1},
        }
        Path("tasks/write.yaml").write_text(yaml.safe_dump(task))
        fitness["slices"] = {
            "vowel": {"task": "write", "metric": "exact_match,vowel"},
            "all": {"task": "write", "metric": "exact_match,all"},
            "length": {"of": "vowel", "metric": "generated_tokens", "weight": 0},
            "cut": {"of": "vowel", "metric": "truncated", "weight": 0},
            "size": {"measure": "parameters", "weight": 0},
        }

    evomerge.search(tiny_study(change), trials=5)


@pytest.mark.usefixtures("generated")
def test_what_models_wrote(capsys: Said) -> None:
    assert main(["compare", "space", "base", "two", "--answers", "--json", "--most", "99"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["without_answers"] == ["length", "cut", "size"]
    vowel, whole = ({item["item"]: item for item in told["items"][name]["differ_most"]} for name in ("vowel", "all"))
    assert told["items"]["vowel"]["answers_differ"] == told["items"]["all"]["answers_differ"] == len(whole)
    cut = 0
    for name, item in vowel.items():
        for side in ("first", "second"):
            of = item[side]
            written = of["answer"] if of["written"] is None else of["written"]
            assert written == whole[name][side]["answer"], "the filter of the other slice lets all through"
            vowels = re.findall("[aei]", written)
            assert of["answer"] == (vowels[0] if vowels else "[invalid]")
            assert 1 <= of["generated_tokens"] <= 6
            assert of["truncated"] in (0.0, 1.0)
            cut += of["truncated"] == 1.0
            assert whole[name][side].keys() == {"score", "answer", "written"}, "nobody measures its answers"
    assert main(["compare", "space", "base", "two", "--answers", "--slice", "vowel", "--most", "99"]) == 0
    said = capsys.readouterr().out
    assert said.count(" tokens, truncated, answered: ") == cut > 0
    assert said.count("      wrote: ") == sum(
        item[s]["written"] is not None for item in vowel.values() for s in ("first", "second")
    )
    assert main(["compare", "space", "base", "two", "--answers", "--slice", "size"]) == 0
    assert "\nsize: no items with scores or answers of both\n" in capsys.readouterr().out
