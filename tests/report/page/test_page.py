"""The page of a run: it says what came out, for every kind of run, and nothing in it can act."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.report.page.html import LARGEST, page
from evomerge.report.page.write import write_report
from evomerge.study.run.documents import documents_file, read_documents
from evomerge.study.run.items import load_items, write_items
from tests.report.page.made import ITEMS, MadeRun

Study = Callable[..., Path]

RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "winner": ({}, "promote"),
    "no winner": ({"winner": False}, "do not promote"),
    "running": ({"winner": None, "kinds": "ccr"}, "not decided"),
    "only references": ({"winner": None, "kinds": ""}, "not decided"),
    "references, ended": ({"kinds": ""}, "do not promote"),
    "all failed": ({"kinds": "fff"}, "do not promote"),
    "pareto": ({"pareto": True}, "promote"),
    "one slice": ({"slices": ("alone",)}, "promote"),
    "300 genes": ({"genes": 300, "kinds": "c" * 12}, "promote"),
    "an older run": ({"texts": False}, "promote"),
}
ATTACK = '</script><script>window.hurt=1</script><img src=x onerror="window.hurt=1">'


class Reader(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[str] = []
        self.words: list[str] = []
        self.labels: set[str] = set()
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        for name, value in attrs:
            self.attributes.append(name)
            self.ids += [str(value)] if name == "id" else []
            self.links += [str(value)] if name in ("href", "src") else []
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(run: Path) -> tuple[dict[str, Any], str, Reader]:
    report = write_report(run)
    text = report.file.read_text()
    return report.data, text, Reader(text)


@pytest.mark.parametrize("kind", RUNS)
def test_every_kind_of_run_has_a_page(kind: str, tmp_path: Path) -> None:
    settings, answer = RUNS[kind]
    data, text, reader = read(MadeRun(tmp_path, **settings).make())
    assert data["verdict"]["answer"] == answer
    assert data["verdict"]["headline"] in reader.text
    assert text.count("plotly.js v") == 1
    assert len(text.encode()) <= LARGEST
    assert len(set(reader.ids)) == len(reader.ids)
    assert reader.headings[0] == 1
    assert all(b - a <= 1 for a, b in zip(reader.headings, reader.headings[1:], strict=False))
    assert {"header", "nav", "main", "footer"} <= set(reader.tags)
    assert {link for link in reader.links if not link.startswith("#")} == {"data:,"}
    json.dumps(data)


def test_each_chart_has_its_numbers(tmp_path: Path) -> None:
    _, text, _ = read(MadeRun(tmp_path, kinds="ccbcpfcccc").make())
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert {*charts} >= {"chart-models", "chart-trials", "chart-pairs", "chart-genes", "chart-setting-0"}
    for figure in re.findall(r"<figure.*?</figure>", text, re.S):
        assert "<table>" in figure
    assert text.count("<figure") == len(charts)


def test_the_page_tells_the_numbers_of_the_winner(tmp_path: Path) -> None:
    data, _, reader = read(MadeRun(tmp_path).make())
    winner = data["models"][-1]
    assert winner["role"] == "winner"
    assert winner["split"] == "holdout"
    assert {m["role"] for m in data["models"]} >= {"base", "source", "uniform average", "equal weights", "greedy soup"}
    for score in winner["scores"].values():
        assert score["interval"][0] <= score["score"] <= score["interval"][1] or score["score"] == score["interval"][1]
        assert f"{score['score']:.4f}" in reader.text
    state = evomerge.status(tmp_path / "runs" / "made")
    assert winner["trial"] == state.winner.number  # type: ignore[union-attr]
    best = [b["objective"] for b in data["trials"]["best_so_far"]]
    assert best == sorted(set(best))
    assert data["cost"]["failed"][0]["reason"] == "out of memory"
    assert data["cost"]["racing"] == {"trials": 1, "saved": ITEMS * 3 // 2}


def test_a_missed_floor_looks_missed(tmp_path: Path) -> None:
    known, _, _ = read(MadeRun(tmp_path).make())
    score = known["models"][0]["scores"]["shipping"]["score"]
    floor = score + 4e-6
    _, text, _ = read(MadeRun(tmp_path, name="close", floor=floor).make())
    assert f"✗ {score:.6f}" in text
    assert f"≥ {floor:.6f}" in text
    compared = evomerge.write_report(tmp_path / "runs/close", tmp_path / "both.html", compare=tmp_path / "runs/made")
    assert f"≥ {floor:.6f}" in compared.file.read_text()


def test_items_that_a_parent_gets_right(tmp_path: Path) -> None:
    data, _, reader = read(MadeRun(tmp_path, winner=False).make())
    folder, subject = tmp_path / "runs" / "made" / "items", data["verdict"]["trial"]
    own, base = (load_items(folder, number, "holdout")["shipping"] for number in (subject, 0))
    part = next(p for p in data["items"]["slices"] if p["slice"] == "shipping")
    better = sum(base[i].score > own[i].score for i in own)  # type: ignore[operator]
    assert part["parents"]["base"]["parent_better"] == better
    assert part["items"]
    for item in part["items"]:
        assert own[item["item"]].score == 0.0
        assert any(parent["score"] == 1.0 for parent in item["parents"].values())
        assert item["prompt"] == f"What does the parcel cost? {item['number']}"
    assert "What does the parcel cost?" in reader.text


def test_an_older_run_names_its_items(tmp_path: Path) -> None:
    data, _, reader = read(MadeRun(tmp_path, winner=False, texts=False).make())
    assert not data["items"]["with_texts"]
    assert "kept no texts" in reader.text


@pytest.mark.parametrize("place", ["slices", "sources", "prompt", "answer", "reason", "metric"])
def test_no_text_is_markup(place: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"winner": False}
    settings[place] = (ATTACK, "other") if place in ("slices", "sources") else ATTACK
    clean = Reader(write_report(MadeRun(tmp_path / "clean", winner=False, slices=("a", "b")).make()).file.read_text())
    _, text, reader = read(MadeRun(tmp_path / "hostile", **settings).make())
    assert "<script>window" not in text
    assert "<img" not in text
    assert reader.tags.count("script") == clean.tags.count("script") == 3
    assert not [name for name in reader.attributes if name.startswith("on")]


def test_a_name_of_a_run_is_no_markup(tmp_path: Path) -> None:
    """Names of runs are checked; a folder can be renamed."""
    run = MadeRun(tmp_path).make()
    hostile = run.with_name("x&<b>")
    run.rename(hostile)
    _, text, reader = read(hostile)
    assert "<b>" not in text.replace('"<b>', "")
    assert "x&<b>" in reader.text
    assert "x&amp;&lt;b&gt;" in text


def test_the_policy_allows_the_two_scripts_alone(tmp_path: Path) -> None:
    _, text, _ = read(MadeRun(tmp_path).make())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert html.unescape(policy[1]).startswith("default-src 'none'; script-src 'sha256-")
    assert policy[1].count("sha256-") == 2


def test_no_path_of_the_machine_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = f"cannot read {tmp_path}/models/m1/config.json, nor /home/somebody/secret/x.bin"
    run = MadeRun(tmp_path / "here", reason=reason).make()
    environment = json.loads((run / "environment.json").read_text())
    environment["launch"]["folder"] = "/home/somebody/project"
    (run / "environment.json").write_text(json.dumps(environment))
    monkeypatch.chdir(tmp_path / "here")
    data, text, _ = read(run)
    assert str(tmp_path) not in text
    assert "somebody" not in text
    assert "model: models/m1" in data["recipe"]["yaml"]
    assert data["recipe"]["models_by_name_only"] == []
    monkeypatch.chdir("/")
    elsewhere, text, _ = read(run)
    assert str(tmp_path) not in text
    assert "model: one" in elsewhere["recipe"]["yaml"]
    assert elsewhere["recipe"]["models_by_name_only"] == ["base", "one", "two"]


@pytest.mark.slow
def test_a_large_run_has_a_small_page(tmp_path: Path) -> None:
    """Twenty slices with long names, long prompts, more trials than a page takes."""
    names = tuple(f"a slice with a name that is rather long, number {at}" for at in range(20))
    prompt, answer = "word " * 390, "answer " * 70
    run = MadeRun(tmp_path, slices=names, kinds="c" * 430, prompt=prompt, answer=answer).make()
    data, text, reader = read(run)
    assert len(text.encode()) <= LARGEST
    assert data["trials"]["left_out"] > 0
    assert "trials are left out" in reader.text
    other = write_report(run, tmp_path / "two.html", compare=run)
    assert other.file.stat().st_size <= LARGEST


@pytest.mark.slow
def test_ten_thousand_genes_are_bounded_work(tmp_path: Path) -> None:
    data, text, _ = read(MadeRun(tmp_path, genes=10_000, kinds="c" * 10).make())
    assert data["importance"]["genes"] == 10_000
    assert len(data["importance"]["effects"]) == 20
    assert data["recipe"]["yaml"] is None
    assert len(text.encode()) <= LARGEST


def test_too_many_rows_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = MadeRun(tmp_path, kinds="c" * 60).make()
    data, text, _ = read(run)
    monkeypatch.setattr("evomerge.report.page.html.LARGEST", len(text.encode()) - 1)
    monkeypatch.setattr("evomerge.report.page.html.ROWS", (1000, 10))
    small = page(data)
    assert len(small) < len(text)
    assert "The first 10 of" in small


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    first = MadeRun(tmp_path, "first").make()
    second = MadeRun(tmp_path, "second", winner=False).make()
    report = write_report(first, compare=second)
    assert report.file == first / "report-with-second.html"
    reader = Reader(report.file.read_text())
    assert report.data["verdict"]["headline"] in reader.text
    assert report.data["compared_with"]["verdict"]["headline"] in reader.text
    assert {"chart-runs", "recipe-yaml-0", "recipe-yaml-1"} <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    MadeRun(tmp_path).make()
    monkeypatch.chdir(tmp_path)
    assert main(["report", "made"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "wrote runs/made/report.html"
    assert main(["report", "made", "-o", "page.html", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["run"], data["file"], data["verdict"]["answer"]) == ("made", "page.html", "promote")
    assert Path("page.html").is_file()
    assert main(["report", "absent"]) == 2
    assert main(["report", "made", "-o", "absent/page.html"]) == 2
    assert main(["report", "made", "--compare", "absent"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    run = MadeRun(tmp_path).make()
    (run / "report.html").mkdir()
    with pytest.raises(InputError, match=r"report\.html"):
        write_report(run)


def test_a_search_ends_with_its_page(tiny_study: Study, pages: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The items' texts and answers are those of the task; a page that cannot be written costs nothing."""
    result = evomerge.search(tiny_study(), trials=6)
    folder = result.folder
    data = write_report(folder.path).data
    assert data["verdict"]["headline"] in Reader(folder.report.read_text()).text
    documents = read_documents(folder.items)
    rows = [json.loads(line) for line in Path("tasks/tiny_a.jsonl").read_text().splitlines()]
    assert len(documents["a"]) == len(rows)
    for document in documents["a"].values():
        row = rows[document.number]
        assert (document.prompt, list(document.choices)) == (row["question"], row["choices"])
        assert document.answer == row["choices"][row["label"]]
    for item in load_items(folder.items, 0, "search")["a"].values():
        assert item.answer in documents["a"][item.item].choices
        assert (item.answer == documents["a"][item.item].answer) == (item.score == 1.0)

    folder.report.unlink()
    folder.report.mkdir()
    assert main(["resume", "space", "--trials", "7"]) == (0 if result.winner else 1)
    assert "warning: report.html is not written" in capsys.readouterr().err
    shutil.rmtree(folder.report)
    documents_file(folder.items).unlink()
    assert main(["resume", "space", "--trials", "8"]) == (0 if result.winner else 1)
    assert folder.report.is_file()
    assert read_documents(folder.items) == documents


def test_what_a_filter_read_is_shown_beside_the_answer(tmp_path: Path) -> None:
    run = MadeRun(tmp_path).make()
    folder, number = run / "items", read(run)[0]["items"]["trial"]
    items = load_items(folder, number, "holdout")
    changed = {n: [replace(i, answer="7", written="so <b>7</b>") for i in of.values()] for n, of in items.items()}
    write_items(folder, number, "holdout", changed)
    assert "7 wrote: so <b>7</b>" in read(run)[2].text
