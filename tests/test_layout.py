"""The layout is a contract: imports point down the list of docs/architecture.md, no file grows past 400 lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "evomerge"
FLOORS = [
    ["cli", "__main__", "commands", "arguments"],
    ["demo"],
    ["report"],
    ["study"],
    ["optimize"],
    ["scoring"],
    ["merge"],
    ["checkpoints"],
    ["space"],
    ["recipe"],
    ["files"],
    ["types", "errors", "interrupts", "registry"],
]
HEIGHT = {room: -i for i, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(PACKAGE.rglob("*.py"))


def module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "evomerge"


def imports(file: Path, *, top_only: bool = False) -> Iterator[str]:
    """Modules of the package that a file imports, under TYPE_CHECKING and inside functions included."""
    tree = ast.parse(file.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "evomerge":
            names = [f"{node.module}.{a.name}" for a in node.names]
            known = {module(f) for f in FILES}
            yield from (n if n in known else node.module for n in names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "evomerge")


@pytest.mark.parametrize("file", FILES, ids=module)
def test_imports_point_down(file: Path) -> None:
    here = room(module(file))
    if here == "evomerge":
        return  # the package itself only names where its functions live
    for name in imports(file):
        there = room(name)
        assert there == "evomerge" or HEIGHT[there] <= HEIGHT[here], f"{module(file)} imports {name}, which is above it"


def test_every_room_has_its_floor() -> None:
    rooms = {room(module(f)) for f in FILES} - {"evomerge"}
    assert rooms <= set(HEIGHT), f"rooms without a floor: {rooms - set(HEIGHT)}"


def test_no_circular_imports() -> None:
    graph = {module(f): set(imports(f, top_only=True)) - {module(f), "evomerge"} for f in FILES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("file", FILES, ids=module)
def test_files_stay_small(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400
