"""A stand-in for vLLM, written into a folder as the package `vllm`: an engine whose answers follow from the sum of its
weights, and which does what its first prompt token says."""

from __future__ import annotations

from pathlib import Path

NORMAL, DIE, DIE_ONCE, FAIL, LOSE_WORKER_ONCE, LEAVE = 1, 2, 3, 4, 5, 6
"""First tokens of prompts: what the engine does when it is asked."""

_SOURCE = """
import importlib, json, multiprocessing, os, pathlib, signal, tempfile, time
from multiprocessing.shared_memory import SharedMemory
from types import SimpleNamespace

import torch

__version__ = "0.32.0"
HERE = pathlib.Path(__file__).parent


class SamplingParams:
    def __init__(self, max_tokens, n=1, temperature=1.0, stop=None, seed=None):
        self.n = n


class LLM:
    def __init__(self, **arguments):
        (HERE / "arguments.json").write_text(json.dumps(arguments))
        if (HERE / "refuse").exists():
            raise ValueError("Head size 8 is not supported")
        module, _, name = arguments["worker_extension_cls"].rpartition(".")
        kind = type("Worker", (getattr(importlib.import_module(module), name),), {})
        self.worker, self.sum = kind(), 0.0
        self.core = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(1000,), daemon=True)
        self.core.start()
        self.shared = SharedMemory(create=True, size=4096)
        pathlib.Path(tempfile.gettempdir(), "socket").touch()
        (HERE / "shared").write_text(self.shared.name)
        self.llm_engine = SimpleNamespace(output_processor=SimpleNamespace(request_states={}), abort_request=self.abort)
        self.worker.device = torch.device("cpu")
        self.worker.model_runner = SimpleNamespace(reload_weights=self.reload, get_model=torch.nn.Module)

    def reload(self, weights_iterator, is_checkpoint_format):
        assert is_checkpoint_format
        self.say("reload")
        self.sum = sum(float(tensor.double().sum()) for _, tensor in weights_iterator)

    def collective_rpc(self, method, args=()):
        return [getattr(self.worker, method)(*args)]

    def abort(self, names, internal):
        for name in names:
            del self.llm_engine.output_processor.request_states[name]

    def wait(self):
        while self.llm_engine.output_processor.request_states:
            time.sleep(0.05)

    def say(self, word):
        with (HERE / "calls").open("a") as file:
            file.write(word + "\\n")

    def reset_prefix_cache(self):
        self.say("forget")
        return True

    def sleep(self, level):
        self.say(f"sleep {level}")

    def wake_up(self, tags):
        self.say(f"wake {','.join(tags)}")

    def chat(self, messages, parameters, use_tqdm, tools=None):
        self.say(f"chat {len(messages)}")
        texts = [self.said(talk[-1]["content"][::-1], [7, 8], "stop") for talk in messages]
        return [SimpleNamespace(outputs=[text] * p.n, prompt_token_ids=[1, 2, 3]) for text, p in zip(texts, parameters)]

    def said(self, text, tokens, reason):
        return SimpleNamespace(text=text, token_ids=tokens, finish_reason=reason)

    def complete(self, prompts, parameters):
        self.wait()
        self.say(f"complete {len(prompts)}")
        for prompt in prompts:
            if prompt == "left":
                self.llm_engine.output_processor.request_states["left"] = 1
                raise UnicodeError("it cannot be sent")
            if prompt == "slow":
                time.sleep(60)
            if prompt == "long":
                raise ValueError("the prompt is longer than the model reads")
            if prompt == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        number = int(abs(self.sum) * 1e6)
        texts = [self.said(f"{prompt} {number}", [9], "length") for prompt in prompts]
        return [SimpleNamespace(outputs=[text], prompt_token_ids=[1, 2]) for text in texts]

    def generate(self, prompts, parameters, use_tqdm):
        if not isinstance(prompts[0], dict):
            return self.complete(prompts, parameters)
        self.wait()
        asked = prompts[0]["prompt_token_ids"][0]
        once = HERE / "died"
        if asked == 2 or asked == 3 and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if asked == 5 and not once.exists():
            once.touch()
            self.core.kill()
            self.core.join()
            raise RuntimeError("cancelled")
        if asked == 6:
            self.llm_engine.output_processor.request_states["left"] = 1
            raise RuntimeError("no kernel for that")
        if asked == 4:
            raise RuntimeError("no kernel for that")
        number = int(abs(self.sum) * 1e6)
        text = SimpleNamespace(text=str(number), token_ids=[number], finish_reason="stop")
        return [SimpleNamespace(outputs=[text], prompt_logprobs=None) for _ in prompts]
"""


def write_fake(folder: Path) -> Path:
    """Writes the package; returns its folder, where it keeps what was done."""
    package = folder / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_SOURCE)
    return package
