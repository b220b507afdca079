"""Reading, merging and writing at the same time."""

from __future__ import annotations

import threading
import time

import pytest
import tiny_models
import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.merging.disk.pipeline import StreamingBank, reads_of, run_in_order
from evomerge.merging.plan.jobs import Read
from evomerge.merging.plan.plan import plan
from evomerge.recipe.mergekit import parse_recipe


def jobs_of(bank, text):
    return list(plan(parse_recipe(text), bank.open).jobs.values())


def test_the_bank_reads_what_is_stored_and_keeps_nothing(models):
    bank = StreamingBank()
    stored = Checkpoint.open(str(models["a"])).read("lm_head.weight")
    found = bank.tensor(str(models["a"]), "lm_head.weight")
    assert torch.equal(found, stored)
    found.zero_()
    assert torch.equal(bank.tensor(str(models["a"]), "lm_head.weight"), stored)
    assert bank.bytes() == 0


def test_values_that_are_not_finite_are_found_when_they_are_read(tmp_path):
    tensors = tiny_models.base_tensors()
    tensors["model.norm.weight"][0] = torch.nan
    broken = tiny_models.write(tmp_path / "broken", tensors)
    with pytest.raises(InputError, match=r"model\.norm\.weight holds 1 values that are NaN or Inf"):
        StreamingBank().tensor(str(broken), "model.norm.weight")


def test_documents_that_feed_documents_are_walked_through(models):
    text = (
        f"name: mean\nmerge_method: linear\nparameters: {{weight: 1}}\n"
        f"models: [{{model: {models['a']}}}, {{model: {models['b']}}}]\n"
        f"---\nmerge_method: slerp\nbase_model: {models['base']}\nparameters: {{t: 0.5}}\n"
        f"models: [{{model: {models['base']}}}, {{model: mean}}]\nout_dtype: bfloat16"
    )
    bank = StreamingBank()
    job = jobs_of(bank, text)[0]
    assert set(reads_of(job)) == {Read(str(models[n]), job.tensor) for n in ("base", "a", "b")}
    elements = torch.Size(job.shape).numel()
    assert bank.bytes_of(job) == 3 * 4 * elements + 2 * elements


@pytest.fixture
def jobs(models):
    return jobs_of(StreamingBank(), f"merge_method: passthrough\nmodels: [{{model: {models['a']}}}]")


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_the_order_of_the_jobs(jobs, threads):
    def run(job):
        time.sleep(0.01 if job is jobs[0] else 0)
        return job.tensor

    assert list(run_in_order(jobs, run, lambda _: 1, threads)) == [job.tensor for job in jobs]


class Gauge:
    """Counts the jobs that have begun and whose result was not taken yet."""

    def __init__(self):
        self.begun, self.most, self._lock = 0, 0, threading.Lock()

    def run(self, job):
        with self._lock:
            self.begun += 1
            self.most = max(self.most, self.begun)

    def done(self):
        with self._lock:
            self.begun -= 1


@pytest.mark.parametrize(("limit", "most"), [(35, 3), (10, 1), (1, 1)])
def test_the_limit_holds_while_the_caller_is_slow(jobs, limit, most):
    gauge = Gauge()
    for _ in run_in_order(jobs, gauge.run, lambda _: 10, 4, limit):
        time.sleep(0.005)
        gauge.done()
    assert gauge.most == most


def test_the_bytes_in_flight_are_not_added_up_for_each_job(jobs):
    class Size(int):
        additions = 0

        def __add__(self, other):
            Size.additions += 1
            return Size(int(self) + int(other))

        __radd__ = __add__

    many = [jobs[0]] * 3000
    assert len(list(run_in_order(many, lambda job: job, lambda _: Size(1), threads=1))) == len(many)
    assert Size.additions < 10 * len(many)


def test_other_threads_work_while_the_caller_does(jobs):
    third = threading.Event()

    def run(job):
        if job is jobs[2]:
            third.set()

    results = run_in_order(jobs, run, lambda _: 1, 2, 3)
    next(results)
    assert third.wait(10)
    results.close()


def test_an_error_comes_in_its_turn_and_ends_everything(jobs):
    begun, taken = [], []

    def run(job):
        begun.append(job)
        if job is jobs[3]:
            raise InputError("broken")
        return job

    def take():
        for job in run_in_order(jobs, run, lambda _: 1, 2, 2):
            taken.append(job)

    with pytest.raises(InputError, match="broken"):
        take()
    assert taken == jobs[:3]
    assert len(begun) <= 5
    assert not [t for t in threading.enumerate() if t.name.startswith("merge")]


def test_torch_s_threads_are_as_before(jobs):
    before = torch.get_num_threads()
    inside = list(run_in_order(jobs, lambda _: torch.get_num_threads(), lambda _: 1, 3))
    assert set(inside) == {1}
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == later[0] == before
