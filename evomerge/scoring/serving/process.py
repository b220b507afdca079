"""The process in which the engine runs: it starts vLLM, and does what it is asked through a pipe.

It is the first of a process group of its own, to which vLLM's processes belong, so that no Ctrl-C of the terminal
reaches them, and all end together: when the other end of the pipe is closed, which the system does when the search's
process dies, and when this process is gone (`end_with_engine`). What vLLM prints goes to the file that is its stdout.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from evomerge.scoring.serving.endpoint import Endpoint, give_up

_GROUP = "EVOMERGE_ENGINE"
"""The environment variable with the number of the engine's process, which is that of its group."""

_LOOK = 0.5
"""Seconds between two looks whether a process still runs."""

_TITLE = "VLLM::"
"""How vLLM's processes call themselves."""


@dataclass(frozen=True)
class Start:
    """Starts vLLM. `arguments`: of its `LLM`. Answered with the version."""

    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """Calls a method of `extension.CandidateWorker` in each worker. Answered with their results, in a list."""

    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Forget:
    """Forgets what was computed with the last weights. Answered with None."""


@dataclass(frozen=True)
class Sleep:
    """Gives the memory of weights and caches back (`tags` empty), or takes that of some of them again. Answered with
    None."""

    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """Continues prompts (tokens), each by its `SamplingParams`. Answered with `Reply`s."""

    prompts: Sequence[Sequence[int]]
    parameters: Sequence[Any]


@dataclass(frozen=True)
class Serve:
    """Opens the endpoint, unless it is open. Answered with its address."""


Request = Start | Call | Forget | Sleep | Ask | Serve


@dataclass(frozen=True)
class Text:
    """One continuation, named as in vLLM's `CompletionOutput`."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None


@dataclass(frozen=True)
class Reply:
    """What vLLM says to one prompt, named as in its `RequestOutput`: continuations, and, where they were asked for, the
    loglikelihoods of the prompt's tokens (None for the first), by token."""

    outputs: tuple[Text, ...]
    prompt_logprobs: tuple[Mapping[int, float] | None, ...] | None


@dataclass(frozen=True)
class Trouble:
    """What was asked could not be done: the type of the exception, and its text."""

    kind: str
    text: str


def main() -> None:
    """Answers requests until the pipe is closed. The process's first argument is the number of its end."""
    pipe = Connection(int(sys.argv[1]))
    os.environ[_GROUP] = str(os.getpid())
    threading.Thread(target=_end_with, args=(pipe.fileno(),), daemon=True).start()
    llm: Any = None
    endpoint: Endpoint | None = None
    processes: Sequence[psutil.Process] = ()
    while True:
        request = _next(pipe, llm, endpoint)
        try:
            if isinstance(request, Start):
                from vllm import LLM, __version__

                llm, answer = LLM(**request.arguments), __version__
                processes = _processes()
                _end_with_any_of(processes)
            elif isinstance(request, Serve):
                endpoint = endpoint or Endpoint()
                answer = endpoint.url
            else:
                answer = _done(llm, request)
        except Exception as error:
            traceback.print_exc()
            if not all(map(_runs, processes)):  # what vLLM says of a worker that died depends on what it was doing
                end_group(os.getpid())
            give_up(llm)
            answer = Trouble(type(error).__name__, str(error))
        pipe.send(answer)


def _next(pipe: Connection, llm: Any, endpoint: Endpoint | None) -> Request:
    """The next request of the search. Meanwhile the endpoint's are answered."""
    if endpoint is not None:
        while pipe not in (ready := wait([pipe, endpoint.waiting])):
            if endpoint.waiting in ready:
                endpoint.answer(llm)
    request: Request = pipe.recv()
    return request


def _done(llm: Any, request: Request) -> Any:
    if isinstance(request, Call):
        return llm.collective_rpc(request.method, args=request.arguments)
    if isinstance(request, Forget):
        return llm.reset_prefix_cache() and None
    if isinstance(request, Sleep):
        return llm.wake_up(tags=list(request.tags)) if request.tags else llm.sleep(level=2)
    assert isinstance(request, Ask)
    prompts = [{"prompt_token_ids": list(prompt)} for prompt in request.prompts]
    return [_reply(output) for output in llm.generate(prompts, list(request.parameters), use_tqdm=False)]


def _reply(output: Any) -> Reply:
    texts = tuple(Text(o.text, tuple(o.token_ids), o.finish_reason) for o in output.outputs)
    read = output.prompt_logprobs
    logs = None if read is None else tuple(place and {t: each.logprob for t, each in place.items()} for place in read)
    return Reply(texts, logs)


def _end_with(descriptor: int) -> None:
    """Ends the group once the other end of the pipe is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLHUP)  # nothing is read here
    poll.poll()
    end_group(os.getpid())


def _processes() -> list[psutil.Process]:
    """vLLM's processes, which run as long as it does: its core, and the workers."""
    own = {process.pid for process in multiprocessing.active_children()}
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.pid in own or "".join(process.cmdline()[:1]).startswith(_TITLE):
                found.append(process)
    return found


def _end_with_any_of(processes: Sequence[psutil.Process]) -> None:
    """Ends the group soon after one of these has ended: vLLM may wait for its answer for ever."""

    def look() -> None:
        while all(map(_runs, processes)):
            time.sleep(_LOOK)
        end_group(os.getpid())

    threading.Thread(target=look, daemon=True).start()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end_with_engine() -> None:
    """Called in one of vLLM's processes: ends its group soon after the engine's process has ended, however that did."""
    group = int(os.environ.get(_GROUP, "0"))
    if group and group == os.getpgrp():
        threading.Thread(target=_watch, args=(group,), name="evomerge-watch", daemon=True).start()


def end_group(group: int) -> None:
    """Kills the processes of a group, and removes the memory that they shared, which would outlive them."""
    for place in _shared_memory(group):
        place.unlink(missing_ok=True)
    with suppress(ProcessLookupError):  # the group is there as long as one of its processes is
        os.killpg(group, signal.SIGKILL)


def _shared_memory(group: int) -> set[Path]:
    """The files of shared memory that a group's processes hold, by the names that Python gives them."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group:
                maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")
                found.update(re.findall(r" (/dev/shm/(?:psm_|sem\.)[^\s/]+)$", maps, re.MULTILINE))
    return {Path(place) for place in found}


def _watch(process: int) -> None:
    with suppress(psutil.NoSuchProcess):
        engine = psutil.Process(process)
        while _runs(engine):
            time.sleep(_LOOK)
    end_group(os.getpgrp())


if __name__ == "__main__":
    main()
