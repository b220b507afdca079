"""Asks a vision-language model about images, by lm-eval's own code. Imports torch and lm-eval: import it where it is
used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.models.utils import normalize_gen_kwargs

from evomerge.checkpoints.checkpoint import IMAGE_FILES
from evomerge.errors import InputError
from evomerge.escape import shortened
from evomerge.scoring.engine.resident import BoundedChat
from evomerge.scoring.replies import Written, measured

_MEND = f"put {' or '.join(IMAGE_FILES)} of the original model there"
_REASON = 160  # characters of an error of transformers that are shown


@dataclass(frozen=True)
class ImagePlan:
    """Requests about images, in order. None of their tokens is scored."""

    requests: list[Any]
    tokens: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", [0] * len(self.requests))


class ImageLM(BoundedChat, HFMultimodalLM):  # type: ignore[misc]  # lm-eval is untyped
    """Runs lm-eval's `hf-multimodal` over a model whose weights change between calls, as `ResidentLM` runs `HFLM`.

    Images and text go through the model's processor at each call; nothing is packed or kept.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        """`tokenizer` takes the place of the processor's.

        Raises:
            InputError: the model takes no images, or its folder has no processor.
        """
        self.processor = _processor(model, tokenizer)
        super().__init__(pretrained=model, batch_size=batch_size)

    def _create_tokenizer(self, *arguments: Any, **options: Any) -> None:
        self.tokenizer = self.processor.tokenizer

    def plan(self, requests: Sequence[Any]) -> ImagePlan:
        """Holds lm-eval instances (of generate_until), in order."""
        return ImagePlan(list(requests))

    def answer(self, plan: ImagePlan) -> list[Written]:
        """The texts that the model writes with its current weights, in order."""
        texts: list[str] = self.generate_until(plan.requests, disable_tqdm=True)
        limits = (normalize_gen_kwargs(dict(r.args[1]), self.max_gen_toks)["max_gen_toks"] for r in plan.requests)
        return [measured(text, self.tokenizer, limit) for text, limit in zip(texts, limits, strict=True)]


def _processor(model: Any, tokenizer: Any) -> Any:
    from transformers import AutoProcessor, ProcessorMixin
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if type(model).__name__ not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
        problem = f"the task shows images, and the model, a {type(model).__name__}, takes none"
        raise InputError(problem, "merge vision-language models, or leave the slice out")
    folder = Path(str(model.name_or_path or tokenizer.name_or_path))
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a processor's configuration can make transformers fail with anything
        reason = shortened(" ".join(str(error).split()), _REASON)
        raise InputError(f"{folder} has no processor that transformers can load: {reason}", _MEND) from error
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise InputError(f"{folder} has a {type(processor).__name__}, and no processor of images", _MEND)
    processor.tokenizer = copy.deepcopy(tokenizer)
    for name in [name for name in vars(processor) if name.endswith("_token_id")]:
        token = getattr(processor, name.removesuffix("_id"), None)
        if isinstance(token, str):  # another tokenizer may have it elsewhere
            setattr(processor, name, tokenizer.convert_tokens_to_ids(token))
    processor.chat_template = tokenizer.chat_template or processor.chat_template
    return processor
