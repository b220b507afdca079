"""The layout is a contract: rooms stand on floors, imports point down, nothing goes in circles, and files stay small.

Every import counts: at the top of a file, inside a function, under TYPE_CHECKING, and one that is written as text.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    ["__main__"],
    ["cli"],
    ["options"],
    ["merge_options"],
    ["run_commands"],
    ["commands", "shipping"],
    ["completion"],
    ["arguments", "outputs", "answers"],
    ["report", "demo", "testing"],
    ["examine"],
    ["study"],
    ["evaluator"],
    ["optimize"],
    ["scoring"],
    ["space", "merging"],
    ["recipe", "cards"],
    ["files", "checkpoints"],
    ["safety"],
    ["numbers"],
    ["types", "errors", "interrupts", "streams", "registry", "versions", "deprecated"],
    ["plugins", "method_parameters"],
    ["escape"],
]
"""The rooms, top floor first."""

INSIDE = {
    "study": [
        ["search", "dry_run"],
        ["look", "page", "polish"],
        ["loop", "holdout", "repair", "documents", "executors"],
        ["session"],
        ["prepare"],
        ["after"],
        ["trackers"],
        ["racing"],
        ["gradients"],
        ["trials"],
        ["finalists", "advice", "aligned", "matched", "subsets"],
        ["observer"],
        ["run"],
    ],
    "scoring": [
        ["item_noise"],
        ["suite"],
        ["build"],
        ["slices"],
        ["python"],
        ["preflight"],
        ["commands"],
        ["serving"],
        ["tasks", "file_pass"],
        ["gates", "item_files", "measures"],
        ["stats", "candidate"],
        ["engine"],
        ["splits", "objectives", "guard", "replies"],
        ["settings", "templates"],
    ],
    "checkpoints": [
        ["samples"],
        ["preflight", "vocabulary", "token_ids"],
        ["tokenizer", "write"],
        ["checkpoint"],
        ["references", "lora"],
        ["lora_steps", "quantized"],
        ["read"],
        ["hub", "lora_config", "vocabulary_tensors"],
        ["config", "pickled", "layouts", "modules"],
        ["structure", "headers", "identity", "lora_names", "partial", "chat_templates", "siblings"],
    ],
    "merging": [["disk", "permutation", "state_dicts"], ["resident"], ["methods"], ["plan"], ["kernels"]],
}
"""The floors of rooms that have sub-rooms: their folders and files, top floor first."""

HEAVY = {
    "numpy",
    "torch",
    "transformers",
    "lm_eval",
    "optuna",
    "cma",
    "pandas",
    "pyarrow",
    "scipy",
    "matplotlib",
    "plotly",
    "rich",
}
"""What takes long to import: the only reason to import another room inside a function."""

MOST_LINES, MOST_FILES = 400, 24


@dataclass(frozen=True)
class Import:
    """`module` imports `of`. `where` is "top", "function" or "types" (under TYPE_CHECKING)."""

    module: str
    of: str
    where: str


class Package:
    """The files of a package `evomerge` in the folder `root`, and what they import of it and of others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = {self._module(file): file for file in sorted((root / "evomerge").rglob("*.py"))}
        self.trees = {module: _parsed(file.read_text()) for module, file in self.files.items()}

    def _module(self, file: Path) -> str:
        parts = file.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def imports(self) -> list[Import]:
        """All imports of one module of the package by another one."""
        return [
            Import(module, of, where)
            for module, tree in self.trees.items()
            for node, where in _import_nodes(tree)
            for of in self._imported(module, node)
            if of != module
        ]

    def _imported(self, module: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in self.files)
        else:
            origin = self._origin(module, node)
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                if full in self.files or origin in self.files:
                    yield full if full in self.files else origin

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        """The module that a relative or absolute `from ... import` names."""
        if not node.level:
            return node.module or ""
        package = module if self._is_package(module) else module.rpartition(".")[0]
        parts = package.split(".")[: len(package.split(".")) + 1 - node.level]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def _is_package(self, module: str) -> bool:
        return self.files[module].name == "__init__.py"

    @cached_property
    def heavy(self) -> set[str]:
        """The modules that load something heavy when they are imported."""
        direct = {
            module
            for module, tree in self.trees.items()
            for node, where in _import_nodes(tree)
            if where == "top" and HEAVY & {name.partition(".")[0] for name in _names(node)}
        }
        above: dict[str, set[str]] = {}
        for found in self.imports:
            if found.where == "top":
                above.setdefault(found.of, set()).add(found.module)
        reached, left = set(direct), list(direct)
        while left:
            new = above.get(left.pop(), set()) - reached
            reached |= new
            left += new
        return reached

    def upward(self) -> list[str]:
        """Imports of a room that does not stand below; inside a room, of a sub-room that does not."""
        found = [
            f"{i.module} imports {i.of}, which is not below it"
            for i in self.imports
            if _room(i.module) and not _is_below(i.of, i.module)
        ]
        packages = {m for m in self.files if _room(m) and self._is_package(m)}
        found += [f"{i.module} imports {i.of}, a package" for i in self.imports if i.of in packages]
        found += [f"{i.module}, a package, imports {i.of}" for i in self.imports if i.module in packages]
        # Paths as text: in code, not in docstrings, and but for the tables that are there to name what is above.
        for module, tree in self.trees.items():
            if module not in ("evomerge", "evomerge.registry"):
                named = {path for text in _texts(tree, docstrings=False) for path, _ in _paths(text)}
                above = [path for path in named if path in self.files and not _is_below(path, module)]
                found += [f"{module} names {path}, which is not below it" for path in above]
        return found

    def circles(self) -> list[str]:
        """The modules of each circle of imports."""
        graph: dict[str, list[str]] = {}
        for i in self.imports:
            if _room(i.module) and _room(i.of):  # the package itself only names where its functions live
                graph.setdefault(i.module, []).append(i.of)
        return [" -> ".join(path) for path in _circles(graph)]

    def needless(self) -> list[str]:
        """Imports of another room inside a function that load nothing heavy, and so belong at the top of the file."""
        return [
            f"{i.module} imports {i.of} inside a function"
            for i in self.imports
            if i.where == "function" and _room(i.of) != _room(i.module) and i.of not in self.heavy
        ]

    def dangling(self) -> list[str]:
        """Import paths written as text (`module:name`, `from module import`) that lead nowhere."""
        found = []
        for module, tree in self.trees.items():
            for text in _texts(tree):
                for path, name in _paths(text):
                    if not self._exists(path, name):
                        found.append(f"{module} names {path}{':' + name if name else ''}")
            for node, _ in _import_nodes(tree):
                origin = self._origin(module, node) if isinstance(node, ast.ImportFrom) else ""
                if origin.partition(".")[0] == "evomerge" and origin not in self.files:
                    found.append(f"{module} imports {origin}")
        return found

    def _exists(self, module: str, name: str) -> bool:
        if module not in self.files:
            # a function of the package's own face, as `evomerge.search`
            return module.count(".") == 1 and f'"{module.partition(".")[2]}"' in self.files["evomerge"].read_text()
        return not name or any(name in _defined(node) for node in self.trees[module].body)


