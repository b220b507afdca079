"""Mutants of real input files: whatever they say, they are read, or refused in one line, in seconds.

2,000 mutants by default, the same in each run. ``pytest tests/files/test_fuzz.py --long`` reads 100,000 others.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from evomerge.errors import EvomergeError
from evomerge.files.fitness_file import read_fitness
from evomerge.files.pair import read_files
from evomerge.files.resolved import fitness_data, space_data, to_yaml
from evomerge.files.space_file import read_space
from evomerge.recipe.mergekit import read_recipe, write_recipe
from evomerge.safety.limits import TimeLimit
from evomerge.scoring.tasks import built_in, task_files

from ..conftest import SHARED
from .mutations import MUTATIONS

REPO = Path(__file__).parents[2]
FENCE = re.compile(r"^```yaml\n(.*?)^```", re.M | re.S)
SETTINGS = (
    "budget.trials=50",
    "optimizer={name: cma-es, sigma: 0.3}",
    "genes.weight.init=0.2",
    "layers=each",
    "sources.more=org/more@main",
    "fitness.slices.refunds.floor={of: base, margin: 0.1}",
    "fitness.pruning=[racing]",
    "fitness.split.search=0.4",
)
MOST_SECONDS = 5.0
"""Of processor time, for one mutant."""

Edit = tuple[int, int, int]
EDITS = st.lists(st.tuples(*[st.integers(0, 1 << 16)] * 3), min_size=1, max_size=4)


def mutated(text: str, edits: Sequence[Edit]) -> str:
    for kind, a, b in edits:
        text = MUTATIONS[kind % len(MUTATIONS)](text, a, b)[:60_000]
    return text


def write(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))


def recipes() -> list[str]:
    """Recipes of the documentation, and of mergekit's own outputs where they are beside the checkout."""
    pages = [FENCE.findall(page.read_text()) for page in [*REPO.glob("docs/*.md"), REPO / "README.md"]]
    files = [file.read_text() for file in sorted((SHARED / "parity" / "cases").glob("*.yml"))]
    return sorted({text for texts in [*pages, files] for text in texts if "merge_method" in text})


def tasks() -> list[Path]:
    """Task files of the project, and of lm-eval: of all forms, small ones."""
    own = [*(REPO / "fitness").rglob("*.yaml"), *(REPO / "tests" / "scoring" / "task_files").rglob("*.yaml")]
    folder = built_in._built_in_folder()
    names = (
        "hellaswag",
        "gsm8k",
        "glue",
        "mmlu/default",
        "squadv2",
        "wikitext",
        "bbh/cot_zeroshot",
        "arc",
        "truthfulqa",
    )
    others = [sorted((folder / name).rglob("*.yaml"))[:4] for name in names] if folder else []
    return [*own, *(file for files in others for file in files)]


PAIRS = sorted(file.stem for file in (REPO / "search_spaces").glob("*.yaml"))
RECIPES, TASKS = recipes(), tasks()


def test_the_files_to_mutate_are_there() -> None:
    assert (len(PAIRS) >= 2, len(RECIPES) >= 3, len(TASKS) >= 10) == (True, True, True)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("search_spaces", "fitness"):
        shutil.copytree(REPO / name, folder / name)
    (folder / "tasks").mkdir()
    return folder


@pytest.fixture(autouse=True)
def _few_built_in_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt name is compared with the names of lm-eval's 14,000 tasks, which takes a second."""
    names = frozenset({"hellaswag", "gsm8k", "wikitext"})
    monkeypatch.setattr(built_in, "built_in_names", lambda: names)
    monkeypatch.setattr("evomerge.scoring.preflight.built_in_names", lambda: names)
    monkeypatch.setattr("evomerge.scoring.preflight.is_built_in", names.__contains__)


def survives(read: Callable[[], object]) -> None:
    """Asserts that something is read, or refused in one line, in time."""
    start = time.process_time()
    message = "it was read"
    try:
        with TimeLimit(10 * MOST_SECONDS):
            read()
    except EvomergeError as error:
        message = str(error)
    assert 0 < len(message) < 3_100
    assert len(message.splitlines()) == 1
    assert time.process_time() - start < MOST_SECONDS


