"""Where candidates are scored: in this process, in workers of this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from evomerge.evaluator.cluster.connect import connected
from evomerge.evaluator.cluster.ray_pool import RayPool
from evomerge.evaluator.device import listed, parse_memory
from evomerge.evaluator.executor import Executor, InProcess
from evomerge.evaluator.pool import Pool, WorkerPool
from evomerge.evaluator.shares import deal
from evomerge.study.observer import Observer
from evomerge.study.prepare import Plan


@contextmanager
def executor_of(
    plan: Plan, device: str, memory: str | None, workers: int | None, ray: str | None, observer: Observer
) -> Iterator[Executor]:
    """A model in this process, or several workers here or on the cluster `ray`, which end with the session."""
    parse_memory(memory)
    if workers == 1 and ray is None:
        # torch, transformers and lm-eval take seconds to import: only once the input is known to be right.
        from evomerge.evaluator.evaluator import Evaluator, place_candidates

        placement = place_candidates(plan.models, plan.fitness, device, memory)
        evaluator = Evaluator.load(plan.models, plan.fitness, placement, observer)
        try:
            yield InProcess(evaluator, observer)
        finally:
            evaluator.close()
        return
    with ExitStack() as stack:
        pool: Pool
        if ray is not None:
            stack.enter_context(connected(ray, workers, plan.spec.ray.runtime_env))
            pool = RayPool(plan.spec, plan.fitness, plan.checkpoints, device, memory, workers, observer)
        else:
            shares = deal(listed(device), workers or 1, spare=device == "auto")
            pool = WorkerPool(plan.spec, plan.fitness, shares, memory, observer)
        stack.callback(pool.close)
        yield pool
