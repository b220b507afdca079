"""docs/tutorial.md, copied to the letter with real models and items, as a reader has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.doc_blocks import follow

PAGE = "docs/tutorial.md"
MODELS = {"base": "base", "french": "french", "maths": "gsm8k"}
ITEMS = {"french": "french_text", "maths": "gsm8k_text", "grammar": "grammar_pairs"}
"""What the page calls them, and what they are called in the folder of real checkpoints."""


@pytest.mark.slow
def test_the_tutorial_is_followed_to_the_letter(shared: Path, tmp_path: Path) -> None:
    for name, source in MODELS.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        for file in (shared / "specialists" / source).iterdir():
            shutil.copyfile(file, tmp_path / "models" / name / file.name)
    (tmp_path / "tasks").mkdir()
    for name, source in ITEMS.items():
        shutil.copyfile(shared / f"specialists/items/{source}.jsonl", tmp_path / f"tasks/{name}.jsonl")
    assert follow(PAGE, tmp_path) == []
    card = (tmp_path / "merged/README.md").read_text()
    assert "license: mit" in card
    assert "this merge, the winner" in card
    assert (tmp_path / "report.html").stat().st_size > 100_000