def fuzz(request: pytest.FixtureRequest, share: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The settings of a fuzz test that reads a share of all mutants."""
    count: int = request.config.getoption("--long") or 2_000
    short = count <= 2_000
    return settings(
        max_examples=max(1, int(count * share)),
        derandomize=short,
        phases=[Phase.generate] if short else [Phase.generate, Phase.shrink],  # to shrink takes minutes
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def read_pair(folder: Path, name: str, changes: Sequence[str] = ()) -> None:
    """Reads a pair, checks it, and reads what a run would store of it."""
    from evomerge.study.prepare import check_files

    space, fitness = read_files(folder / "search_spaces" / f"{name}.yaml", changes)
    stored = folder / "stored.yaml"
    stored.write_text(to_yaml(space_data(space), "copy"))
    assert space_data(read_space(stored)) == space_data(space)
    stored.write_text(to_yaml(fitness_data(fitness), "copy"))
    assert fitness_data(read_fitness(stored)) == fitness_data(fitness)
    check_files(space, fitness)


def test_search_spaces(request: pytest.FixtureRequest, sandbox: Path) -> None:
    @fuzz(request, 0.25)
    @given(name=st.sampled_from(PAIRS), edits=EDITS)
    def run(name: str, edits: list[Edit]) -> None:
        original = (REPO / "search_spaces" / f"{name}.yaml").read_text()
        write(sandbox / "search_spaces" / f"{name}.yaml", mutated(original, edits))
        survives(lambda: read_pair(sandbox, name))

    run()


def test_fitness_files(request: pytest.FixtureRequest, sandbox: Path) -> None:
    @fuzz(request, 0.25)
    @given(name=st.sampled_from(PAIRS), edits=EDITS)
    def run(name: str, edits: list[Edit]) -> None:
        shutil.copy(REPO / "search_spaces" / f"{name}.yaml", sandbox / "search_spaces")
        original = (REPO / "fitness" / f"{name}.yaml").read_text()
        write(sandbox / "fitness" / f"{name}.yaml", mutated(original, edits))
        survives(lambda: read_pair(sandbox, name))

    run()


def test_settings(request: pytest.FixtureRequest, sandbox: Path) -> None:
    for name in PAIRS:
        for kind in ("search_spaces", "fitness"):
            shutil.copy(REPO / kind / f"{name}.yaml", sandbox / kind)

    @fuzz(request, 0.1)
    @given(name=st.sampled_from(PAIRS), setting=st.sampled_from(SETTINGS), edits=EDITS)
    def run(name: str, setting: str, edits: list[Edit]) -> None:
        survives(lambda: read_pair(sandbox, name, [mutated(setting, edits)]))

    run()


def test_recipes(request: pytest.FixtureRequest, sandbox: Path) -> None:
    file = sandbox / "recipe.yaml"

    def read() -> None:
        recipe = read_recipe(file)
        file.write_text(write_recipe(recipe))
        assert read_recipe(file).id == recipe.id

    @fuzz(request, 0.25)
    @given(original=st.sampled_from(RECIPES), edits=EDITS)
    def run(original: str, edits: list[Edit]) -> None:
        write(file, mutated(original, edits))
        survives(read)

    run()


@pytest.mark.slow
def test_task_files(request: pytest.FixtureRequest, sandbox: Path) -> None:
    from evomerge.files.objects import SliceSpec
    from evomerge.scoring.preflight import check_task

    folder = sandbox / "tasks"

    def read() -> None:
        local = task_files.scan([folder])
        for name in {*local.names, *local.broken}:
            survives(lambda name=name: check_task(SliceSpec("s", task=name, metric="acc"), local))

    @fuzz(request, 0.15)
    @given(original=st.sampled_from(TASKS), edits=EDITS)
    def run(original: Path, edits: list[Edit]) -> None:
        for file in original.parent.iterdir():  # what it includes
            if file.is_file() and file.suffix in ("", ".yaml") and file != original:
                shutil.copy(file, folder / f"{file.stem}{file.suffix}")
        write(folder / original.name, mutated(original.read_text(), edits))
        read()
        shutil.rmtree(folder)
        folder.mkdir()

    run()
