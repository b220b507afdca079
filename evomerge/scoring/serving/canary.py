"""Tries an engine before a search relies on it: does it answer with the weights that it was given, and only with these?

It is asked with the base's weights, with another candidate's, and with the base's again; the first answers and the last
ones must be equal. What it says of how likely texts are must be what the resident model says. How many answers differ
when the same weights are asked twice is its own noise, which each item's score contains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evomerge.errors import InputError
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.serving.engine import ServingEngine
from evomerge.scoring.serving.served import Asked, ServedLM
from evomerge.scoring.serving.served_pass import ServedPass
from evomerge.types import SplitName

_PROMPTS, _TOKENS = 8, 16
"""How many prompts are tried, and how many tokens of each answer."""

_MOST_READ = 256
"""Tokens of a prompt, its last ones."""

_GENERATED = "generate_until"
"""lm-eval's request type of answers that are written."""

TOLERANCES = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
"""How far the mean loglikelihoods of a token may lie apart, in nats. In 16 bits kernels round differently."""


def try_engine(
    engine: ServingEngine,
    sources: Sequence[ServedPass],
    split: SplitName,
    model: Any,
    become: Callable[[Recipe], str],
    recipes: Sequence[Recipe],
) -> str:
    """Tries the engine, and says what was found, in a line.

    Args:
        engine: which was started.
        sources: whose prompts are used.
        split: the split of their items.
        model: the resident transformers model.
        become: has the resident model, and the engine, take in a recipe.
        recipes: of the base, and of another candidate if there is one.

    Raises:
        InputError: it is not to be trusted.
        TrialError: it cannot be asked.
    """
    from vllm import SamplingParams

    prompts = _prompts(sources, split, min(_MOST_READ, engine.longest - 1))
    greedy = [SamplingParams(temperature=0.0, max_tokens=_TOKENS)] * len(prompts)
    read = [SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)] * len(prompts)
    answers = []
    for recipe in (*recipes, recipes[0]) if len(recipes) > 1 else (recipes[0], recipes[0]):
        become(recipe)
        answers.append([reply.outputs[0].token_ids for reply in engine.ask(prompts, greedy)])
    changed = sum(first != last for first, last in zip(answers[0], answers[-1], strict=True))
    if changed:
        problem = f"{changed} of {len(prompts)} answers of vLLM are others once another candidate was in place"
        raise InputError(problem, "its answers cannot be trusted: write engine: resident in the fitness file")
    dtype = str(model.dtype).removeprefix("torch.")
    apart = _apart(model, prompts, [reply.prompt_logprobs for reply in engine.ask(prompts, read)])
    if not apart <= TOLERANCES[dtype]:
        problem = f"vLLM's loglikelihoods lie {apart:.2g} nats a token apart from those of the model in memory"
        mend = f"at most {TOLERANCES[dtype]:g} is right in {dtype}: write engine: resident in the fitness file"
        raise InputError(problem, mend)
    other, count = _noise(sources, split)
    asked = f"; asked twice, {other} of {count} answers differ" if count else ""
    likely = f"loglikelihoods within {apart:.1g} nats a token of the resident model's"
    return f"answers with the weights in place; {likely}{asked}"


def _prompts(sources: Sequence[ServedPass], split: SplitName, most: int) -> list[list[int]]:
    """Prompts from all slices in turn, the last `most` tokens of each, each with two tokens or more."""
    texts = []
    for source in sources:
        lm: ServedLM = source.asked
        instances = [instance for task in source.requests(split) for instance in task.instances]
        texts.append([lm.tok_encode(instance.args[0])[-most:] for instance in instances[:_PROMPTS]])
    mixed = [text for texts_of in zip(*texts, strict=False) for text in texts_of if len(text) > 1]
    return mixed[:_PROMPTS] or [text for each in texts for text in each if len(text) > 1][:_PROMPTS]


def _apart(model: Any, prompts: Sequence[list[int]], said: Sequence[Any]) -> float:
    """The mean difference of the loglikelihoods of the prompts' tokens, in nats."""
    import torch

    differences = []
    for prompt, logs in zip(prompts, said, strict=True):
        with torch.no_grad():
            ids = torch.tensor([prompt], device=model.device)
            own = model(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
        theirs = [place[token] for place, token in zip(logs[1:], prompt[1:], strict=True)]
        differences += [abs(one - other) for one, other in zip(own, theirs, strict=True)]
    return float(sum(differences) / max(1, len(differences)))


def _noise(sources: Sequence[ServedPass], split: SplitName) -> tuple[int, int]:
    """How many answers differ when the items of generated slices are asked twice, and of how many."""
    other = count = 0
    for source in sources:
        lm: ServedLM = source.asked
        plan = lm.plan([i for task in source.requests(split) for i in task.instances if i.request_type == _GENERATED])
        if isinstance(plan, Asked):
            first, second = lm.answer(plan), lm.answer(plan)
            other, count = other + sum(a != b for a, b in zip(first, second, strict=True)), count + len(first)
    return other, count
