"""A study in a PostgreSQL server of its own: what a search writes there, and what it does when the server goes away, or
when another process has the study."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.errors import BusyError, InputError, StoppedError
from evomerge.study.observer import Observer
from tests.postgres import SECRET, USER, Server, binaries, running

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from _damage import free_executor, write_free_study  # noqa: E402

pytest.importorskip("psycopg", reason="needs psycopg: pip install 'evomerge[postgres]'")
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(binaries() is None, reason="needs a PostgreSQL server: apt-get install postgresql"),
]

TRIALS = 20
PASSWORD = "EVOMERGE_STORAGE_PASSWORD"

_CHILD = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from _damage import free_executor
import evomerge
from evomerge.study import search
from evomerge.study.observer import Observer
search.executor_of = free_executor
class Watch(Observer):
    left = int(sys.argv[2])
    def trial_finished(self, trial, leaderboard):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
command, run = sys.argv[1], sys.argv[3]
if command == "search":
    evomerge.search("space.yaml", run=run, storage=sys.argv[4], observer=Watch())
else:
    evomerge.resume(run, observer=Watch())
"""
"""Searches or resumes, with scores that are a function of the recipe, and kills itself after so many trials."""

Study = Callable[..., Path]


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def server(started: Server) -> Iterator[Server]:
    """The server, running, with an empty database."""
    yield started
    try:
        started.ask("SELECT 1")
    except Exception:
        started.start()
    started.ask("DROP SCHEMA public CASCADE")
    started.ask("CREATE SCHEMA public")


