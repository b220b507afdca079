"""Reading ahead and writing behind."""

from __future__ import annotations

import threading

import pytest
import tiny_models
import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.merge.jobs import Read
from evomerge.merge.pipeline import ReadAhead, WriteBehind, _reads
from evomerge.merge.plan import plan
from evomerge.recipe.mergekit import parse_recipe


@pytest.fixture
def recipe(models):
    return parse_recipe(
        f"merge_method: task_arithmetic\nbase_model: {models['base']}\nparameters: {{weight: 0.5}}\n"
        f"models: [{{model: {models['a']}}}, {{model: {models['b']}}}]"
    )


class Counting(ReadAhead):
    """Writes down what it reads."""

    def __init__(self, limit):
        super().__init__(limit)
        self.begun = []

    def _read(self, read):
        self.begun.append(read)
        return super()._read(read)


def planned(bank, recipe):
    return list(plan(recipe, bank.open).jobs.values())


@pytest.mark.parametrize("limit", [0, 4000, 10**9])
def test_every_job_finds_its_tensors_read_once(recipe, models, limit):
    bank = Counting(limit)
    jobs = planned(bank, recipe)
    for job in bank.each(jobs):
        for name in ("base", "a", "b"):
            stored = Checkpoint.open(str(models[name])).tensor(job.tensor)
            assert torch.equal(bank.tensor(str(models[name]), job.tensor), stored)
    assert sorted(bank.begun, key=str) == sorted((r for job in jobs for r in _reads(job)), key=str)


@pytest.mark.parametrize("limit", [0, 5000, 20_000])
def test_no_more_than_the_limit_is_read_beyond_the_current_job(recipe, limit):
    bank = Counting(limit)
    jobs = planned(bank, recipe)
    place = {read: i for i, job in enumerate(jobs) for read in _reads(job)}
    furthest = 0
    for number, job in enumerate(bank.each(jobs)):
        for read in _reads(job):
            bank.tensor(read.model, read.tensor)
        ahead = {read for read in bank.begun if place[read] > number}
        assert sum(bank.open(r.model).tensors[r.tensor].bytes for r in ahead) <= limit
        furthest = max(furthest, len(ahead))
    assert (furthest > 0) == (limit > 0)


def test_nothing_is_kept_beyond_its_job(recipe, models):
    bank = Counting(0)
    jobs = planned(bank, recipe)
    for number, job in enumerate(bank.each(jobs)):
        if number == 1:
            break
        first = job.tensor
    before = len(bank.begun)
    bank.tensor(str(models["a"]), first)
    assert len(bank.begun) == before + 1


def test_documents_that_feed_documents_are_walked_through(models):
    text = (
        f"name: mean\nmerge_method: linear\nparameters: {{weight: 1}}\n"
        f"models: [{{model: {models['a']}}}, {{model: {models['b']}}}]\n"
        f"---\nmerge_method: slerp\nbase_model: {models['base']}\nparameters: {{t: 0.5}}\n"
        f"models: [{{model: {models['base']}}}, {{model: mean}}]"
    )
    bank = ReadAhead()
    job = planned(bank, parse_recipe(text))[0]
    assert set(_reads(job)) == {Read(str(models[n]), job.tensor) for n in ("base", "a", "b")}


def test_an_error_while_reading_ahead_reaches_its_job_and_ends_the_threads(recipe, tmp_path):
    tensors = tiny_models.base_tensors()
    tensors["model.norm.weight"][0] = torch.nan
    broken = tiny_models.write(tmp_path / "broken", tensors)
    bank = ReadAhead()
    bad = parse_recipe(f"merge_method: passthrough\nmodels: [{{model: {broken}}}]")

    def run():
        for job in bank.each(planned(bank, bad)):
            bank.tensor(str(broken), job.tensor)

    with pytest.raises(InputError, match=r"model\.norm\.weight holds 1 values that are NaN or Inf"):
        run()
    assert not [t for t in threading.enumerate() if t.name.startswith("read")]


class Slow:
    """A writer that waits, and counts the bytes that are behind."""

    def __init__(self, fail=None):
        self.done, self.go, self.fail = [], threading.Event(), fail

    def add(self, name, tensor):
        assert self.go.wait(10)
        if name == self.fail:
            raise OSError(28, "No space left on device")
        self.done.append(name)


def test_tensors_are_written_in_their_order():
    slow = Slow()
    slow.go.set()
    with WriteBehind(slow, limit=100) as behind:
        for i in range(30):
            behind.add(str(i), torch.zeros(10))
    assert slow.done == [str(i) for i in range(30)]


def test_the_caller_waits_once_the_limit_is_behind():
    slow, added = Slow(), []

    def feed():
        with WriteBehind(slow, limit=100) as behind:
            for i in range(5):
                behind.add(str(i), torch.zeros(10))  # 40 bytes
                added.append(i)

    thread = threading.Thread(target=feed)
    thread.start()
    thread.join(0.3)
    assert added == [0, 1]
    slow.go.set()
    thread.join(10)
    assert slow.done == [str(i) for i in range(5)]


@pytest.mark.parametrize("fail", ["0", "29"])
def test_an_error_of_the_writer_is_raised_here(fail):
    slow = Slow(fail)
    slow.go.set()

    def feed():
        with WriteBehind(slow, limit=100) as behind:
            for i in range(30):
                behind.add(str(i), torch.zeros(10))

    with pytest.raises(OSError, match="No space"):
        feed()
    assert not [t for t in threading.enumerate() if t.name.startswith("write")]
