"""The engine as the search sees it: a process with vLLM in it, into which candidates are written."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from evomerge.checkpoints.pickled import are_allowed
from evomerge.errors import InputError, TrialError
from evomerge.escape import shortened
from evomerge.recipe.recipe import Recipe, to_data
from evomerge.safety.own_folder import OwnFolder
from evomerge.scoring.serving.choice import Servable, visible
from evomerge.scoring.serving.extension import CandidateWorker
from evomerge.scoring.serving.process import Ask, Call, Forget, Reply, Request, Serve, Sleep, Start, Trouble, end_group

T = TypeVar("T")

log = logging.getLogger(__name__)

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from evomerge.scoring.serving.process import main; main()"
)


_LONGEST_PATH = 64
"""Characters of a folder in which vLLM makes sockets."""

_FOLLOWS = ("Engine core initialization failed", "EngineDeadError", "EngineGenerateError")
"""What vLLM says of an error that it has told before."""


class _Died(Exception):
    """The engine's process, or one of vLLM's, has ended."""


@dataclass(frozen=True)
class EngineMemory:
    """What the engine may take.

    Attributes:
        share: of a GPU's memory; vLLM's `gpu_memory_utilization`. None on the CPU.
        cache: bytes for the keys and values of attention, on the CPU.
        keep: where the sources' tensors stay once they are read: "device", "host", or "file" (nowhere else).
        turns: whether it gives its memory back while the resident model scores.
    """

    share: float | None
    cache: int
    keep: str = "host"
    turns: bool = False


class ServingEngine:
    """Answers prompts with the weights of the latest candidate (`become`), which are merged inside of vLLM's processes
    when the first prompt needs them.

    An engine that dies is started again, and asked once more; if it dies again, the candidate is lost, not the search.

    Attributes:
        longest: the most tokens of a sequence.
        version: of vLLM; empty before it is started.
    """

    def __init__(self, servable: Servable, memory: EngineMemory) -> None:
        self._servable, self._memory = servable, memory
        self._folder: OwnFolder | None = None
        self.longest = 1
        self._wanted: tuple[str, str] | None = None  # the digest of a candidate, and its recipe
        self._holds: str | None = None
        self._asleep = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._end: weakref.finalize[..., ServingEngine] | None = None
        self.version = ""

    def need(self, tokens: int) -> None:
        """Has the engine take sequences of so many tokens; called before it is started."""
        self.longest = max(self.longest, tokens)

    def become(self, recipe: Recipe, digest: str) -> None:
        """Takes in the candidate that answers from now on. `digest`: of its weights in the resident model."""
        if self._wanted is None or self._wanted[0] != digest:
            self._wanted = digest, json.dumps(to_data(recipe))

    def start(self) -> None:
        """Starts vLLM, unless it runs. InputError where it refuses the model, or has too little memory."""
        if self._process is not None:
            return
        self._write_folder()
        self._launch()
        try:
            self.version = self._call(Start(self._arguments()))
            opened = self._call(
                Call("evomerge_open", (list(self._servable.references), self._memory.keep, are_allowed()))
            )
        except _Died:
            self._refuse("its process has ended")
        except TrialError as error:
            self._refuse(str(error))
        trouble = next((line for lines in opened for line in lines), None)
        if trouble is not None:
            self.close()
            raise InputError(f"the engine cannot open the models: {trouble}")

    def ask(self, prompts: Sequence[Sequence[int]], parameters: Sequence[Any]) -> list[Reply]:
        """Continues prompts, given as tokens, each by its `SamplingParams`, with the candidate's weights. TrialError
        where that cannot be done."""
        return self._tried(Ask(prompts, parameters)) if prompts else []

    def url(self) -> str:
        """The address of an OpenAI-compatible endpoint with the candidate's weights. TrialError where it cannot be
        had."""
        return str(self._tried(Serve()))

    def lived(self, url: str, seconds: float) -> bool:
        """Whether the engine at this address has lived until now. One that is busy for longer than `seconds`, with what
        nobody waits for any more, is ended."""
        if self._pipe is None:
            return False
        try:
            self._pipe.send(Serve())
            if not self._pipe.poll(seconds):
                self.close()
                return True
            return bool(self._pipe.recv() == url)
        except (OSError, EOFError):
            self.close()
            return False

    def rest(self) -> None:
        """Gives the memory back until the next prompt, where the resident model needs it."""
        if self._memory.turns and self._process is not None and not self._asleep:
            with suppress(_Died, TrialError):
                self._call(Sleep())
                self._asleep, self._holds = True, None

    def close(self) -> None:
        """Ends the engine and all of its processes."""
        if self._end is not None:
            self._end()
        self._process = self._pipe = self._end = self._holds = None
        self._asleep = False

    def _tried(self, request: Request) -> Any:
        """The answer to a request; an engine that died is asked again once. TrialError where it dies again."""
        died = False
        while True:
            try:
                self._put_in_place()
                return self._call(request)
            except _Died:
                self.close()
                reason = self._reason("one of its processes has ended")
                if died:
                    raise TrialError(f"vLLM has died twice: {reason}") from None
                died = True
                log.warning("vLLM has died (%s): it is started again", reason)

    def _put_in_place(self) -> None:
        """Has the workers merge the candidate, unless they hold it. TrialError where they cannot, or got other weights
        than the resident model has."""
        assert self._wanted is not None, "no candidate yet"
        digest, recipe = self._wanted
        try:
            self.start()
        except InputError as error:  # it did start once
            raise TrialError(error.problem) from None
        if self._holds == digest:
            return
        if self._asleep:
            self._call(Sleep(("weights",)))
        self._holds = None
        placed = self._call(Call("evomerge_place", (recipe,)))
        trouble = next((answer[1] for answer in placed if len(answer) > 1), None)
        other = next((answer[0] for answer in placed if answer[0] != digest), None)
        if trouble is not None or other is not None:
            self.close()  # its weights are a mixture
            problem = (
                trouble or f"its weights ({(other or '')[:12]}) are not those of the resident model ({digest[:12]})"
            )
            raise TrialError(f"vLLM cannot take the candidate: {shortened(problem, 300)}")
        if self._asleep:
            self._call(Sleep(("kv_cache",)))
            self._asleep = False
        self._call(Forget())
        self._holds = digest

    def _call(self, request: Request) -> Any:
        """The engine's answer. _Died where it has ended; TrialError where it could not do it."""
        assert self._pipe is not None
        try:
            self._pipe.send(request)
            answer = self._pipe.recv()
        except (OSError, EOFError):
            raise _Died from None
        except BaseException:
            self.close()  # the answer would be taken for that of the next request
            raise
        if isinstance(answer, Trouble):
            if answer.kind == "EngineDeadError" or answer.kind == "EngineGenerateError":
                raise _Died
            raise TrialError(f"vLLM: {answer.kind}: {shortened(answer.text, 300)}")
        return answer

    def _launch(self) -> None:
        self._pipe, far = Pipe()
        command = [sys.executable, "-c", _START, str(far.fileno()), json.dumps(sys.path)]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(),
                pass_fds=[far.fileno()],
                start_new_session=True,
            )
        far.close()
        self._end = weakref.finalize(self, _end, self._process, self._pipe)

    def _environment(self) -> dict[str, str]:
        """The variables of the engine's processes. Threads are as many as this process has."""
        own = {
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DO_NOT_TRACK": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, -(-self._memory.cache >> 30))),
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
        }
        return {**os.environ, **own, **self._temporary(), **visible(self._servable.devices, os.environ)}

    def _temporary(self) -> dict[str, str]:
        """The variables by which what vLLM leaves in the folder for temporary files is removed with the engine's own.
        What torch compiles stays where it is found again. Sockets have short names: a long path is not taken."""
        folder, usual = self._place / "tmp", Path(tempfile.gettempdir())
        if len(str(folder)) > _LONGEST_PATH:
            return {}
        folder.mkdir(exist_ok=True)
        compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(usual / f"torchinductor_{getpass.getuser()}"))
        return {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": compiled}

    def _arguments(self) -> Mapping[str, Any]:
        """The arguments of vLLM's `LLM`."""
        on_gpu = self._memory.share is not None
        return {
            "model": str(self._model),
            "load_format": "dummy",
            "dtype": self._servable.dtype,
            "max_model_len": self.longest,
            "tensor_parallel_size": len(self._servable.devices),
            "worker_extension_cls": f"{CandidateWorker.__module__}.{CandidateWorker.__qualname__}",
            "enforce_eager": not on_gpu,
            "seed": 0,
            "disable_log_stats": True,
            **({"gpu_memory_utilization": self._memory.share} if on_gpu else {}),
            **({"enable_sleep_mode": True} if self._memory.turns else {}),
        }

    @property
    def _place(self) -> Path:
        """A folder of the engine's own, for its files and those that vLLM leaves behind."""
        self._folder = self._folder or OwnFolder("evomerge-engine-")
        return self._folder.path

    @property
    def _model(self) -> Path:
        return self._place / "model"

    @property
    def _log(self) -> Path:
        return self._place / "engine.log"

    def _write_folder(self) -> None:
        """Writes all of a checkpoint but its weights."""
        self._model.mkdir(exist_ok=True)
        for name, content in self._servable.files.items():
            file = self._model / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        (self._model / "config.json").write_text(json.dumps(self._servable.config), encoding="utf-8")

    def _refuse(self, otherwise: str) -> None:
        reason = self._reason(otherwise)
        self.close()
        problem = f"vLLM cannot serve this model: {reason}"
        raise InputError(problem, "mend that, or write engine: resident in the fitness file")

    def _reason(self, otherwise: str) -> str:
        """The last error that vLLM has printed; the whole goes to the run's log."""
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log.is_file() else ""
        log.info("what vLLM printed:\n%s", text[-20_000:])
        # Of pydantic's errors the next line says what is wrong.
        text = re.sub(r"ValidationError: \d+ validation errors? for (\w+)\n\s*", r"ValidationError: \1: ", text)
        found: list[str] = re.findall(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception): .+)", text)
        told = [line for line in found if not any(word in line for word in _FOLLOWS)]
        return shortened(told[-1] if told else otherwise, 300)


def _end(process: subprocess.Popen[bytes], pipe: Connection) -> None:
    pipe.close()
    end_group(process.pid)
    process.wait()