def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module makes."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {getattr(node, "name", ""), *(target.id for target in targets if isinstance(target, ast.Name))}


@cache
def _texts(tree: ast.Module, docstrings: bool = True) -> list[str]:
    """The strings in a file."""
    alone = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [str(n.value) for n in texts if docstrings or id(n) not in alone]


@cache
def _paths(text: str) -> list[tuple[str, str]]:
    """The import paths in a text, each with the name that it takes from there, or none."""
    return re.findall(r"\b(evomerge(?:\.\w+)+)(?:(?::| import )(\w+))?", text)


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def _import_nodes(tree: ast.Module) -> list[tuple[ast.Import | ast.ImportFrom, str]]:
    return list(_find_import_nodes(tree))


def _find_import_nodes(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    typing = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    for_types = {id(inner) for node in typing for inner in ast.walk(node)}
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    deferred = {id(inner) for node in functions for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, "types" if id(node) in for_types else "function" if id(node) in deferred else "top"


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _floor(floors: list[list[str]], name: str) -> int:
    return next((at for at, floor in enumerate(floors) if name in floor), -1)


def _is_below(other: str, module: str) -> bool:
    there, here = _room(other), _room(module)
    if not here or other == "evomerge":  # the package's face names all rooms
        return not here or module == "evomerge.cli"  # which prints the version
    if there != here:
        return _floor(FLOORS, there) > _floor(FLOORS, here)
    if here not in INSIDE or other.count(".") < 2 or module.count(".") < 2:
        return True
    inner, outer = other.split(".")[2], module.split(".")[2]
    return inner == outer or _floor(INSIDE[here], inner) > _floor(INSIDE[here], outer)


def _circles(graph: dict[str, list[str]]) -> Iterator[list[str]]:
    """One path for each circle that a walk through the graph meets."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> Iterator[list[str]]:
        if name in path:
            yield [*path[path.index(name) :], name]
        elif name not in done:
            for other in graph.get(name, ()):
                yield from visit(other, (*path, name))
            done.add(name)

    for name in graph:
        yield from visit(name, ())


PACKAGE = Package(ROOT)


def test_every_room_has_its_floor() -> None:
    assert {_room(m) for m in PACKAGE.files} - {""} == {room for floor in FLOORS for room in floor}
    for room, floors in INSIDE.items():
        inside = {m.split(".")[2] for m in PACKAGE.files if _room(m) == room and m.count(".") > 1}
        assert inside == {name for floor in floors for name in floor}


def test_imports_point_down() -> None:
    assert PACKAGE.upward() == []


def test_no_circles() -> None:
    assert PACKAGE.circles() == []


def test_imports_inside_functions_have_weight() -> None:
    assert PACKAGE.needless() == []


def test_paths_written_as_text_lead_somewhere() -> None:
    assert PACKAGE.dangling() == []


@pytest.mark.parametrize("module", PACKAGE.files)
def test_files_stay_small(module: str) -> None:
    assert len(PACKAGE.files[module].read_text().splitlines()) <= MOST_LINES


def test_folders_stay_small() -> None:
    folders = [file.parent for file in PACKAGE.files.values() if file.name != "__init__.py"]
    assert {str(f) for f in folders if folders.count(f) > MOST_FILES} == set()


@pytest.mark.parametrize(
    ("where", "line", "check"),
    [
        ("space/vector.py", "from evomerge.study.prepare import Plan", "upward"),
        ("space/vector.py", "if TYPE_CHECKING:\n    from evomerge.study.prepare import Plan", "upward"),
        ("space/vector.py", "def f() -> None:\n    from evomerge.optimize.base import Start", "upward"),
        ("study/run/trial.py", "from evomerge.study.racing.race import Race", "upward"),
        ("space/vector.py", "from ..study.prepare import Plan", "upward"),
        ("space/vector.py", "def f() -> None:\n    from ..study.search import search", "upward"),
        ("space/vector.py", "from evomerge import search", "upward"),
        ("space/vector.py", "import evomerge", "upward"),
        ("space/vector.py", 'importlib.import_module("evomerge.study.search")', "upward"),
        ("space/vector.py", 'X = "evomerge.study.search:search"', "upward"),
        ("study/__init__.py", "from evomerge.study.search import search", "upward"),
        ("study/run/store.py", "import evomerge.study", "upward"),
        ("recipe/recipe.py", "from . import mergekit", "circles"),
        ("recipe/recipe.py", "from .mergekit import read_recipe", "circles"),
        ("optimize/base.py", "from evomerge.optimize.planned import Planned", "circles"),
        ("optimize/base.py", "def f() -> None:\n    from evomerge.optimize.planned import Planned", "circles"),
        ("optimize/base.py", "if TYPE_CHECKING:\n    from evomerge.optimize.planned import Planned", "circles"),
        ("optimize/base.py", "def f() -> None:\n    from evomerge.space.reference_genomes import UNIFORM", "needless"),
        ("registry.py", 'X = "evomerge.optimize.absent:Absent"', "dangling"),
        ("registry.py", 'X = "evomerge.optimize.planned:Absent"', "dangling"),
        ("evaluator/pool.py", 'X = "from evomerge.nowhere import y; y()"', "dangling"),
        ("space/vector.py", "from evomerge.nope import x", "dangling"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, where: str, line: str, check: str) -> None:
    shutil.copytree(ROOT / "evomerge", tmp_path / "evomerge", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "evomerge" / where
    file.write_text(f"{file.read_text()}\n\n{line}\n")
    before, after = getattr(PACKAGE, check)(), getattr(Package(tmp_path), check)()
    assert len(after) > len(before)
