"""The documentation is tested: every command and key is documented, every file it shows is legal."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from evomerge.cli import main, parser
from evomerge.files import fitness_file, space_file
from evomerge.registry import METHODS, OPTIMIZERS

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
            flag = next((s for s in option.option_strings if s.startswith("--")), None)
            if flag and flag not in ("--help", "--json"):
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
