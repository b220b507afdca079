"""lm-eval's model class for vLLM, around an engine that is there already. Imports vLLM: import it where it is used."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import maybe_truncate, normalize_gen_kwargs, postprocess_generated_text
from vllm import SamplingParams

from evomerge.errors import InputError, TrialError
from evomerge.scoring.engine.greedy import Prompt
from evomerge.scoring.engine.plan import Plan
from evomerge.scoring.engine.resident import BoundedChat, ResidentLM
from evomerge.scoring.replies import Written
from evomerge.scoring.serving.choice import as_vllm
from evomerge.scoring.serving.engine import ServingEngine
from evomerge.scoring.serving.process import Reply

with as_vllm():
    from lm_eval.models.vllm_causallms import VLLM

_MOST_SEED = 1 << 31

_ALWAYS, _SAMPLED = ("repetition_penalty",), ("temperature", "top_k", "top_p", "min_p")
"""Settings of generation that transformers and vLLM call and take alike."""


@dataclass(frozen=True)
class Asked:
    """Requests for text, prepared as far as that does not depend on the weights. Duck-typed as a `GenerationPlan`.

    Attributes:
        requests: lm-eval's instances.
        prompts: the prompt of each.
        parameters: vLLM's sampling parameters of each.
    """

    requests: list[Any]
    prompts: list[Prompt]
    parameters: list[Any]

    @property
    def tokens(self) -> list[int]:
        """The number of scored tokens of each request: none."""
        return [0] * len(self.requests)


class ServedLM(BoundedChat, VLLM):  # type: ignore[misc]  # lm-eval is untyped
    """Runs lm-eval's `VLLM` over an engine whose weights change between calls.

    How prompts are encoded and cut, what ends an answer and where it is cut is lm-eval's. Requests are prepared once
    (`plan`) and answered with the current weights (`answer`), as with a `ResidentLM`.
    """

    def __init__(self, engine: ServingEngine, resident: ResidentLM) -> None:
        """`resident`: the same slice's model class without an engine; its tokenizer and its lengths are taken over."""
        TemplateLM.__init__(self)
        self.engine, self._resident = engine, resident
        self.tokenizer = copy.deepcopy(resident.tokenizer)
        self.add_bos_token = resident.add_bos_token
        self._max_length, self._max_gen_toks = resident.max_length, resident.max_gen_toks
        self.batch_size = "auto"
        self.tensor_parallel_size = self.data_parallel_size = 1  # the engine knows better, and nobody else asks
        self.truncation_side = "left"
        self.think_end_token = self.custom_prefix_token_id = self.lora_request = None
        self.enable_thinking = self.hf_chat_template = None
        self.chat_template_args: dict[str, Any] = {}

    def plan(self, requests: Sequence[Any]) -> Any:
        """Prepares lm-eval instances of one request type, in order. Reads no weights.

        Raises:
            InputError: no weights could answer a request, or vLLM does not know one of its arguments.
        """
        kind = next(iter({request.request_type for request in requests}), "loglikelihood")
        if kind == "generate_until":
            asked = self._asked(list(requests))
            for prompt in asked.prompts:
                self.engine.need(len(prompt.tokens) + prompt.limit)
            return asked
        planned = Plan(self._resident, kind, requests)
        # Its last token is only scored, and vLLM has to write one. lm-eval cuts longer ones.
        self.engine.need(min(planned.longest + 2, self.max_length))
        return planned

    def answer(self, plan: Any) -> list[Any]:
        """Answers a plan's requests with the candidate's weights, in order, as lm-eval's `VLLM` does. TrialError where
        the engine cannot."""
        if isinstance(plan, Asked):
            return self._written(plan)
        found: list[Any] = getattr(self, plan.kind)(plan.requests, disable_tqdm=True)
        return found

    def _asked(self, requests: list[Any]) -> Asked:
        """`VLLM.generate_until`, up to where the model is asked."""
        eos = self.tokenizer.decode(self.eot_token_id) or self.tokenizer.eos_token
        encoded = self.tok_encode([request.args[0] for request in requests]) if requests else []
        prompts, parameters, seen = [], [], Counter[tuple[int, ...]]()
        for request, tokens in zip(requests, encoded, strict=True):
            settings, until, limit = self.modify_gen_kwargs(request.args[1], eos, self.max_gen_toks)
            # Where a task says nothing, lm-eval means greedy; its own class for vLLM leaves that at a temperature of 1
            sampled = normalize_gen_kwargs(request.args[1])["do_sample"]
            settings = {**self._usual(sampled), **settings, **({} if sampled else {"temperature": 0.0})}
            if limit >= self.max_length:
                problem = f"max_gen_toks {limit} leaves no room for a prompt: the model reads {self.max_length} tokens"
                raise InputError(problem, "lower it in the task's generation arguments")
            if not tokens:
                raise InputError("a prompt has no tokens, and vLLM takes none such", "mend the task's doc_to_text")
            tokens, limit = maybe_truncate(tokens, limit, self.max_length, self.truncation_side)
            prompt = Prompt(tuple(tokens), limit, tuple(until))
            seed = _seed(prompt.tokens, seen[prompt.tokens])
            seen[prompt.tokens] += 1
            prompts.append(prompt)
            try:
                parameters.append(SamplingParams(max_tokens=limit, stop=until, seed=seed, **settings))
            except (TypeError, ValueError) as error:
                problem = f"vLLM takes no such generation arguments: {error}"
                raise InputError(problem, "mend them, or write engine: resident for the slice") from None
        return Asked(requests, prompts, parameters)

    def _usual(self, sampled: bool) -> dict[str, Any]:
        """What the model's generation_config.json says, which transformers heeds where a task says nothing else, and
        vLLM does not."""
        stated = vars(self._resident.model.generation_config)
        names = (*_ALWAYS, *_SAMPLED) if sampled else _ALWAYS
        return {name: stated[name] for name in names if stated.get(name) is not None}

    def _written(self, asked: Asked) -> list[Written]:
        replies = self.engine.ask([prompt.tokens for prompt in asked.prompts], asked.parameters)
        return [self._text(reply, prompt) for reply, prompt in zip(replies, asked.prompts, strict=True)]

    def _text(self, reply: Reply, prompt: Prompt) -> Written:
        """A reply, read and cut as lm-eval does with what transformers writes: without special tokens. vLLM's own text
        has them, because stop sequences may be some."""
        if not reply.outputs:
            raise TrialError("vLLM has sent no text")
        said = reply.outputs[0]
        text = self.tokenizer.decode(list(said.token_ids), skip_special_tokens=True)
        whole: str = postprocess_generated_text(text, list(prompt.until), self.think_end_token)
        return Written(whole, len(said.token_ids), said.finish_reason == "length", said.token_ids)

    def _model_generate(
        self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None
    ) -> list[Reply]:
        """Asks the engine, in place of a model of lm-eval's own."""
        if not generate:
            sampling_params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
        each = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(requests)
        return self.engine.ask(requests, each)


def _seed(tokens: Sequence[int], number: int) -> int:
    """The seed of a sample: by the prompt, and how many samples of it came before, so that it is the same in every
    run and for every candidate."""
    text = f"{number}:{','.join(map(str, tokens))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % _MOST_SEED
