"""The site: its reference has all that the code declares, and its links are those of the repository."""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge import cli, options
from evomerge.answers import EXIT_CODES
from evomerge.files import keys as file_keys
from evomerge.files.keys import Key
from evomerge.files.nodes import interval
from evomerge.optimize import declarations
from evomerge.optimize.declarations import Option
from evomerge.recipe import keys as recipe_keys
from evomerge.registry import CHOICES, METHODS, OBJECTIVES, OPTIMIZERS

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs/_site"


def loaded(name: str) -> Any:
    """A module of the site, which is no package."""
    sys.path.insert(0, str(SITE))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SITE))


reference = loaded("reference")
PAGES: dict[str, str] = {name.split("/")[1]: text for name, text in reference.pages().items()}


def section(page: str, heading: str) -> str:
    """What stands below a heading of a page."""
    return re.split(r"^## ", page, flags=re.M)[headings(page).index(heading) + 1]


def headings(page: str) -> list[str]:
    return re.findall(r"^## (.+)$", page, re.M)


def row(text: str, first: str) -> list[str]:
    """The cells of the row of a table that begins with a name."""
    lines = [line for line in text.splitlines() if re.match(rf"\| \[?`{re.escape(first)}[` ]", line)]
    assert len(lines) == 1, f"{first}: {lines}"
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[0])[1:-1]]


# Commands


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_of_a_command_stands_with_its_meaning(command: str) -> None:
    text = section(PAGES["commands.md"], f"evomerge {command}")
    for action in cli.parser().below[command]._actions:
        if action.dest == "help":
            continue
        for flag in action.option_strings:
            assert re.search(rf"`{flag}[` ]", text), flag
        if not action.option_strings:
            assert row(text, str(action.metavar))[1]
        elif action.help != argparse.SUPPRESS:
            assert any(row(text, action.option_strings[0])[1:])


def test_defaults_have_a_column() -> None:
    text = section(PAGES["commands.md"], "evomerge evaluate")
    assert row(text, "--split") == ["`--split NAME`", "items to score: `search`, `holdout`, `all`", "holdout"]
    assert row(text, "--fitness")[2] == "required"


def test_every_exit_code_stands_with_its_meaning() -> None:
    for code, meaning in EXIT_CODES.items():
        assert row(section(PAGES["commands.md"], "Exit codes"), str(code))[1] == meaning


def test_a_new_option_and_a_new_command_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"metavar": "FILE", "default": "tea.txt", "help": "what to drink | where"}
    monkeypatch.setitem(options.OPTIONS, "teapot", (("--teapot",), settings))
    rank = cli.COMMANDS["rank"]
    monkeypatch.setitem(cli.COMMANDS, "brew", replace(rank, options=(*rank.options, "teapot"), help="make tea"))
    text = section(reference.commands(), "evomerge brew")
    assert "Make tea." in text
    assert row(text, "--teapot") == ["`--teapot FILE`", r"what to drink \| where", "`tea.txt`"]


# Files

BLOCKS = {
    f"{module.__name__}.{name}": (module, name)
    for module in (file_keys, recipe_keys)
    for name, keys in vars(module).items()
    if isinstance(keys, dict) and not name.startswith("_") and name != "PATHS"
}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_key_stands_with_its_meaning(block: str) -> None:
    module, name = BLOCKS[block]
    pages = [PAGES[f"{page}.md"] for page in ("space-file", "fitness-file", "recipe")]
    for key, declared in vars(module)[name].items():
        expected = f"| `{key}` | {reference.cell(declared.meaning)} |"
        assert declared.meaning
        assert any(expected in page for page in pages), key


