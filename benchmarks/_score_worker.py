"""Scores tasks on one side: `python _score_worker.py evomerge|lm-eval MODEL TASKS BATCH_SIZE DEVICE THREADS`.

See `_processes`. The clock covers all that one candidate costs: `Suite.score` here, `simple_evaluate` there. The model,
the tasks and what a side prepares once are there before.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _processes import forget_peak, peak_memory, serve


class Side:
    """One model with its tasks. Answers `{"task": name}` with seconds, the seconds of them that the model's own
    `forward` took, the peak memory above what is there before the call, and, if asked for, what each item's scoring
    was given: {id: [[loglikelihood, is_greedy], ...] or [loglikelihood] or [text]}."""

    def __init__(self, model: str, tasks: Path, batch_size: int, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.folder, self.batch_size, self.device = tasks, batch_size, torch.device(device)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().to(self.device)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.clone()  # not a view of a file
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.forward = 0.0
        self._started = 0.0
        self.model.register_forward_pre_hook(self._enter, with_kwargs=True)
        self.model.register_forward_hook(self._leave)
        self._ready: dict[str, tuple[Callable[[], Any], Any]] = {}

    def prepare(self, name: str) -> tuple[Callable[[], Any], Any]:
        """What scores a task once, and lm-eval's task object in it."""
        raise NotImplementedError

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["task"]
        if name not in self._ready:
            self._ready[name] = self.prepare(name)
        score, task = self._ready[name]
        if request.get("record"):
            with recorded(task) as items:
                score()
            return {"items": items}
        before = self._rest()
        self.forward, started = 0.0, self._now()
        score()
        seconds = self._now() - started
        return {"seconds": seconds, "forward": self.forward, "peak": self._peak() - before}

    def _enter(self, *_: Any) -> None:
        self._started = self._now()

    def _leave(self, *_: Any) -> None:
        self.forward += self._now() - self._started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _rest(self) -> int:
        """Let go of what is not in use; the bytes that are left."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        forget_peak()
        return peak_memory()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_memory()


class Evomerge(Side):
    def prepare(self, name: str) -> tuple[Callable[[], Any], Any]:
        from evomerge.files.fitness_file import read_fitness
        from evomerge.scoring.suite import Suite

        fitness = read_fitness(self.folder.parent / f"{name}_fitness.yaml")
        suite = Suite.build(fitness, self.model, self.tokenizer, split="all")
        source: Any = suite.slices[name].source
        return lambda: suite.score("all"), source.tasks.leaves[name]


class Harness:
    """lm-eval as its documentation says, at its best: one `HFLM`, task objects, no bootstrap, no samples kept. The
    softmax is taken in float32, as here, whatever the model's dtype."""

    def __init__(self, model: Any, tokenizer: Any, tasks: Path, batch_size: int) -> None:
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        # It runs shell commands for seconds to describe the machine: not what is measured.
        evaluator.add_env_info = lambda results: None
        evaluator.get_git_commit_hash = lambda: None
        self.lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
        self.manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def prepare(self, *names: str) -> tuple[Callable[[], Any], dict[str, Any]]:
        """What scores these tasks once, and its task objects."""
        import lm_eval
        from lm_eval.tasks import get_task_dict

        tasks = get_task_dict(list(names), self.manager)

        def score() -> Any:
            asked = {"task_manager": self.manager, "bootstrap_iters": 0, "log_samples": False}
            return lm_eval.simple_evaluate(self.lm, tasks=list(tasks.values()), **asked)

        return score, tasks


@contextlib.contextmanager
def recorded(task: Any) -> Iterator[dict[str, Any]]:
    """What each item's scoring is given while this is open, by the item's id."""
    items: dict[str, Any] = {}
    original = task.process_results

    def record(document: Any, results: Any) -> Any:
        items[str(document["id"])] = json.loads(json.dumps(results))
        return original(document, results)

    task.process_results = record
    try:
        yield items
    finally:
        task.process_results = original


class LmEval(Side):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.harness = Harness(self.model, self.tokenizer, self.folder, self.batch_size)

    def prepare(self, name: str) -> tuple[Callable[[], Any], Any]:
        score, tasks = self.harness.prepare(name)
        return score, tasks[name]


def main() -> None:
    side, model, tasks, batch_size, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    kind = {"evomerge": Evomerge, "lm-eval": LmEval}[side]
    serve(kind(model, Path(tasks), int(batch_size), device).answer)


if __name__ == "__main__":
    main()
