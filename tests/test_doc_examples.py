"""The examples of the pages: their files are legal, and copied in their order, to the letter, they do what is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from evomerge.cli import main
from tests.doc_blocks import ROOT, blocks, follow, prepare, write_files

HOWTO = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs/howto").glob("*.md"))
TUTORIAL = "docs/tutorial.md"
FOLLOWED = ["README.md", TUTORIAL, *HOWTO]
RUN = ("sh", "yaml", "python", "json")
"""Languages of blocks that a reader copies. A block without a language is output, or a picture of folders."""


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


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", *HOWTO])
def test_a_page_is_followed_to_the_letter(page: str, tmp_path: Path) -> None:
    prepare(page, tmp_path)
    assert follow(page, tmp_path) == []


@pytest.mark.slow
def test_the_tutorial_is_followed_to_the_letter(shared: Path, tmp_path: Path) -> None:
    """With real models and items, as a reader has them."""
    models = {"base": "base", "french": "french", "maths": "gsm8k"}
    items = {"french": "french_text", "maths": "gsm8k_text", "grammar": "grammar_pairs"}
    for name, source in models.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        for file in (shared / "specialists" / source).iterdir():
            shutil.copyfile(file, tmp_path / "models" / name / file.name)
    (tmp_path / "tasks").mkdir()
    for name, source in items.items():
        shutil.copyfile(shared / f"specialists/items/{source}.jsonl", tmp_path / f"tasks/{name}.jsonl")
    assert follow(TUTORIAL, tmp_path) == []
    card = (tmp_path / "merged/README.md").read_text()
    assert "license: mit" in card
    assert "this merge, the winner" in card
    assert (tmp_path / "report.html").stat().st_size > 100_000
