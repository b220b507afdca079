"""Scores slices by a program of the user: ``command: my-eval --model {model} --items {items} --out {scores}``."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, TrialError, suggestion
from evomerge.escape import excerpt, quoted, shortened
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.safety.read import read_json
from evomerge.scoring.candidate import Candidate
from evomerge.scoring.commands.folder import CandidateFolder
from evomerge.scoring.commands.line import check_program, filled
from evomerge.scoring.commands.program import CommandFailed, run
from evomerge.scoring.file_pass import FilePass
from evomerge.scoring.item_files import read_items
from evomerge.scoring.serving.engine import ServingEngine
from evomerge.types import SliceScore, SplitName

log = logging.getLogger(__name__)

_ANSWER = 500
"""Characters of an answer that are kept."""

_LEFT = 60.0
"""Seconds in which an engine has to be done with what a program that has ended had asked of it."""

_LARGEST = 1e100
"""Of a score: the sum of all items has to be a number, too."""


@dataclass(frozen=True)
class Row:
    """What a program said of an item."""

    score: float
    answer: str | None = None


class CommandPass(FilePass):
    """Runs a program on each candidate. One that does not take `{items}` scores all items, whichever are asked for: its
    scores are kept as long as the candidate stays."""

    def __init__(
        self, fitness: FitnessSpec, spec: SliceSpec, folder: CandidateFolder, engine: ServingEngine | None = None
    ) -> None:
        """`folder`: of the candidate; slices share it. `engine`: what answers at `{url}`. InputError where the program
        or its items are missing."""
        assert spec.command is not None
        assert spec.data is not None
        check_program(spec)
        super().__init__(fitness, spec, read_items(spec.data))
        self.command, self._folder, self._engine = spec.command, folder, engine
        self.ids = item_ids(self.items)
        self._digest, self._all = "", dict[str, Row]()

    def become(self, candidate: Candidate) -> None:
        """Takes in the candidate that the model has become."""
        if candidate.digest != self._digest:
            self._digest, self._all = candidate.digest, {}
        self._folder.become(candidate)
        if self._engine is not None:
            self._engine.become(candidate.recipe, candidate.digest)

    def run(self, split: SplitName, names: frozenset[str] | None = None) -> SliceScore:
        """Runs the program for a split's items (only those in `names`). TrialError where it fails, or its scores are
        unusable."""
        rows = self.rows(split, names)
        found = self._all
        if any(self.ids[row] not in found for row in rows):
            found = self._scores(rows)
            if not self.command.uses("items"):
                self._all = found
        lacking = [self.ids[row] for row in rows if self.ids[row] not in found]
        if lacking:
            some = f"gave no score for {len(lacking)} of {len(rows)} items, the first {quoted(lacking[0])}"
            raise TrialError(f"{self._name} {some}")
        told = [(row, found[self.ids[row]]) for row in rows]
        return self.aggregation.score([self.scored(row, said.score, said.answer) for row, said in told])

    @property
    def _name(self) -> str:
        return shortened(Path(self.command.arguments[0]).name, 60)

    def _scores(self, rows: Sequence[int]) -> dict[str, Row]:
        place = self._folder.scratch(written=self.command.uses("model"))
        try:
            scores, items = place / "scores.json", place / "items.jsonl"
            asked = ({**self.items[row], "id": self.ids[row]} for row in rows)
            items.write_text("".join(f"{json.dumps(item, ensure_ascii=False)}\n" for item in asked), encoding="utf-8")
            values = {"scores": str(scores), "items": str(items)}
            if self.command.uses("model"):
                values["model"] = str(self._folder.path())
            if self._engine is None:
                self._run(values)
            else:
                self._run_beside(self._engine, values, scores)
            if not scores.is_file():
                raise TrialError(f"{self._name} wrote no {{scores}}")
            try:
                return read_scores(read_json(scores), self.ids, self._name)
            except InputError as error:
                problem = error.problem.replace(f"{place}/", "")
                raise TrialError(f"the scores of {self._name}: {problem}") from error
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _run_beside(self, engine: ServingEngine, values: Mapping[str, str], scores: Path) -> None:
        """Runs the program with the engine's address, and once more where the engine died meanwhile: the program may
        have counted answers that it did not get as wrong ones. TrialError where that happens again."""
        for _ in range(2):
            url, failed = engine.url(), None
            try:
                self._run({**values, "url": url})
            except TrialError as error:
                failed = error
            if engine.lived(url, _LEFT):
                if failed is not None:
                    raise failed
                return
            scores.unlink(missing_ok=True)
        raise TrialError(f"vLLM has died twice while {self._name} asked it")

    def _run(self, values: Mapping[str, str]) -> None:
        began = time.monotonic()
        try:
            output = run(filled(self.command, values), self.command.folder, self.spec.timeout)
        except CommandFailed as error:
            log.info("slice %s: %s; its output:\n%s", self.spec.name, error, error.output)
            raise
        seconds = time.monotonic() - began
        log.info("slice %s: %s took %.1f s; its output:\n%s", self.spec.name, self._name, seconds, output)

    def digest(self) -> str:
        """sha256 over the command line, the files of its folder that it names, the items and the side of each."""
        files = [self.command.folder / part for part in self.command.arguments]
        named = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if _is_file(file)]
        return self.digest_with([*self.command.arguments, *named])


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a whole program as an argument is no name
        return False


def item_ids(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """How items are called in what a program reads and writes: by their field `id`, where all have one of their own,
    else by their numbers from 0."""
    named = [str(item["id"]) for item in items if isinstance(item.get("id"), str | int)]
    return named if len(set(named)) == len(items) else [str(number) for number in range(len(items))]


def read_scores(data: Any, legal: Sequence[str], name: str) -> dict[str, Row]:
    """Reads the scores of a program: an object of numbers by the items' ids, or a list of objects with `id`, `score`
    and, for people to read, `answer`. TrialError where they are something else, or are of other items."""
    if isinstance(data, dict):
        entries = [(str(key), value, None) for key, value in data.items()]
    elif isinstance(data, list) and all(isinstance(entry, dict) and {"id", "score"} <= entry.keys() for entry in data):
        entries = [(str(entry["id"]), entry["score"], entry.get("answer")) for entry in data]
    else:
        raise TrialError(f"{name} wrote neither an object of scores by id nor a list of objects with id and score")
    known, rows = set(legal), dict[str, Row]()
    for key, value, answer in entries:
        if key not in known:
            raise TrialError(f"{name} scored {quoted(key)}, which is no item's id; {suggestion(key, legal)}")
        if key in rows:
            raise TrialError(f"{name} scored item {quoted(key)} twice")
        if not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise TrialError(f"{name} gave item {quoted(key)} the score {quoted(value, 80)}, not a finite number")
        rows[key] = Row(float(value), None if answer is None else excerpt(str(answer), _ANSWER))
    return rows
