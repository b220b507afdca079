"""A checkpoint goes to the hub when it is asked to, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from evomerge.cli import main

Said = pytest.CaptureFixture[str]


class Hub:
    """Stands for the hub's API, and keeps what is asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.fails: str | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("whoami", "repo_exists", "create_repo", "upload_folder"):
            monkeypatch.setattr(huggingface_hub.HfApi, name, self._method(name))

    def _method(self, name: str) -> Any:
        def call(_: Any, *words: Any, **named: Any) -> Any:
            self.asked.append(name)
            if self.fails == name:
                raise ConnectionError("no route\nto host")
            return getattr(self, name)(*words, **named)

        return call

    def whoami(self) -> dict[str, str]:
        return {"name": "me"}

    def repo_exists(self, repository: str) -> bool:
        return repository in self.repositories

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> str:
        assert not exist_ok
        self.repositories[repository] = private
        return f"https://hub.test/{repository}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.files[repo_id] = sorted(file.name for file in Path(folder_path).iterdir())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    hub.install(monkeypatch)
    return hub


@pytest.fixture
def recipe(models: dict[str, Path], tmp_path: Path) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"merge_method: passthrough\nmodels: [{{model: {models['a']}}}]\n")
    return str(file)


def test_nothing_is_pushed_without_the_flag(recipe: str, tmp_path: Path, hub: Hub, capsys: Said) -> None:
    assert main(["merge", recipe, str(tmp_path / "out")]) == 0
    assert hub.asked == []
    assert main(["merge", recipe, str(tmp_path / "two"), "--public"]) == 2
    assert "--public goes with --push-to-hub" in capsys.readouterr().err
    assert hub.asked == []


@pytest.mark.parametrize(("words", "private"), [([], True), (["--public"], False)])
def test_a_checkpoint_is_pushed_whole(
    words: list[str], private: bool, recipe: str, tmp_path: Path, hub: Hub, capsys: Said
) -> None:
    assert main(["merge", recipe, str(tmp_path / "out"), "--push-to-hub", "merged", *words]) == 0
    assert hub.repositories == {"me/merged": private}
    assert hub.files["me/merged"] == sorted(file.name for file in (tmp_path / "out").iterdir())
    assert "pushed to https://hub.test/me/merged" in capsys.readouterr().err


def test_a_repository_that_exists_is_told_before_the_merge(recipe: str, tmp_path: Path, hub: Hub, capsys: Said) -> None:
    hub.repositories["org/there"] = True
    assert main(["merge", recipe, str(tmp_path / "out"), "--push-to-hub", "org/there"]) == 2
    assert "the repository org/there is there already; give another name" in capsys.readouterr().err
    assert main(["merge", recipe, str(tmp_path / "out"), "--push-to-hub", "a/b/c"]) == 2
    assert "'a/b/c' is no name of a repository" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_upload_that_fails_leaves_the_checkpoint(recipe: str, tmp_path: Path, hub: Hub, capsys: Said) -> None:
    hub.fails = "upload_folder"
    assert main(["merge", recipe, str(tmp_path / "out"), "--push-to-hub", "merged"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --push-to-hub: the hub cannot be reached (no route to host); the checkpoint is in ")
    assert (tmp_path / "out/config.json").is_file()


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "nobody is logged in to the hub; run `hf auth login`"), ("hf_x", "the hub cannot be reached")],
)
def test_no_token_and_no_network_are_one_line(token: str | None, said: str, recipe: str, tmp_path: Path) -> None:
    """With the real library, against a port that nobody listens on."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")} | (
        {"HF_TOKEN": token} if token else {}
    )
    command = [sys.executable, "-m", "evomerge", "merge", recipe, str(tmp_path / "out"), "--push-to-hub", "x"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
