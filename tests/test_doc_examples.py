"""The examples of the pages: their files are legal, and copied in their order, to the letter, they do what is said."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from evomerge import answers
from evomerge.cli import main
from evomerge.files.pair import read_files
from evomerge.recipe.mergekit import parse_recipe
from tests import doc_blocks
from tests.doc_blocks import ROOT, blocks, follow, prepare, run_shell, write_files

HOWTO = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs/howto").glob("*.md"))
FOLLOWED = ["README.md", "docs/tutorial.md", *HOWTO]
AFTER_A_SEARCH = [f"docs/{name}.md" for name in ("after", "check", "report", "evaluate", "doctor", "ship")]
RUN = ("sh", "yaml", "python", "json")
"""Languages of blocks that a reader copies. A block without a language is output, or a picture of folders."""

PYTHON = {
    str(file.relative_to(ROOT)): [block for block in blocks(str(file.relative_to(ROOT))) if block.language == "python"]
    for file in sorted((ROOT / "docs").rglob("*.md"))
}
"""The Python of each page. Blocks that are files are run by tests of their own: those of docs/extend.md by
tests/test_plugins.py, of docs/files.md by tests/study/test_own_models.py, of how-to pages by this file."""


@pytest.mark.parametrize("page", FOLLOWED)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    wild = [b.text for b in blocks(page) if b.language in RUN and b.language != "sh" and not (b.file or b.left_out)]
    assert wild == []
    assert {block.language for block in blocks(page)} <= {*RUN, ""}
    assert any(block.left_out is None for block in blocks(page))


@pytest.mark.parametrize("page", ["README.md", *HOWTO])
def test_the_files_of_a_page_pass_a_dry_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(page, tmp_path)
    files = write_files(page, tmp_path)
    spaces = [file for file in files if file.suffix == ".yaml" and "genes" in yaml.safe_load(file.read_text())]
    assert spaces or page.endswith("from-mergekit.md")
    monkeypatch.chdir(tmp_path)
    for space in spaces:
        assert main(["search", str(space), "--dry-run"]) == 0


@pytest.mark.parametrize("page", [page for page in PYTHON if page not in FOLLOWED])
def test_yaml_of_other_pages_is_legal(page: str, tmp_path: Path) -> None:
    """A space with the README's fitness file, a fitness file with its space, a recipe, or said to be a fragment."""
    write_files("README.md", tmp_path)
    for block in blocks(page):
        if block.language != "yaml" or block.left_out:
            continue
        data = yaml.safe_load(block.text)
        if "merge_method" in data:
            assert parse_recipe(block.text).documents
            continue
        kind = "fitness" if "slices" in data else "space"
        place = tmp_path / "other"
        (place / "tasks").mkdir(parents=True, exist_ok=True)
        (place / "support").mkdir(exist_ok=True)
        for name in ("space", "fitness"):
            text = block.text if name == kind else (tmp_path / f"{name}.yaml").read_text()
            (place / f"{name}.yaml").write_text(text)
        space, fitness = read_files(place / "space.yaml", fitness=place / "fitness.yaml")
        assert fitness.slices
        assert space.base


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the README's example after two searches, with `best.yaml`, and with other floors beside it."""
    folder = tmp_path_factory.mktemp("searched")
    prepare("README.md", folder)
    write_files("README.md", folder)
    shutil.copyfile(folder / "fitness.yaml", folder / "stricter.yaml")
    lines = [
        "evomerge search space.yaml --trials 34",
        "evomerge search space.yaml --run space-2 --trials 8",
        "evomerge export space -o best.yaml",
    ]
    for line in lines:
        assert run_shell(line, folder).returncode == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", AFTER_A_SEARCH)
def test_a_page_about_a_run_is_followed_to_the_letter(page: str, searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    if page in ("docs/evaluate.md", "docs/doctor.md"):
        assert run_shell("evomerge merge best.yaml merged/", tmp_path).returncode == 0
    assert follow(page, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", *HOWTO])
def test_a_page_is_followed_to_the_letter(page: str, tmp_path: Path) -> None:
    prepare(page, tmp_path)
    assert follow(page, tmp_path) == []


@pytest.mark.parametrize("page", [page for page, found in PYTHON.items() if any(not b.file for b in found)])
def test_python_is_whole(page: str) -> None:
    """It compiles, and a block that is not run says why."""
    for block in PYTHON[page]:
        compile(block.text, page, "exec")
        assert block.left_out is None or len(block.left_out) > 8


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, found in PYTHON.items() if any(not b.file for b in found)])
def test_python_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the folder of the README's example; of pages about a run, after its search."""
    prepare("README.md", tmp_path)
    write_files("README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    if page == "docs/after.md":
        assert main(["search", "space.yaml", "--trials", "8"]) in (answers.DONE, answers.NO)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in PYTHON[page]:
        if block.left_out is None:
            exec(compile(block.text, page, "exec"), names)


def test_exit_codes_are_documented() -> None:
    """All that the program has, and no other."""
    readme = (ROOT / "README.md").read_text()
    paragraph = next(part for part in readme.split("\n\n") if "**Exit codes:**" in part)
    sentence = paragraph.partition("**Exit codes:**")[2].partition(". ")[0]
    said = {int(number) for number in re.findall(r"(?:^|;)\s*(\d+) ", sentence)}
    assert said == {answers.DONE, answers.NO, answers.WRONG, answers.INTERRUPTED, answers.PIPE_CLOSED}


@pytest.mark.parametrize("command", ["search", "rank", "evaluate", "path", "check", "doctor", "reproduce", "export"])
def test_a_command_that_can_say_no_says_so_on_its_page(command: str) -> None:
    rows = [
        line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `evomerge {command} ")
    ]
    page = re.findall(r"\((docs/[\w/]+\.md)", rows[0])[0]
    text = " ".join((ROOT / page).read_text().split())
    assert re.search(r"[Ee]xit code[^.]*\b1\b", text)


def test_the_numbers_of_the_front_page_are_measured() -> None:
    readme = (ROOT / "README.md").read_text()
    claims = readme.partition("[Measured]")[2].partition("## Install")[0]
    measured = (ROOT / "docs/benchmarks.md").read_text()
    numbers = re.findall(r"\d+\.\d+(?:e-\d+)?", claims)
    assert len(numbers) >= 6
    assert [number for number in numbers if number not in measured] == []


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("```sh\nfalse\n```", 1),
        ("```sh\nfalse\ntrue\n```", 1),
        ("<!-- exit: 1 -->\n```sh\nfalse\n```", 0),
        ("<!-- exit: 1 -->\n```sh\ntrue\n```", 1),
        ("<!-- not run: it fails -->\n```sh\nfalse\n```", 0),
        ("```yaml\n# a/b.yaml\nx: 1\n```\n```sh\ngrep x a/b.yaml\n```", 0),
        ("```sh\ngrep x a/b.yaml\n```\n```yaml\n# a/b.yaml\nx: 1\n```", 1),
        ('<!-- file: items.jsonl -->\n```json\n{"x": 1}\n```\n\n```sh\ngrep x items.jsonl\n```', 0),
    ],
)
def test_a_page_is_held_to_what_it_says(
    text: str, problems: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doc_blocks, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(f"# A page\n\n{text}\n")
    assert len(follow("page.md", tmp_path)) == problems
