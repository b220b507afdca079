"""The package's face: its names, what importing it costs, its types, old names."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
import typing
import zipfile
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import COMMANDS, OPTIONS, main
from evomerge.deprecated import renamed
from tests.test_cli import FUNCTIONS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/api.md").read_text()


@pytest.mark.parametrize("name", evomerge.__all__)
def test_every_name_is_there_documented_and_typed(name: str) -> None:
    thing = getattr(evomerge, name)
    assert thing.__doc__
    assert f"`{name}" in PAGE
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


def test_the_table_of_the_page_is_the_face() -> None:
    assert set(re.findall(r"^\| `(\w+)", PAGE.partition("## Where the command line")[0], re.M)) == {*evomerge.__all__}


def test_importing_it_loads_nothing() -> None:
    code = "import sys, evomerge; dir(evomerge); print(sorted(m for m in sys.modules if m.startswith('evomerge.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        evomerge.serch  # noqa: B018


def test_every_difference_of_names_is_on_the_page() -> None:
    """Options whose parameter has another name than the flag."""
    table = PAGE.partition("## Where the command line")[2]
    for name, command in COMMANDS.items():
        parameters = inspect.signature(getattr(evomerge, FUNCTIONS.get(name, name))).parameters
        for option in command.options:
            flags, settings = OPTIONS[option]
            parameter = str(settings.get("dest", option))
            said = {flag.lstrip("-").replace("-", "_") for flag in flags}
            if parameter in parameters and parameter not in said:
                row = rf"^\|.*`{name}`.*`{flags[-1]}`.*`{parameter}`"
                assert re.search(row, table, re.M), (name, flags, parameter)


def test_each_row_of_the_page_is_a_difference() -> None:
    table = PAGE.partition("## Where the command line")[2].partition("## ")[0]
    told = set(re.findall(r"`(--[\w-]+)`", table))
    found = set()
    for command in COMMANDS.values():
        for option in command.options:
            flags, settings = OPTIONS[option]
            name = next(flag for flag in flags if flag.startswith("--"))
            handled = "without_effect" in option or option in ("hub_cache", "cuda")
            if name[2:].replace("-", "_") != settings.get("dest", option) and not handled:
                found.add(name)
    # a mapping in Python, of the same name; short forms; one that has no function; a parameter without a dash
    assert told == found | {"--models", "--full", "--tasks", "--dry-run", "--runs"}


def test_an_old_name_is_taken_and_warns() -> None:
    @renamed(before="now")
    def function(*, now: int = 0) -> int:
        return now

    old: dict[str, Any] = {"before": 3}
    with pytest.warns(FutureWarning, match="'before' is called 'now'"):
        assert function(**old) == 3
    assert function(now=4) == 4
    with pytest.raises(TypeError, match="both 'now' and its old name 'before'"):
        function(now=1, **old)
    assert [*typing.get_type_hints(function)] == ["now", "return"]


def test_the_old_name_of_a_parameter_of_search(tmp_path: Path) -> None:
    begin: dict[str, Any] = {"begin": "coarse"}
    with pytest.warns(FutureWarning, match="'begin' is called 'from_run'"), pytest.raises(evomerge.InputError):
        evomerge.search(tmp_path / "absent.yaml", **begin)


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"evomerge {evomerge.__version__}\n"
    assert f'version = "{evomerge.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {evomerge.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_says_that_it_is_typed(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling, which builds the wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "evomerge/py.typed" in names
    assert "evomerge/_starter/fitness/quickstart.yaml" in names
    assert not [name for name in names if "__pycache__" in name]
