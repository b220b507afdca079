"""A journal says which line is not as it was written, whatever happened to it; what is whole is read and goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from evomerge.errors import InputError
from evomerge.study.run.evaluation import TrialResult
from evomerge.study.run.journal import Journal
from evomerge.study.run.store import Store, open_storage
from tests.study.run.test_store import DIMENSIONS, GENOME, RECIPE, SCORES

RESULT = TrialResult({"total": 1.0}, SCORES, "x", 0.1, {}, 10, 10)


def write(file: Path, trials: int = 3) -> Store:
    store = Store.create(open_storage(file, None, pytest.fail), "s", DIMENSIONS)
    for number in range(trials):
        store.record("fact", number)
        store.end(store.start("search", "", GENOME, RECIPE, 7), RESULT)
    store.start("search", "", GENOME, RECIPE, 7)
    return store


def read(file: Path) -> Any:
    store = Store.open(open_storage(file, None), "s", DIMENSIONS)
    return store and (store.trials(), dict(store.facts))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("journal") / "study.journal"
    write(file)
    return file.read_bytes()


def test_any_turned_bit_is_found_or_changes_nothing(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("turned") / "study.journal"
    file.write_bytes(content)
    whole = read(file)
    refused = []

    @given(st.integers(0, len(content) - 1), st.integers(0, 7))
    def turn(at: int, bit: int) -> None:
        turned = bytearray(content)
        turned[at] ^= 1 << bit
        file.write_bytes(turned)
        try:
            found = read(file)
        except InputError as error:
            refused.append(str(error))
        else:
            # At the very end: the line's own mark, or its end, so that the line does not count.
            assert found == whole or at >= len(content) - 30 or bytes(turned).count(b"\n") < content.count(b"\n")

    turn()
    assert len(refused) > 50
    assert all(f"{file} is damaged: line " in said for said in refused)


def doubled(lines: list[bytes]) -> list[bytes]:
    return [*lines[:6], lines[5], *lines[6:]]


def swapped(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], lines[6], lines[5], *lines[7:]]


def lost(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], *lines[6:]]


def blank(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], b"\n", *lines[5:]]


def zeros(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], bytes(4096) + b"\n", *lines[5:]]


def no_text(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], b'{"op_code":2,"\xff\xfe":1}\n', *lines[5:]]


def deep(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], b"[" * 200_000 + b"\n", *lines[5:]]


def unknown(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], b'{"op_code":77}\n', *lines[5:]]


@pytest.mark.parametrize("change", [doubled, swapped, lost, blank, zeros, no_text, deep, unknown])
def test_lines_that_are_not_as_they_were_written(
    content: bytes, tmp_path: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    file = tmp_path / "study.journal"
    file.write_bytes(b"".join(change(content.splitlines(keepends=True))))
    for warn in (None, pytest.fail):
        with pytest.raises(
            InputError, match=r"study.journal is damaged: line [67].*keep its first [56] lines"
        ) as caught:
            open_storage(file, None, warn)
        assert "scores 3 trials again" in str(caught.value)


@pytest.mark.parametrize("tail", [b"", b'{"op_code":8,"tri', bytes(5000), b'{"op_code":8,"\xff'])
def test_an_unfinished_last_line_is_replaced(content: bytes, tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / "study.journal"
    file.write_bytes(content + tail)
    before = read(file)
    store = Store.open(open_storage(file, None, pytest.fail), "s", DIMENSIONS)
    assert store is not None
    assert (store.trials(), dict(store.facts)) == before
    store.record("more", 1)
    assert file.read_bytes().startswith(content)
    assert read(file)[1]["more"] == 1


def test_damage_at_the_end_is_cut_off_and_kept(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    damaged = bytearray(content)
    damaged[content.rindex(b'"op_code":6') - 400] ^= 1  # in the last trial that ended
    file.write_bytes(damaged)
    with pytest.raises(InputError, match="is damaged: line"):
        read(file)
    said: list[str] = []
    store = Store.open(open_storage(file, None, said.append), "s", DIMENSIONS)
    assert store is not None
    assert [t.state for t in store.trials()][:3] == ["complete", "complete", "running"]
    assert len(said) == 1
    assert "is evaluated again" in said[0]
    assert (tmp_path / "study.journal.damaged").read_bytes() == damaged
    store.end(store.trial(2), RESULT)
    assert [t.state for t in read(file)[0]] == ["complete", "complete", "complete"]


def test_journals_of_older_versions_and_lines_of_other_tools(tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    old = Store.create(JournalStorage(JournalFileBackend(str(file))), "s", DIMENSIONS)
    old.end(old.start("search", "", GENOME, RECIPE, 7), RESULT)
    store = Store.open(open_storage(file, None, pytest.fail), "s", DIMENSIONS)
    assert store is not None
    store.record("a", 1)
    other = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(file))))
    other.set_user_attr("note", "by a dashboard")
    store.record("b", 2)
    trials, facts = read(file)
    assert facts == {"a": 1, "b": 2, "note": "by a dashboard"}
    assert [t.state for t in trials] == ["complete"]
    file.write_bytes(file.read_bytes().replace(b"by a dash", b"by a dish"))
    with pytest.raises(InputError, match=r"is damaged: line \d+ .*, or one before it since line"):
        read(file)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "study.journal").mkdir()
    with pytest.raises(InputError, match="is no file"):
        list(Journal(tmp_path / "study.journal").read_logs(0))
