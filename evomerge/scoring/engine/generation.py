"""Generates text as `HFLM.generate_until` of lm-eval 0.4.13 does, in fewer passes.

Plain greedy decoding is done here. Everything else (sampling, beams, penalties, models with another cache or another
`generate`) takes lm-eval's path. Imports torch and lm-eval: import it where it is used.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import Collator, handle_stop_sequences, normalize_gen_kwargs
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from evomerge.errors import InputError, suggestion
from evomerge.scoring.engine.encode import Window, encode, window
from evomerge.scoring.engine.greedy import Batch, Prompt, Reply, batches, refuse_nan, write
from evomerge.scoring.replies import Written, measured

log = logging.getLogger(__name__)

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm-eval's names for the number of new tokens."""

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_IDLE = {
    *_SAMPLING, *_LENGTHS, "until", "max_length", "do_sample", "use_cache", "early_stopping", "length_penalty",
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "disable_compile", "compile_config",
    "transformers_version",
}  # fmt: skip
"""Settings that make no difference to greedy decoding, or that lm-eval sets."""

_NEUTRAL = {
    "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0,
    "guidance_scale": 1.0,
}  # fmt: skip

_CHECKED_TOKENS = 16
_ROUNDINGS = 4
"""How many units in the last place of the largest logit two equal logits may lie apart."""


@dataclass(frozen=True)
class GenerationPlan:
    """Requests, prepared as far as that does not depend on the weights.

    Attributes:
        requests: lm-eval's instances.
        prompts: the prompt of each; None for a request that takes lm-eval's path.
        batches: the distinct prompts.
    """

    requests: list[Any]
    prompts: list[Prompt | None]
    batches: list[Batch]

    @property
    def tokens(self) -> list[int]:
        """The number of scored tokens of each request: none."""
        return [0] * len(self.requests)


def plan_generation(lm: Any, requests: Sequence[Any]) -> GenerationPlan:
    """Encodes, truncates and batches "generate_until" requests. `lm`: a `ResidentLM`; its weights are not read.

    Raises:
        InputError: a generation argument does not exist or leaves no room for a prompt.
    """
    kinds = {repr(request.args[1]): request.args[1] for request in requests}
    for settings in kinds.values():
        _check(lm, settings)
    decodable = _decodable(lm)
    greedy = {name for name, settings in kinds.items() if decodable and _is_greedy(lm, settings)}
    places = [i for i, request in enumerate(requests) if repr(request.args[1]) in greedy]
    prompts: list[Prompt | None] = [None] * len(requests)
    for i, prompt in zip(places, _encode(lm, [requests[i] for i in places]), strict=True):
        prompts[i] = prompt if prompt.tokens else None
    return GenerationPlan(list(requests), prompts, _batched(lm, [p for p in prompts if p is not None]))


def generate(lm: Any, plan: GenerationPlan) -> list[Written]:
    """Writes the text for each request with the current weights. TrialError on NaN logits."""
    if lm.greedy is None and plan.batches:
        lm.greedy = _agrees(lm, plan)
    written = {p: reply.text() for p, reply in _replies(lm, plan.batches if lm.greedy else []).items()}
    others = iter(_by_lm_eval(lm, [r for r, p in zip(plan.requests, plan.prompts, strict=True) if p not in written]))
    texts = [written[prompt] if prompt in written else next(others) for prompt in plan.prompts]
    return [measured(t, lm.tokenizer, _ends(lm, r.args[1])[1]) for t, r in zip(texts, plan.requests, strict=True)]


def reply_windows(lm: Any, plan: GenerationPlan, replies: Sequence[Written]) -> list[Window | None]:
    """Each reply as a window behind its prompt, so that its loglikelihood can be asked for; None for an empty one.
    Where only a reply's text is known, it is read again."""
    windows: list[Window | None] = []
    for request, prompt, reply in zip(plan.requests, plan.prompts, replies, strict=True):
        if prompt is not None and reply.ids:
            windows.append(window(list(prompt.tokens), list(reply.ids), lm.max_length))
        else:
            found = encode(lm, "loglikelihood", [(request.args[0], str(reply))])[0] if reply.strip() else [None]
            windows.append(found[0])
    return windows


