"""Reads LoRA adapters in the format of PEFT 0.21, and lays them over the tensors of their base.

The merged weights are those of PEFT's `merge_and_unload`, except for models that tie their head to their embeddings:
PEFT trains an adapter on one of the two, and merges it into both. Here the result is the trained model: it is untied.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, Protocol

from evomerge.checkpoints.headers import FLOATS, TensorInfo
from evomerge.checkpoints.hub import header, is_known
from evomerge.checkpoints.lora_config import CONFIG, MERGE, LoraConfig, read_config
from evomerge.checkpoints.lora_names import Parameter, ParameterNames
from evomerge.checkpoints.lora_steps import Change, ExpertsLowRank, LowRank, ReplaceRows, Shift
from evomerge.checkpoints.pickled import check_allowed, read_pickled
from evomerge.checkpoints.read import same_bytes
from evomerge.checkpoints.structure import is_embedding, is_head
from evomerge.errors import InputError, Where
from evomerge.safety.read import is_there

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"

_PREFIX = "base_model.model."
_LOW_RANK = re.compile(
    r"(?P<module>.+)\.(lora_(embedding_)?(?P<part>A|B|magnitude_vector))(\.default)?(\.weight|(?P<bias>\.bias))?"
)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.default)?")
_WRAPPERS = re.compile(r"\.(modules_to_save(\.default)?|base_layer|token_adapter)(?=\.)")
# What a trained module replaced, which PEFT saves beside it where a vocabulary grew
_ORIGINAL = re.compile(r"\.original_module\.")
_WRAPPED = ".base_layer"
_HEAD = "lm_head.weight"
_SHARED = re.compile(r"(^|\.)shared\.weight$")
_UNQUANTIZED = "give the adapter as it was trained"
_GIVE_ITS_BASE = "give the model that it was trained on: model+adapter"
# Models whose layers store their matrices as [inputs, outputs] (transformers' Conv1D)
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
# Models whose experts are [experts, inputs, outputs] in memory (`is_transposed` in transformers' modeling files)
_INPUTS_FIRST = ("gpt_oss", "aria", "aria_text", "openai_privacy_filter")
_MOST_WRAPPED = 6
# Parameters of experts in the order in which transformers defines them
_DEFINED = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "up_proj_bias", "down_proj", "down_proj_bias")


@dataclass(frozen=True)
class Adapter:
    """An adapter folder. `resolved`: its reference from anywhere; `config`: its adapter_config.json; `weights`: the
    name of their file."""

    folder: Path
    resolved: str
    config: LoraConfig
    tensors: Mapping[str, TensorInfo]
    where: Where | None = None
    weights: str = WEIGHTS

    @property
    def base(self) -> str | None:
        """The reference of the base that it was trained on, from its configuration."""
        name, revision = self.config.base, self.config.revision
        return f"{name}@{revision}" if name and revision else name

    def files(self) -> list[Path]:
        """Its configuration and its weights."""
        return [self.folder / CONFIG, self.folder / self.weights]

    def error(self, problem: str, mend: str = _GIVE_ITS_BASE) -> InputError:
        return _error(self.folder, self.where, problem, mend)


def _error(folder: Path, where: Where | None, problem: str, mend: str) -> InputError:
    return InputError(f"adapter {folder}: {problem}", mend, where)


def read_adapter(folder: Path, resolved: str, where: Where | None = None) -> Adapter:
    """Read an adapter's configuration and headers.

    Raises:
        InputError: it is no LoRA adapter, is damaged or pickled, or cannot be merged into weights.
    """
    error = partial(_error, folder, where)
    config = read_config(folder, error, where)
    again = f"save it again with peft's save_pretrained, which writes {WEIGHTS}"
    weights, read = (WEIGHTS, header) if is_known(folder / WEIGHTS, where) else (PICKLED, read_pickled)
    if weights == PICKLED:
        if not is_there(folder / PICKLED, where):
            raise error(f"it has no {WEIGHTS}", again)
        check_allowed(f"adapter {folder}", again, where)
    tensors = read(folder / weights, where)
    other = next((name for name, info in tensors.items() if info.dtype not in FLOATS), None)
    if other is not None:
        raise error(f"{other} is {tensors[other].dtype}, and only adapters of floats can be merged", _UNQUANTIZED)
    return Adapter(folder, resolved, config, tensors, where, weights)


class Base(Protocol):
    """A checkpoint that an adapter is laid over (`checkpoint.Checkpoint`)."""

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def stored(self) -> Mapping[str, TensorInfo]: ...
    @property
    def tied(self) -> bool: ...
    @property
    def embedding(self) -> str | None: ...


class FittedAdapter:
    """Lays an adapter over a base.

    Attributes:
        changes: the tensors that the adapter changes or adds, by name.
        unties: whether the result has a separate head although the base ties its head to its embeddings.
        vocabulary: the number of rows of the embeddings, if the adapter changes it; else None.
    """

    def __init__(self, adapter: Adapter, base: Base) -> None:
        """Raises InputError where a tensor of the adapter does not fit the base."""
        self.changes: dict[str, Change] = {}
        self.vocabulary: int | None = None
        self._adapter, self._base = adapter, base
        self._names = ParameterNames(base.stored, base.config)
        self._embedding = base.embedding or next(filter(_holds_tokens, base.stored), None)
        modules: dict[str, dict[int, dict[str, TensorInfo]]] = {}
        tokens: dict[str, TensorInfo] = {}
        saved: dict[str, TensorInfo] = {}
        for key, info in adapter.tensors.items():
            name = key.removeprefix(_PREFIX)
            if match := _LOW_RANK.fullmatch(name):
                module, part = match["module"], "bias" if match["bias"] else match["part"]
                level = 0
                while module.endswith(_WRAPPED):
                    module, level = module.removesuffix(_WRAPPED), level + 1
                parts = modules.setdefault(module, {}).setdefault(level, {})
                if part in parts:
                    raise adapter.error(f"it has two of {name}", "copy or download it again")
                parts[part] = info
            elif match := _TOKENS.fullmatch(name):
                tokens[match["module"]] = info
            elif not _ORIGINAL.search(name):
                plain = _WRAPPERS.sub("", name)
                saved[plain] = info if plain == name else saved.get(plain, info)  # PEFT reads the plain name
        for name, info in saved.items():
            self._save(name, info)
        wrappers: dict[str, dict[int, dict[str, TensorInfo]]] = {}
        for module, levels in modules.items():
            weight = self._names.find(f"{module}.weight")
            if adapter.config.parameters and (weight is None or len(base.stored[weight].shape) != 2):
                wrappers[module] = levels
            elif set(levels) == {0}:
                self._add_low_rank(module, levels[0])
            else:
                raise adapter.error(f"it has adapters inside of the one of {module}", MERGE)
        self._add_parameters(wrappers)
        for module, info in tokens.items():
            self._replace_rows(module, info)
        if not self.changes:
            raise adapter.error("it holds no weights", "give a LoRA adapter")
        self.unties = base.tied and self._embedding is not None and self._untie()
        self._check_rows()

    def _change(self, name: str) -> tuple[str, Change]:
        """The base's name of the tensor that the adapter calls `name`, and its change so far."""
        stored = self._names.find(name)
        if stored is None and is_head(name):  # some files call a head otherwise than the model does
            heads = [n for n in self._base.stored if is_head(n)]
            stored = heads[0] if len(heads) == 1 else None
        if self._base.tied and self._embedding and is_head(name):
            stored = stored or name
            source = self._base.stored[self._embedding]
        elif stored:
            source = self._base.stored[stored]
        else:
            raise self._adapter.error(f"it changes {name}, which {self._base.path} does not have")
        return stored, self.changes.get(stored) or Change(source, source)

    def _save(self, name: str, info: TensorInfo) -> None:
        """Replace a tensor by a whole one of the adapter: a trained module or bias, or embeddings of another size."""
        stored, change = self._change(name)
        old, new = change.info.shape, info.shape
        resized = _holds_tokens(stored) and old[1:] == new[1:]
        if old != new and (not resized or not new[0]):
            raise self._adapter.error(f"{name} is {list(new)}, in {self._base.path} {list(old)}")
        if old != new:
            self.vocabulary = new[0]
        self.changes[stored] = Change(replace(change.info, shape=new), info)

    def _add_low_rank(self, module: str, parts: Mapping[str, TensorInfo]) -> None:
        """Add B A to a weight, and the trained bias to its bias. `parts`: A, B, and perhaps bias, magnitude_vector."""
        if not {"A", "B"} <= set(parts):
            raise self._adapter.error(f"{module} has only one of lora_A and lora_B", "copy or download it again")
        stored, change = self._change(f"{module}.weight")
        a, b = parts["A"].shape, parts["B"].shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            problem = f"the matrices of {module} are {list(a)} and {list(b)}"
            raise self._adapter.error(problem, "only LoRA on linear layers and embeddings can be merged")
        plain, transposed = (b[0], a[1]), (a[1], b[0])
        shape = change.info.shape
        if shape not in (plain, transposed):
            raise self._adapter.error(f"{module} is for {list(plain)}, in {self._base.path} it is {list(shape)}")
        self._check_length(f"lora_magnitude_vector of {module}", parts.get("magnitude_vector"), b[0])
        scale = self._scale(module, a[0])
        step = LowRank(
            a=parts["A"],
            b=parts["B"],
            scale=scale,
            transposed=shape == transposed and (plain != transposed or self._stores_inputs_first(stored)),
            magnitude=parts.get("magnitude_vector"),
        )
        self.changes[stored] = change.then(step)
        if "bias" in parts:
            bias, change = self._change(f"{module}.bias")
            self._check_length(f"the bias of {module}", parts["bias"], change.info.elements)
            self.changes[bias] = change.then(Shift(parts["bias"], scale))

    def _add_parameters(self, wrappers: Mapping[str, Mapping[int, Mapping[str, TensorInfo]]]) -> None:
        """Add B A of each expert to parameters that are adapted without a layer (PEFT's `target_parameters`).
        `wrappers`: by module, then from the outermost one inwards."""
        found = [(module, *one) for module, levels in wrappers.items() for one in self._wrapped(module, levels)]
        # Which of a parameter's sides the inputs are, the sides' lengths tell, if these differ: then it is so for all.
        told = {
            b.shape[0] == p.shape[-2] for _, _, p, _, b in found if len(p.shape) == 3 and p.shape[-1] != p.shape[-2]
        }
        for module, name, parameter, a, b in found:
            experts = parameter.shape[0] if len(parameter.shape) == 3 else 1
            scale = self._scale(f"{module}.{name}", a.shape[0] // experts)
            for part in parameter.parts:
                _, change = self._change(part.stored)
                if len(parameter.shape) == 2:
                    self.changes[part.stored] = change.then(LowRank(a, b, scale, transposed=False))
                    continue
                square = parameter.shape[-1] == parameter.shape[-2]
                first = b.shape[0] == parameter.shape[-2]
                if square:
                    first = next(iter(told)) if len(told) == 1 else self._outputs_first(module, parameter)
                self.changes[part.stored] = change.then(ExpertsLowRank(a, b, scale, experts, first, part))

    def _wrapped(
        self, module: str, levels: Mapping[int, Mapping[str, TensorInfo]]
    ) -> list[tuple[str, Parameter, TensorInfo, TensorInfo]]:
        """Names, parameters, A and B of a module's adapted parameters. A wrapper stands around those before it, and has
        not its parameter's name, but that of the module."""
        parameters = {
            name: parameter
            for name, parameter in self._names.parameters(module).items()
            if any(f".{module}.{name}".endswith(f".{ending}") for ending in self._adapter.config.parameters)
        }
        pairs = [levels[level] for level in sorted(levels, reverse=True)]
        if any(set(pair) != {"A", "B"} for pair in pairs):
            raise self._adapter.error(f"{module} has other parts than lora_A and lora_B", "copy or download it again")
        # The innermost is the parameter that is defined first; where that does not fit, shapes tell which is which.
        in_order = sorted(parameters, key=lambda name: (_DEFINED.index(name) if name in _DEFINED else 99, name))
        orders = list(permutations(in_order)) if len(in_order) == len(pairs) <= _MOST_WRAPPED else []
        fitting = [n for n in orders if all(map(_fits, pairs, (parameters[name] for name in n)))]
        if not fitting or (fitting[0] != tuple(in_order) and len(fitting) > 1):
            problem = f"it has {len(pairs)} pairs of matrices for the parameters of {module}"
            shapes = ", ".join(f"{name} {list(parameters[name].shape)}" for name in in_order) or "none that it names"
            raise self._adapter.error(f"{problem}, in {self._base.path} these are {shapes}")
        return [(name, parameters[name], pair["A"], pair["B"]) for name, pair in zip(fitting[0], pairs, strict=True)]

    def _outputs_first(self, module: str, parameter: Parameter) -> bool:
        """Whether the rows of experts' square matrices are the outputs: PEFT 0.18 took none so, 0.19 those that were
        [inputs, outputs], and 0.20 takes the others."""
        if parameter.turned:
            raise self._adapter.error(f"the experts of {module} are square, and how they lie is not told", MERGE)
        version, inputs_first = self._adapter.config.version, self._base.config.get("model_type") in _INPUTS_FIRST
        return version is not None and version >= (0, 19) and inputs_first == (version < (0, 20))

    def _check_length(self, what: str, info: TensorInfo | None, length: int) -> None:
        if info is not None and info.elements != length:
            raise self._adapter.error(f"{what} has {info.elements} elements, not {length}")

    def _stores_inputs_first(self, name: str) -> bool:
        """Whether the rows of a square matrix are the inputs, by the class of its layer (as PEFT decides)."""
        conv1d = self._base.config.get("model_type") in _CONV1D
        return is_embedding(name) or (conv1d and not is_head(name))

    def _scale(self, module: str, rank: int) -> float:
        """The factor of B A: alpha / r, or alpha / sqrt(r) for rank-stabilized LoRA."""
        config = self._adapter.config
        if config.rank(module) != rank:
            problem = f"{module} has rank {rank}, by its {CONFIG} {config.rank(module)}"
            raise self._adapter.error(problem, "copy or download it again")
        return config.alpha(module) / (math.sqrt(rank) if config.rank_stabilized else rank)

    def _replace_rows(self, module: str, info: TensorInfo) -> None:
        """Replace the rows of PEFT's trainable tokens in a weight."""
        rows = self._adapter.config.token_rows(module)
        stored, change = self._change(f"{module}.weight")
        if len(change.info.shape) != 2:
            raise self._adapter.error(f"{module} has no rows: it is {list(change.info.shape)}")
        height, width = change.info.shape
        if info.shape != (len(rows), width) or any(row >= height for row in rows):
            problem = f"its trained tokens are {list(info.shape)} for {len(rows)} of {height} rows of {width}"
            raise self._adapter.error(problem)
        self.changes[stored] = change.then(ReplaceRows(tuple(rows), info))

    def _untie(self) -> bool:
        """Whether a tied base becomes untied. If not, the change of the embeddings is the head's, too."""
        name = self._embedding
        assert name is not None
        head = next((n for n in self.changes if is_head(n)), None)
        head_change, change = self.changes.get(head or ""), self.changes.get(name)
        if head_change is None and change is not None and not self._shared(change):
            stored = self._base.stored[name]
            # Of embeddings that grew, what the adapter was trained on is the adapter's.
            grown = change.info.shape != stored.shape
            self.changes[_HEAD] = Change(change.info, change.source) if grown else Change(stored, stored)
            return True
        if head_change is None:
            return False
        # PEFT saves embeddings and head alike where a vocabulary grew
        equal = change is not None and _are_same(change, head_change)
        if not equal and not self._adapter.config.ties_weights:
            return True
        self.changes = {n: c for n, c in self.changes.items() if not is_head(n)}
        return False

    def _shared(self, change: Change) -> bool:
        """Whether a change of the embeddings alone was a change of the head, too, in training."""
        grown = change.info.shape != self._base.stored[self._embedding or ""].shape
        tokens = all(isinstance(step, ReplaceRows) for step in change.steps)
        return (tokens and (grown or bool(change.steps))) or self._adapter.config.ties_weights

    def _check_rows(self) -> None:
        """InputError where the vocabulary changes, and the rows of only one of embeddings and head."""
        if self.vocabulary is None:
            return
        infos = {name: info for name, info in self._base.stored.items() if _holds_tokens(name)}
        infos |= {name: change.info for name, change in self.changes.items() if name in infos}
        tied = self._base.tied and not self.unties
        other = next((n for n, i in infos.items() if i.shape[0] != self.vocabulary and not (tied and is_head(n))), None)
        if other is not None:
            problem = f"its vocabulary has {self.vocabulary} tokens, but it holds no {other} of so many rows"
            raise self._adapter.error(
                problem, "save it again with peft's save_pretrained(..., save_embedding_layers=True)"
            )


def _holds_tokens(name: str) -> bool:
    """Whether a matrix has a row for each token: embeddings (T5 calls them `shared`) and heads."""
    return is_embedding(name) or is_head(name) or bool(_SHARED.search(name))


def _are_same(one: Change, other: Change) -> bool:
    """Whether two changes give equal tensors: whole ones, or the same rows of whole ones."""
    if len(one.steps) != len(other.steps) or not same_bytes(one.source, other.source):
        return False
    return all(
        isinstance(a, ReplaceRows)
        and isinstance(b, ReplaceRows)
        and a.rows == b.rows
        and same_bytes(a.values, b.values)
        for a, b in zip(one.steps, other.steps, strict=True)
    )


def _fits(pair: Mapping[str, TensorInfo], parameter: Parameter) -> bool:
    """Whether A and B are for a parameter of this shape."""
    a, b, shape = pair["A"].shape, pair["B"].shape, parameter.shape
    if len(a) != 2 or len(b) != 2 or len(shape) not in (2, 3) or a[0] != b[1]:
        return False
    if len(shape) == 2:
        return (b[0], a[1]) == shape
    return not a[0] % shape[0] and (b[0], a[1]) in (shape[1:], shape[:0:-1])