@pytest.fixture
def study(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Writes a study whose scores are a function of the recipe. Returns the trials that it has in a journal."""
    tiny_study()
    write_free_study(Path(), Path("models").absolute(), "racing", TRIALS)
    monkeypatch.setattr("evomerge.study.search.executor_of", free_executor)
    evomerge.search("space.yaml", run="journal")
    return facts("journal")


def facts(run: str) -> list[Any]:
    trials = evomerge.status(run).search.trials
    return [(t.number, t.label, t.state, t.genome, t.recipe_id, t.scores, t.objective) for t in trials]


class At(Observer):
    """Does something after a number of trials, once."""

    def __init__(self, number: int, act: Callable[[], Any]) -> None:
        self.left, self.act = number, act
        self.said: list[str] = []

    def trial_finished(self, trial: Any, leaderboard: Any) -> None:
        self.left -= 1
        if not self.left:
            self.act()

    def warn(self, message: str) -> None:
        self.said.append(message)


def child(*words: str) -> int:
    done = subprocess.run([sys.executable, "-c", _CHILD, *words], capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_killed_and_resumed_it_has_the_trials_of_a_journal(
    server: Server, study: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert child("search", "5", "study", server.url()) == -signal.SIGKILL
    monkeypatch.setenv(PASSWORD, SECRET)
    assert child("resume", "1", "study") == -signal.SIGKILL
    assert child("resume", "7", "study") == -signal.SIGKILL
    assert main(["status", "study"]) == 0
    assert "of 20" in capsys.readouterr().out
    result = evomerge.resume("study")
    assert facts("study") == study
    assert not result.folder.journal.exists()
    assert evomerge.export("study", "best.yaml", allow_infeasible=True)


@pytest.mark.slow
def test_the_command_line_on_true_models(server: Server, tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_study()
    monkeypatch.setenv("PGPASSWORD", SECRET)
    evomerge.search("space.yaml", run="journal", trials=12)
    arguments = ["search", "space.yaml", "--run", "study", "--trials", "12", "--storage", server.url(password=None)]
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[7/"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert main(["resume", "study"]) in (0, 1)
    assert facts("study") == facts("journal")


def test_the_dashboard(server: Server, study: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard")
    monkeypatch.setenv(PASSWORD, SECRET)
    evomerge.search("space.yaml", run="study", storage=server.url(password=None))
    urls: list[str] = []
    served = threading.Event()

    def ready(url: str) -> None:
        urls.append(url)
        served.set()

    threading.Thread(target=lambda: evomerge.dashboard("study", port=0, ready=ready), daemon=True).start()
    assert served.wait(60)
    with urllib.request.urlopen(f"{urls[0]}api/studies", timeout=60) as answer:
        [shown] = json.loads(answer.read())["study_summaries"]
    assert shown["study_name"] == "study"
    with urllib.request.urlopen(f"{urls[0]}api/studies/{shown['study_id']}?after=0", timeout=60) as answer:
        trials = json.loads(answer.read())["trials"]
    assert [t["number"] for t in trials] == [number for number, *_ in study]


def test_the_password_stands_nowhere(
    server: Server, study: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{server.url()}?application_name=mine"
    assert main(["search", "space.yaml", "--run", "study", "--storage", url]) in (0, 1)
    said = capsys.readouterr()
    assert main(["resume", "study", "--trials", "21"]) == 2
    refused = capsys.readouterr()
    assert f"by {PASSWORD}, or in ~/.pgpass" in refused.err.splitlines()[-1]
    monkeypatch.setenv(PASSWORD, SECRET)
    assert main(["resume", "study", "--trials", "21"]) in (0, 1)
    assert main(["report", "study", "-o", "page.html"]) == 0
    evomerge.export("study", "best.yaml", allow_infeasible=True)
    monkeypatch.setenv(PASSWORD, "wrong")
    assert main(["status", "study"]) == 2
    wrong = capsys.readouterr()
    assert "password authentication failed" in wrong.err
    files = [*Path("runs/study").rglob("*"), Path("page.html"), Path("best.yaml")]
    texts = [file.read_bytes().decode("latin-1") for file in files if file.is_file()]
    for text in (*texts, *said, *refused, *wrong):
        for secret in (SECRET, server.url().partition(f"{USER}:")[2].partition("@")[0]):
            assert secret not in text
    environment = json.loads(Path("runs/study/environment.json").read_text())
    assert environment["storage"] == (
        f"postgresql+psycopg://{USER}@127.0.0.1:{server.port}/postgres?application_name=mine"
    )


def test_two_drivers_with_folders_of_their_own(
    server: Server, study: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PASSWORD, SECRET)
    refused: list[BaseException] = []

    def resume_copy() -> None:
        shutil.copytree("runs/study", "runs/copy")
        with pytest.raises(
            BusyError, match=f"the study 'study' in the storage is held by process {os.getpid()} since "
        ):
            evomerge.resume("copy")
        refused.append(BusyError(""))

    evomerge.search("space.yaml", run="study", storage=server.url(), observer=At(6, resume_copy))
    assert refused
    assert facts("study") == study
    assert main(["resume", "copy"]) in (0, 1)  # let go of with the session
    assert main(["search", "space.yaml", "--run", "other/study", "--storage", server.url()]) == 2
    assert "the storage has a study 'study' already" in capsys.readouterr().err


_HOLDS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"


def test_a_lost_lock_is_taken_again(server: Server, study: list[Any]) -> None:
    ended: list[Any] = []
    cut = At(6, lambda: ended.extend(server.ask(f"SELECT pg_terminate_backend(pid) FROM ({_HOLDS}) AS held")))
    evomerge.search("space.yaml", run="study", storage=server.url(), observer=cut)
    assert ended == [(True,)]
    assert server.ask(_HOLDS) == []


def test_a_study_that_another_took_meanwhile_is_left_to_it(
    server: Server, study: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, SECRET)

    def lose() -> None:
        shutil.copytree("runs/study", "runs/copy")
        server.ask(f"SELECT pg_terminate_backend(pid) FROM ({_HOLDS}) AS held")
        evomerge.resume("copy")

    with pytest.raises(
        StoppedError, match="the connection to the storage was lost, and another process took the study 'study'"
    ):
        evomerge.search("space.yaml", run="study", storage=server.url(), observer=At(6, lose))
    assert facts("copy") == study


def test_a_server_that_comes_back(server: Server, study: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, SECRET)
    starting: list[subprocess.Popen[bytes]] = []

    def restart() -> None:
        server.stop()
        starting.append(server.start_later(1.5))

    observer = At(6, restart)
    evomerge.search("space.yaml", run="study", storage=server.url(), observer=observer)
    assert starting[0].wait(60) == 0
    assert [line for line in observer.said if "the storage does not answer" in line]
    assert facts("study") == study


def test_a_server_that_stays_away(
    server: Server, study: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("evomerge.study.run.holding.PATIENCE", 0.0)
    monkeypatch.setenv(PASSWORD, SECRET)
    with pytest.raises(InputError) as stopped:
        evomerge.search("space.yaml", run="study", storage=server.url(), observer=At(6, server.stop))
    assert "the storage of the run 'study' failed (" in str(stopped.value)
    assert "every finished trial is kept; mend it, then `evomerge resume study`" in str(stopped.value)
    assert SECRET not in str(stopped.value)
    for command in ("status", "resume", "report", "dashboard"):
        assert main([command, "study"]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "cannot open 'postgresql+psycopg://" in line
        assert "see that the server runs" in line
    server.start()
    assert len(evomerge.status("study").search.trials) >= 6
    evomerge.resume("study")
    assert facts("study") == study


def test_what_is_refused(
    server: Server, study: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import optuna

    server.ask("CREATE DATABASE shop")
    server.ask("CREATE TABLE studies (isbn text); CREATE TABLE trials (isbn text)", "shop")
    server.ask("CREATE DATABASE clinic")
    server.ask("CREATE TABLE version_info (version_info_id int, schema_version int, library_version text)", "clinic")
    server.ask("INSERT INTO version_info VALUES (1, 99, '0.1')", "clinic")
    plain = server.url().replace("postgresql:", "postgresql+psycopg:")
    optuna.create_study(storage=plain, study_name="theirs", direction="minimize")
    refused = {
        server.url(password="wrong"): "give the password in the URL, by EVOMERGE_STORAGE_PASSWORD, or in ~/.pgpass",
        server.url(password=None): "give the password in the URL, by EVOMERGE_STORAGE_PASSWORD, or in ~/.pgpass",
        server.url("nowhere"): 'database "nowhere" does not exist',
        server.url().replace(f":{server.port}", ":1"): "see that the server runs, and that the URL names it",
        server.url().replace("postgresql:", "postgresql+pg8000:"): "install the driver that the URL names",
        server.url().replace("postgresql:", "postgrseql:"): "give an Optuna storage URL",
        server.url("shop"): "shop",
        server.url("clinic"): "clinic",
    }
    for url, said in refused.items():
        assert main(["search", "space.yaml", "--run", "new", "--storage", url]) == 2, url
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: --storage: cannot open "), line
        assert said in line
        assert SECRET not in line
        assert not Path("runs/new").exists()
    assert main(["search", "space.yaml", "--run", "theirs", "--storage", server.url()]) == 2
    assert "the study 'theirs' in the storage is none of evomerge's" in capsys.readouterr().err
    # The run's study was lost, and another stands in its place.
    monkeypatch.setenv(PASSWORD, SECRET)
    evomerge.search("space.yaml", run="mine", storage=server.url())
    for direction, message in (("minimize", "is none of evomerge's"), ("maximize", "holds no study 'mine'")):
        optuna.delete_study(storage=plain, study_name="mine")
        optuna.create_study(storage=plain, study_name="mine", direction=direction)
        assert main(["resume", "mine"]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