def _replies(lm: Any, planned: list[Batch]) -> dict[Prompt | None, Reply]:
    """Decodes batches: prompt -> reply."""
    return {p: reply for batch in planned for p, reply in zip(batch.prompts, write(lm, batch), strict=True)}


def _by_lm_eval(lm: Any, requests: list[Any]) -> list[str]:
    """Takes lm-eval's path. Sampling draws from the global generators there, in the order of the requests."""
    if not requests:
        return []
    hook = lm.model.register_forward_hook(lambda module, inputs, output: refuse_nan(output.logits[:, -1]))
    try:
        texts: list[str] = lm.generate_until(requests, disable_tqdm=True)
        return texts
    finally:
        hook.remove()


def _agrees(lm: Any, plan: GenerationPlan) -> bool:
    """Whether the first tokens after two of the prompts are the same as on lm-eval's path."""
    sample = _sample(plan)
    theirs = _by_lm_eval(lm, sample)
    try:
        prompts = _encode(lm, sample)
        ours = _replies(lm, _batched(lm, prompts))
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        log.warning("lm-eval's own generation is used: %s: %s", type(error).__name__, error)
        return False
    if [ours[prompt].text() for prompt in prompts] == theirs:
        return True
    if torch.finfo(lm.model.dtype).bits < 32 and all(_likely(lm, prompt, ours[prompt]) for prompt in prompts):
        return True
    log.warning("lm-eval's own generation is used: greedy decoding gave other text for this model")
    return False


@torch.no_grad()
def _likely(lm: Any, prompt: Prompt, reply: Reply) -> bool:
    """Whether each token is the most likely one by the model's ordinary call, but for rounding. In 16 bits logits
    depend on the shape of a batch, and so does which of two close ones is the larger."""
    ids = torch.tensor([[*prompt.tokens, *reply.tokens]], device=lm.device)
    logits = lm.model(ids).logits[0, len(prompt.tokens) - 1 : -1].float()
    written = logits.gather(1, ids[0, len(prompt.tokens) :, None])[:, 0]
    allowed = _ROUNDINGS * torch.finfo(lm.model.dtype).eps * logits.abs().amax(1)
    return bool((logits.amax(1) - written <= allowed).all())


def _sample(plan: GenerationPlan) -> list[Any]:
    """The requests with the shortest and the longest prompt, cut to a few new tokens."""
    places = [i for i, prompt in enumerate(plan.prompts) if prompt]
    places.sort(key=lambda i: len(plan.prompts[i].tokens))  # type: ignore[union-attr]
    return [_shortened(plan.requests[i]) for i in dict.fromkeys((places[0], places[-1]))]


def _shortened(request: Any) -> Any:
    context, settings = request.args
    limit = min(normalize_gen_kwargs(settings)["max_gen_toks"], _CHECKED_TOKENS)
    few = {name: value for name, value in settings.items() if name not in _LENGTHS}
    return Instance(request.request_type, request.doc, (context, {**few, "max_gen_toks": limit}), 0)


def _batched(lm: Any, prompts: list[Prompt]) -> list[Batch]:
    share = not any(isinstance(layer, DynamicSlidingWindowLayer) for layer in _cache_layers(lm))
    return batches(prompts, lm.batch_size, _eos(lm), lm.tokenizer.pad_token_id, lm.device, share)


