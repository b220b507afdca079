"""The pages are tested: every command, option and key is on one, and what they name exists."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.cli import main, parser
from evomerge.errors import InputError
from evomerge.files.keys import FITNESS, SLICE, SLICE_OPTIONS, SPACE
from evomerge.files.nodes import interval
from evomerge.files.objects import OLD_KEYS
from evomerge.files.pair import read_files
from evomerge.optimize.declarations import OPTIONS, Option
from evomerge.registry import CHOICES, METHODS, OPTIMIZERS, Parameter

ROOT = Path(__file__).parents[1]
PAGES = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in (
        *(ROOT / name for name in ("README.md", "runs/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs/howto").glob("*.md")),
    )
}
HISTORY = "docs/log.md"
"""It names what was there at the time."""

ARCHITECTURE = "docs/architecture.md"
FILES, OPTIMIZERS_PAGE = PAGES["docs/files.md"], PAGES["docs/optimizers.md"]
CURRENT = [page for page in PAGES if page != HISTORY]


# What a page says, as lists of what is wrong with it.


def spans(text: str) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.S))


def wrong_commands(text: str) -> list[str]:
    """Commands in shell blocks that the command line refuses, and commands and options in inline code that it does not
    have."""
    problems = []
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["evomerge"] and not accepted(words[1:]):
                    problems.append(part.strip())
    for span in spans(text):
        if span.startswith("evomerge "):
            name, *words = span.split()[1:]
            command = commands().get(name)
            flags = {flag for word in words for flag in re.findall(r"^\[?(--?[a-z][a-z-]*)", word)}
            if command is None or not flags <= command._option_string_actions.keys():
                problems.append(span)
    return problems


def commands() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def accepted(words: list[str]) -> bool:
    try:
        parser().parse_args(words)
    except InputError:
        return False
    return True


def absent_files(text: str) -> list[str]:
    """Python files and folders in inline code that are neither in the package nor in the project."""
    named = [span for span in spans(text) if re.fullmatch(r"[\w/.]+(\.py|/)", span)]
    return [name for name in named if not any((root / name).exists() for root in (ROOT / "evomerge", ROOT))]


def absent_names(text: str) -> list[str]:
    """Classes, their members, and functions of modules in inline code that the package does not have."""
    names = [span for span in spans(text) if re.fullmatch(r"[A-Z][a-z]\w*(\.\w+)?|[a-z_]+\.[a-z_]+", span)]
    files = re.compile(r".*\.(py|md|json|yaml|yml|safetensors|log|journal)")
    return [name for name in names if not files.fullmatch(name) and name not in NAMES]


def package_names() -> Iterator[str]:
    """`Class`, `Class.member` and `module.function` for all of the package."""
    for file in (ROOT / "evomerge").rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                yield f"{file.stem}.{node.name}"
            elif isinstance(node, ast.ClassDef):
                yield node.name
                yield from (f"{node.name}.{member}" for member in members(node))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                yield node.targets[0].id


def members(node: ast.ClassDef) -> Iterator[str]:
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            yield part.name
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            yield part.target.id


NAMES = set(package_names())


def broken_links(page: str, text: str) -> list[str]:
    """Links to files that are not there, and to headings that no page has."""
    problems = []
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            problems.append(link)
    return problems


def anchors(text: str) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def rooms(text: str) -> list[str]:
    """The folders and files of the list of rooms, as paths in the package."""
    block = re.findall(r"```\n(.*?)```", text, re.S)[0]
    listed, room = [], ""
    for line in block.splitlines():
        left = re.split(r" {3,}", line.strip())[0]
        names = left.split()
        if not line.startswith(" "):
            room = names[0] if names[0].endswith("/") else ""
            listed += names
        else:
            listed += [room + name for name in names]
    inner = re.search(r"^merging/ +(.*)$", block, re.M)
    assert inner is not None
    return listed + [f"merging/{name}" for name in inner[1].split()]


# The pages.


@pytest.mark.parametrize("page", CURRENT)
def test_commands_are_accepted(page: str) -> None:
    assert wrong_commands(PAGES[page]) == []


@pytest.mark.parametrize("page", CURRENT)
def test_files_exist(page: str) -> None:
    assert absent_files(PAGES[page]) == []


@pytest.mark.parametrize("page", [ARCHITECTURE, "docs/tensors.md", "docs/decisions.md"])
def test_names_of_the_code_exist(page: str) -> None:
    assert absent_names(PAGES[page]) == []


def test_the_list_of_rooms_is_the_package() -> None:
    listed = rooms(PAGES[ARCHITECTURE])
    assert [name for name in listed if not (ROOT / "evomerge" / name).exists()] == []
    package = ROOT / "evomerge"
    folders = [str(file.parent.relative_to(package)) for file in package.glob("**/__init__.py")]
    files = [file.name for file in package.glob("*.py") if not file.name.startswith("__")]
    study = [f"study/{file.name}" for file in package.glob("study/*.py") if file.name != "__init__.py"]
    assert {*folders, *files, *study} - {"."} - {name.rstrip("/") for name in listed} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken_links(page, PAGES[page]) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_the_readme_links_every_page(page: str) -> None:
    assert f"]({page}" in PAGES["README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_headings_have_anchors_of_their_own(page: str) -> None:
    found = anchors(PAGES[page])
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("page", "line", "check"),
    [
        ("docs/search.md", "```sh\nevomerge serch space.yaml\n```", wrong_commands),
        ("docs/search.md", "```sh\nevomerge resume space --seed 1\n```", wrong_commands),
        ("docs/search.md", "`evomerge export RUN --trail N`", wrong_commands),
        (ARCHITECTURE, "`study/loops.py`", absent_files),
        (ARCHITECTURE, "`merge/`", absent_files),
        (ARCHITECTURE, "`Workbench`", absent_names),
        (ARCHITECTURE, "`Store.promise`", absent_names),
        (ARCHITECTURE, "`elementwise.hold`", absent_names),
    ],
)
def test_a_planted_fault_is_found(page: str, line: str, check: object) -> None:
    assert callable(check)
    assert len(check(f"{PAGES[page]}\n{line}\n")) == 1


@pytest.mark.parametrize("link", ["[x](absent.md)", "[x](files.md#absent)", "[x](#absent)"])
def test_a_planted_link_is_found(link: str) -> None:
    assert len(broken_links(ARCHITECTURE, f"{PAGES[ARCHITECTURE]}\n{link}\n")) == 1


# Commands, keys and names are on a page.


@pytest.mark.parametrize("name", commands())
def test_every_command_is_in_the_readme_and_its_options_on_a_page(name: str) -> None:
    assert f"`evomerge {name}" in PAGES["README.md"]
    flags = commands()[name]._option_string_actions
    for flag in flags:
        opposite = flag.startswith("--no-") and flag.replace("--no-", "--", 1) in flags
        if flag.startswith("--") and flag != "--help" and not opposite:
            assert any(re.search(rf"(?<![\w-]){flag}(?![\w-])", text) for text in PAGES.values()), flag


def rows(page: str, first: str) -> list[list[str]]:
    """The cells of the table of a page (its text, or its name) whose header starts with `first`."""
    page = PAGES.get(page, page)
    table = page[page.index(f"| {first} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def keys(part: str) -> set[str]:
    """The keys that the tables of a part of docs/files.md explain."""
    tables = re.findall(r"^\| key.*\n\|[-|]+\n((?:\|.*\n)+)", part, re.M)
    return {key for table in tables for row in table.splitlines() for key in spans(row.split("|")[1])}


SPACE_PART, FITNESS_PART = FILES.split("\n## The fitness file\n")


def test_space_keys_are_documented() -> None:
    assert keys(SPACE_PART) == set(SPACE)


def test_fitness_keys_are_documented() -> None:
    assert keys(FITNESS_PART) == {*FITNESS, *SLICE, *SLICE_OPTIONS}
    assert all(f"`{old}`" in FITNESS_PART for old in OLD_KEYS)


ONLY_IN_RECIPES = ("passthrough", "band_arithmetic")


def test_every_method_is_documented() -> None:
    listed = {row[0].strip("`") for row in rows(FILES, "method")}
    assert {*listed, *ONLY_IN_RECIPES} == {*METHODS, *CHOICES}
    assert all(f"`{name}`" in FILES for name in ONLY_IN_RECIPES)


@pytest.mark.parametrize("method", CHOICES)
def test_the_table_of_methods_is_what_they_declare(method: str) -> None:
    _, _, sources, genes, fixed = next(row for row in rows(FILES, "method") if row[0] == f"`{method}`")
    parameters = CHOICES[method].parameters
    assert genes == ", ".join(f"`{p.name}`" for p in parameters if p.kind is float)
    settings = [f"`{p.name}` ({str(p.default).lower()})" for p in parameters if p.kind is not float]
    assert fixed == ", ".join(settings)
    least, most = METHODS[CHOICES[method].method].sources
    assert sources == (str(least) if least == most else f"{least} or more" if least > 1 else "any")


@pytest.mark.parametrize(
    ("method", "gene"), [(m, p) for m in CHOICES for p in CHOICES[m].parameters if p.kind is float]
)
def test_the_table_of_genes_is_what_they_declare(method: str, gene: Parameter) -> None:
    found = [row for row in rows(FILES, "gene") if row[0].startswith(f"`{gene.name}`")]
    name, of, legal, start, meaning = next(r for r in found if len(found) == 1 or f"`{method}`" in r[0])
    assert (of, legal, start) == (
        "each source" if gene.scope == "source" else "the merge",
        interval(gene.low, gene.high),
        f"{gene.init:g}",
    ), name
    assert meaning.endswith("logarithmic") == gene.log


def test_the_table_of_optimizers_is_complete() -> None:
    assert {row[0].strip("`") for row in rows(OPTIMIZERS_PAGE, "optimizer | options (default)")} == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("optimizer", "name", "option"), [(o, name, option) for o in OPTIONS for name, option in OPTIONS[o].items()]
)
def test_the_table_of_optimizers_has_every_option(optimizer: str, name: str, option: Option) -> None:
    table = rows(OPTIMIZERS_PAGE, "optimizer | options (default)")
    options = next(row[1] for row in table if row[0] == f"`{optimizer}`")
    default = "" if option.kind is bool else rf" \([^()]*\b{option.default}\b"
    assert re.search(f"`{name}`{default}", options)


# Files that are shown.


@pytest.mark.parametrize("page", ["README.md", "docs/files.md"])
def test_the_files_of_a_page_are_legal(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGES[page], re.S)
    space, fitness = (next(b for b in blocks if f"\n{key}:" in b) for key in ("sources", "slices"))
    (tmp_path / "space.yaml").write_text(space)
    (tmp_path / "fitness.yaml").write_text(fitness)
    for folder in ("tasks", "support"):
        (tmp_path / folder).mkdir()
    spec, scores = read_files(tmp_path / "space.yaml", fitness=tmp_path / "fitness.yaml")
    assert spec.genes
    assert scores.slices


@pytest.mark.parametrize("file", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda f: f.stem)
def test_shipped_spaces_are_legal(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if file.stem == "quickstart" and not (ROOT / "models/quickstart").exists():
        pytest.skip("its models are made by `evomerge quickstart`")
    assert main(["search", str(file), "--dry-run"]) == 0
