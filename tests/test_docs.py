"""The documentation is tested: every command and key is documented, every file it shows is legal."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from evomerge.cli import main, parser
from evomerge.files import fitness_file, space_file
from evomerge.files.nodes import interval
from evomerge.registry import CHOICES, METHODS, OPTIMIZERS, Parameter

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FILES = (ROOT / "docs/files.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def test_every_command_is_in_the_readme_with_its_options() -> None:
    for name, command in commands().items():
        assert f"evomerge {name}" in README, name
        for option in command._actions:
            for flag in option.option_strings:
                if flag.startswith("--") and flag not in ("--help", "--json"):
                    assert flag in README, f"{name} {flag}"


def test_every_command_of_the_documents_exists() -> None:
    known = set(commands())
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", document.read_text(), re.S):
            for name in re.findall(r"^\$? ?evomerge (\w+)", block, re.M):
                assert name in known, f"{document.name}: evomerge {name}"


@pytest.mark.parametrize("key", [*space_file._KEYS, "base", "sources", "genes", "fitness", *METHODS, *OPTIMIZERS])
def test_space_keys_are_documented(key: str) -> None:
    assert f"`{key}`" in FILES or f"\n{key}:" in FILES


def rows(first: str) -> list[list[str]]:
    """The cells of the table of docs/files.md whose header starts with `first`."""
    table = FILES[FILES.index(f"| {first} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("method", CHOICES)
def test_the_table_of_methods_is_what_they_declare(method: str) -> None:
    _, _, sources, genes, fixed = next(row for row in rows("method") if row[0] == f"`{method}`")
    parameters = CHOICES[method].parameters
    assert genes == ", ".join(f"`{p.name}`" for p in parameters if p.kind is float)
    told = [f"`{p.name}` ({str(p.default).lower()})" for p in parameters if p.kind is not float]
    assert fixed == ", ".join(told)
    least, most = METHODS[CHOICES[method].method].sources
    assert sources == (str(least) if least == most else f"{least} or more" if least > 1 else "any")


@pytest.mark.parametrize(
    ("method", "gene"), [(m, p) for m in CHOICES for p in CHOICES[m].parameters if p.kind is float]
)
def test_the_table_of_genes_is_what_they_declare(method: str, gene: Parameter) -> None:
    found = [row for row in rows("gene") if row[0].startswith(f"`{gene.name}`")]
    name, of, legal, start, meaning = next(r for r in found if len(found) == 1 or f"`{method}`" in r[0])
    assert (of, legal, start) == (
        "each source" if gene.scope == "source" else "the merge",
        interval(gene.low, gene.high),
        f"{gene.init:g}",
    ), name
    assert meaning.endswith("logarithmic") == gene.log


def test_every_method_is_in_the_readme() -> None:
    assert all(f"`{name}`" in README for name in METHODS)


@pytest.mark.parametrize("key", [*fitness_file._KEYS, *fitness_file._SLICE_KEYS])
def test_fitness_keys_are_documented(key: str) -> None:
    assert f"`{key}`" in FILES or f"\n{key}:" in FILES


@pytest.mark.parametrize("file", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda f: f.stem)
def test_shipped_spaces_are_legal(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if file.stem == "quickstart" and not (ROOT / "models/quickstart").exists():
        pytest.skip("its models are made by `evomerge quickstart`")
    assert main(["search", str(file), "--dry-run"]) == 0


def test_linked_files_exist() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links {link}"