def _encode(lm: Any, requests: Sequence[Any]) -> list[Prompt]:
    """Encodes prompts in the same batches as lm-eval, which looks for a bos token in the first text of each batch."""
    order = Collator(
        [request.args for request in requests],
        sort_fn=lambda args: (-len(lm.tok_encode(args[0])), args[0]),
        group_by="gen_kwargs",
        group_fn=lambda args: args[1],
    )
    prompts = []
    for chunk in order.get_batched(n=lm.batch_size):
        until, limit = _ends(lm, chunk[0][1])
        texts = [context for context, _ in chunk]
        ids, mask = lm.tok_batch_encode(texts, left_truncate_len=lm.max_length - limit, truncation=lm.truncation)
        prompts += [Prompt(tuple(row[m].tolist()), limit, until) for row, m in zip(ids, mask.bool(), strict=True)]
    in_order: list[Prompt] = order.get_original(prompts)
    return in_order


def _ends(lm: Any, settings: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """The stop sequences, the tokenizer's end of text among them, and the number of new tokens."""
    normal = normalize_gen_kwargs(dict(settings), lm.max_gen_toks)
    eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    return tuple(handle_stop_sequences(normal["until"], eos=eos)), normal["max_gen_toks"]


def _check(lm: Any, settings: Mapping[str, Any]) -> None:
    """InputError where transformers would refuse an argument, or lm-eval the length."""
    model = lm.model
    limit = normalize_gen_kwargs(dict(settings), lm.max_gen_toks)["max_gen_toks"]
    if lm.backend == "causal" and limit >= lm.max_length:
        problem = f"max_gen_toks {limit} leaves no room for a prompt: the model reads {lm.max_length} tokens"
        raise InputError(problem, "lower it in the task's generation arguments")
    legal = {*_IDLE, *vars(GenerationConfig()), *_parameters(model.generate), *_parameters(model.forward)}
    for name in settings:
        if name not in legal:
            mend = suggestion(name, (known for known in legal if not known.startswith("_")))
            raise InputError(f"no generation argument {name!r}", mend)


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _decodable(lm: Any) -> bool:
    """Whether the model can be decoded here: it has transformers' `generate`, a cache whose rows can be dropped, and
    positions that mean the same in any batch."""
    kind, config = type(lm.model), lm.model.config.get_text_config(decoder=True)
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = {r.get("rope_type") for r in (ropes, *ropes.values()) if isinstance(r, Mapping)}
    return (
        lm.backend == "causal"
        and lm.mixed_precision_dtype is None
        and lm.think_end_token is None
        and getattr(kind, "generate", None) is GenerationMixin.generate
        and kind.prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation
        and not kinds & {"dynamic", "longrope"}
        and lm.tokenizer.eos_token_id is not None
        and kind._supports_default_dynamic_cache()
        and all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in _cache_layers(lm))
    )


def _cache_layers(lm: Any) -> list[Any]:
    return list(DynamicCache(config=lm.model.config.get_text_config(decoder=True)).layers)


def _is_greedy(lm: Any, settings: Mapping[str, Any]) -> bool:
    """Whether the most likely token is always taken, and the stop sequences can be seen in the text."""
    normal = normalize_gen_kwargs(dict(settings), lm.max_gen_toks)
    until, limit = _ends(lm, settings)
    if normal["do_sample"] or limit < 1 or "max_length" in settings or "" in until:
        return False
    merged = {**vars(lm.model.generation_config), **settings}
    if any(_steers(name, value) for name, value in merged.items() if not name.startswith("_")):
        return False
    # A special token is not in the text. After one that does not end the text for the model, lm-eval goes on unless all
    # rows of its batch have written it.
    special = _special(lm.tokenizer)
    return all(special.get(stop) in {None, *_eos(lm)} for stop in until)


def _steers(name: str, value: Any) -> bool:
    """Whether a setting may change what greedy decoding does."""
    default = getattr(GenerationConfig(), name, None)
    return name not in _IDLE and value is not False and value not in (None, default, _NEUTRAL.get(name))


def _special(tokenizer: Any) -> dict[str, int]:
    """The tokens that decoding leaves out."""
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**added, **dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))}


def _eos(lm: Any) -> frozenset[int]:
    """The tokens after which transformers' generate ends a row."""
    ids = lm.model.generation_config.eos_token_id
    return frozenset([ids] if isinstance(ids, int) else ids or ())