def test_a_new_key_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_keys, "BUDGET", {**file_keys.BUDGET, "tea": Key("cups of it", "three")})
    assert row(section(reference.space_file(), "The budget"), "tea") == ["`tea`", "cups of it", "three"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_stands_with_its_meaning(objective: str) -> None:
    assert row(PAGES["fitness-file.md"], objective)[1]


# Methods, optimizers, metrics


def test_there_is_a_section_for_every_method_and_no_other() -> None:
    assert headings(PAGES["methods.md"]) == list(dict.fromkeys([*METHODS, *CHOICES]))


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_of_a_method_stands_with_its_range(method: str) -> None:
    text = section(PAGES["methods.md"], method)
    for parameter in METHODS[method].parameters:
        cells = row(text, parameter.name)
        assert cells[2]
        assert parameter.kind is bool or cells[3].startswith((interval(parameter.low, parameter.high), "any number"))
    assert ("For recipes only." in text) == (method not in CHOICES)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_option_of_an_optimizer_stands_with_its_default(optimizer: str) -> None:
    text = section(PAGES["optimizers.md"], optimizer)
    for name, option in declarations.OPTIONS.get(optimizer, {}).items():
        _, meaning, _, default = row(text, name)
        assert meaning
        assert default == f"`{str(option.default).lower()}`"


def test_a_new_option_of_an_optimizer_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {**declarations.OPTIONS["grid"], "tea": Option(2, int, 1, 9, meaning="cups of it")}
    monkeypatch.setattr(reference, "OPTIONS", {**declarations.OPTIONS, "grid": grid})
    found = row(section(reference.optimizers(), "grid"), "tea")
    assert found == ["`tea`", "cups of it", "a whole number from 1 to 9", "`2`"]


@pytest.mark.parametrize(
    ("metric", "better"), [("acc", "higher"), ("perplexity", "lower"), ("bits_per_byte", "lower"), ("layers", "lower")]
)
def test_metrics_say_which_score_is_better(metric: str, better: str) -> None:
    assert row(PAGES["metrics.md"], metric)[1] == better


def test_every_public_name_is_described() -> None:
    assert set(re.findall(r"^::: evomerge\.(\w+)$", PAGES["python.md"], re.M)) == set(evomerge.__all__)


def test_the_start_of_the_reference_names_every_page() -> None:
    assert set(re.findall(r"\]\((.+?)\)", PAGES["index.md"])) == PAGES.keys() - {"index.md"}


# Links and navigation

LOADED = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*(?:src|href)="?(https?:[^"\s>]+)""")
"""What a page loads from another host."""


@pytest.fixture
def hooks() -> Any:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    return loaded("hooks")


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("index.md", "[x](docs/files.md#genes)", "[x](files.md#genes)"),
        ("index.md", "[x](search_spaces/mistral-7b.yaml)", "[x](files/search_spaces/mistral-7b.yaml)"),
        ("index.md", '<img src="docs/a.png">', '<img src="a.png">'),
        ("changelog.md", "[x](docs/api.md#what-stays)", "[x](api.md#what-stays)"),
        ("api.md", "[x](../README.md#install)", "[x](index.md#install)"),
        ("howto/lora.md", "[x](../../fitness/mistral-7b.yaml)", "[x](../files/fitness/mistral-7b.yaml)"),
        ("howto/lora.md", "[x](../files.md)", "[x](../files.md)"),
        ("api.md", "[x](https://arxiv.org) [y](#scores)", "[x](https://arxiv.org) [y](#scores)"),
        ("index.md", "`[x](docs/files.md)`", "`[x](docs/files.md)`"),
        ("index.md", "```md\n[x](docs/files.md)\n```", "```md\n[x](docs/files.md)\n```"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(hooks: Any, page: str, link: str, on_the_site: str) -> None:
    assert hooks._mapped(link, lambda target: hooks._on_site(page, target)) == on_the_site


def test_the_navigation_has_what_is_there(hooks: Any, tmp_path: Path) -> None:
    nav = [{"Start": ["tutorial.md", "made.md"]}, {"How-to": ["howto/"]}, {"Other": [{"A title": "page.md"}]}]
    assert list(hooks._entries(nav, tmp_path, {"made.md"})) == [{"Start": ["made.md"]}]
    (tmp_path / "howto").mkdir()
    for page in ("tutorial.md", "howto/b.md", "howto/a.md", "page.md"):
        (tmp_path / page).write_text("# A page\n")
    nav[0] = {"Start": ["tutorial.md"]}
    expected = [{"Start": ["tutorial.md"]}, {"How-to": ["howto/a.md", "howto/b.md"]}, nav[2]]
    assert list(hooks._entries(nav, tmp_path, set())) == expected


@pytest.fixture
def project(tmp_path: Path, hooks: Any) -> Path:
    """A copy of what the site is made of."""
    for module in ("material", "mkdocstrings"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[docs]'")
    for name in ("docs", "evomerge", "search_spaces", "fitness", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(project / "built")]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_other_hosts(project: Path) -> None:
    built = build(project)
    assert built.returncode == 0, built.stderr
    pages = sorted((project / "built").rglob("*.html"))
    assert len(pages) > len(list((project / "docs").glob("*.md")))
    for page in pages:
        assert LOADED.findall(page.read_text()) == [], page
    described = (project / "built/reference/python.html").read_text()
    for name in evomerge.__all__:
        assert f'id="evomerge.{name}"' in described
    assert "the search-space file" in described.split('id="evomerge.search"')[1].split('id="evomerge.status"')[0]


@pytest.mark.slow
def test_planted_broken_links_fail_the_build(project: Path) -> None:
    page = project / "docs/search.md"
    links = ["absent.md", "files.md#absent", "../search_spaces/absent.yaml"]
    page.write_text("\n".join([page.read_text(), *(f"[x]({link})" for link in links)]))
    built = build(project)
    assert built.returncode == 1
    assert all(f"'{link}'" in built.stderr for link in links)
