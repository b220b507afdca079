"""The resident model stays in memory, and each candidate overwrites its parameters. Nothing touches the disk."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import SIZES
from evomerge.checkpoints.layouts.layout import Layout, Slot, layout
from evomerge.checkpoints.siblings import siblings
from evomerge.checkpoints.structure import Stack
from evomerge.checkpoints.tokenizer import load_tokenizer
from evomerge.errors import EvomergeError, InputError, TrialError, Where
from evomerge.escape import shortened
from evomerge.merging.kernels.compiled import Compiled
from evomerge.merging.kernels.digest import NotFinite, Words, combined, tensor_record
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.jobs import MergeJob, MergePlan
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank, torch_dtype
from evomerge.merging.resident.execute import carry_out, execute, not_finite
from evomerge.merging.resident.placement import CPU
from evomerge.merging.resident.sharding import Sharding, build, load, skeleton
from evomerge.merging.resident.slopes import Pulls
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.safety.limits import OutOfTime, TimeLimit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHOWN = 4
_GENERATION_FILE = "generation_config.json"
_NO_MODEL = "check its config.json; for other models, let `model` of the fitness file build it"
_SKELETON_SECONDS = 120.0
"""A model of 100,000 modules takes some 20 s. A configuration can ask for a million."""
# Settings that change neither the parameters nor a forward pass
_INERT = ("dtype", "torch_dtype", "_name_or_path", "transformers_version", "architectures", "use_cache",
          "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip


@dataclass(frozen=True)
class _Candidate:
    planned: MergePlan
    digest: str
    tensors: Mapping[str, Tensor]


class Resident:
    """Holds one model in evaluation mode, in one dtype, on one device or in runs of layers on several.

    Attributes:
        model: always the same object; its parameters take no gradient. A recipe whose configuration differs from the
            last one's (another depth, say) gives it new layers; every other one only overwrites its parameters.
        tokenizer: the base's, or the one that was passed in.
        compiled: the kernels that are compiled once plain torch has taken too long.
        most_kept: so many bytes of parameters are kept, of the latest candidates: a race comes back to those of a
            generation, and small ones are copied faster than they are merged again.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        base: Checkpoint,
        bank: SourceBank,
        dtype: str,
        device: str | Mapping[str, int] = CPU,
        *,
        planned: MergePlan | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Load `base` with transformers, without running code from it.

        Args:
            device: one device, or several with the bytes that each has free (`Placement.room`).
            planned: a merge whose configuration the model gets. If it differs from the base's, or the base is stored
                quantized, the parameters are not set before the first `materialize`.
            tokenizer: a tokenizer in place of the base's.

        Raises:
            InputError: transformers does not know its architecture or has other names for its parameters, or there is
                not enough memory for it.
        """
        self.base, self.bank, self.dtype = bank.add(base), bank, dtype
        self._room = {device: 1} if isinstance(device, str) else dict(device)
        self._config: dict[str, Any] = {}
        self._jobs: dict[str, MergeJob] = {}
        self._slots: dict[str, Slot] = {}
        self._alike: dict[str, list[str]] = {}  # the name of a slot -> of those that may be merged in one call with it
        self._words: dict[Hashable, Words] = {}  # of the slots
        self._unread: frozenset[str] = frozenset()
        self._layouts: dict[frozenset[str], tuple[dict[str, Any], Layout]] = {}  # with the model that each is of
        self._kept: dict[str, _Candidate] = {}  # the id of a recipe -> its candidate, the latest last
        self.most_kept = 0
        self.compiled = Compiled()
        self._runner = Runner(self.compiled)
        _check_kind(base)
        self.tokenizer = load_tokenizer(base.path) if tokenizer is None else tokenizer
        if planned is None or _structure(planned.config) == _structure(base.config):
            sharding = self._sharding({n: i.elements for n, i in base.tensors.items()}, base.stack)
            self.model = _load_model(base, dtype, sharding)
            self._adopt(base.config, {name: info.shape for name, info in base.tensors.items()})
        else:
            self.model = self._built(planned)
            self._adopt(planned.config, planned.shapes)

    @property
    def devices(self) -> str:
        """The devices, with commas between them."""
        return ",".join(self._room)

    def materialize(self, recipe: Recipe) -> str:
        """Make the model the one that `recipe` describes; returns its digest.

        The digest is that of the folder that `merge` writes for the same recipe (`stream.checkpoint_digest`).

        Raises:
            TrialError: a tensor came out with NaN or Inf. The model is then a mixture until the next call.
            InputError: the recipe does not fit its checkpoints or this model.
        """
        kept = self._kept.get(recipe.id)
        planned = plan(recipe, self.bank.open) if kept is None else kept.planned
        self._fit(planned)
        self._jobs = {}
        if kept is not None:
            for name, tensor in kept.tensors.items():
                self._slots[name].tensor.copy_(tensor)
            self._jobs = planned.jobs
            return kept.digest
        self.compiled.collect()
        records = [record for jobs in self._together(planned) for record in self._carry_out(jobs)]
        self._jobs = planned.jobs
        digest = combined(records)
        self._keep(recipe, planned, digest)
        return digest

    def _together(self, planned: MergePlan) -> Iterator[list[MergeJob]]:
        """The plan's jobs, those together that may take one call."""
        for name in planned.jobs:
            names = self._alike.get(name, [name])
            if name == names[0]:
                yield [planned.jobs[each] for each in names]

    def _carry_out(self, jobs: list[MergeJob]) -> list[str]:
        """Merge some tensors; returns their lines of the digest. What is not in the model is merged for these only."""
        if jobs[0].tensor not in self._unread:
            slots = [self._slots[job.tensor].tensor for job in jobs]
            return carry_out(jobs, slots, self.bank, self._runner, self._words)
        device = next(iter(self._room))
        return [tensor_record(job.tensor, execute(job, self.bank, device, self._runner), self._runner) for job in jobs]

    def _keep(self, recipe: Recipe, planned: MergePlan, digest: str) -> None:
        """Keeps the candidate that the model is now in place of the earliest ones."""
        slots = {name: self._slots[name].tensor for name in planned.jobs if name not in self._unread}
        n_bytes = sum(slot.nbytes for slot in slots.values())
        count = self.most_kept // max(1, n_bytes)
        while self._kept and len(self._kept) >= count:
            del self._kept[next(iter(self._kept))]
        if count:
            tensors = {name: slot.detach().clone() for name, slot in slots.items()}
            self._kept[recipe.id] = _Candidate(planned, digest, tensors)

    def pulls(self) -> Pulls:
        """An object that pulls the gradients of the model back to the last recipe's parameters."""
        assert self._jobs, "nothing was materialized"
        return Pulls(self._jobs, self._slots, self.bank)

    def load(self, ref: str) -> str:
        """Make the model a checkpoint as it is, rounded to the resident dtype; returns the digest."""
        return self.materialize(as_it_is(ref, self.dtype))

    def digest(self) -> str:
        """The digest (hex) of the parameters as they are now, under their checkpoint names.

        Raises:
            TrialError: a tensor holds NaN or Inf.
        """
        names = self._jobs or dict.fromkeys([*self._slots, *self._unread])
        try:
            return combined(tensor_record(n, self._stored(n, job), self._runner) for n, job in names.items())
        except NotFinite as error:
            job = self._jobs.get(str(error))
            raise not_finite(job) if job else TrialError(f"{error} holds NaN or Inf") from None

    def _stored(self, name: str, job: MergeJob | None) -> Tensor:
        """The parameter as the recipe's checkpoint would store it."""
        if name in self._unread:
            stored = self.bank.tensor(self.base.resolved(), name)
            return stored.to(torch_dtype(self.dtype)) if job is None else execute(job, self.bank, runner=self._runner)
        slot = self._slots[name].tensor
        return slot if job is None else slot.to(torch_dtype(job.out))

    def _fit(self, planned: MergePlan) -> None:
        """Check that every job has its parameter, of its shape, in a dtype that holds the job's. A plan of another
        structure first gives the model new layers."""
        if planned.config != self._config and _structure(planned.config) != _structure(self._config):
            built = self._built(planned)
            if type(built) is not type(self.model):
                problem = f"the recipe makes a {type(built).__name__}, the resident model is another architecture"
                raise InputError(problem, "merge models of one architecture")
            self.model.__dict__ = built.__dict__
            self._adopt(planned.config, planned.shapes)
        if not planned.jobs.keys() <= self._slots.keys() | self._unread:
            self._adopt(planned.config, planned.shapes)  # a checkpoint that stores more, or in another layout
        read = [name for name in planned.jobs if name not in self._unread]
        _check_names(self.base.path, self._slots, read)
        for name in read:
            job = planned.jobs[name]
            slot, out = self._slots[name].tensor, torch_dtype(job.out)
            if tuple(slot.shape) != job.shape:
                problem = f"{name} is {list(job.shape)} in the recipe, {list(slot.shape)} in the resident model"
                raise InputError(problem, "merge models of one architecture and vocabulary")
            if torch.promote_types(slot.dtype, out) != slot.dtype:
                kind = str(slot.dtype).removeprefix("torch.")
                problem = f"the recipe writes {name} in {job.out}, the resident model holds it in {kind}"
                raise InputError(problem, f"give the recipe out_dtype: {kind}")

    def _built(self, planned: MergePlan) -> PreTrainedModel:
        """A model of the merge's configuration; its parameters are not set yet."""
        sharding = self._sharding({n: math.prod(job.shape) for n, job in planned.jobs.items()}, planned.stack)
        with _quiet(f"the merged model of {self.base.path} cannot be built", "check the recipe's layer ranges"):
            return build(planned.config, torch_dtype(self.dtype), sharding, getattr(self, "model", None))

    def _sharding(self, elements: Mapping[str, int], stack: Stack) -> Sharding:
        return Sharding({name: n * SIZES[self.dtype] for name, n in elements.items()}, stack, self._room)

    def _adopt(self, config: dict[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
        """Find the place of every checkpoint tensor in the model."""
        self.model.eval().requires_grad_(False)
        self._config, self._jobs = config, {}
        place = self._layout(shapes)
        found = place.slots
        _check_names(self.base.path, found, [name for name in shapes if name not in place.unread])
        _check_filled(self.base.path, self.model, found)
        self._slots, self._words, self._unread = found, {}, place.unread
        self._alike = {name: names for names in siblings(found) for name in names}

    def _layout(self, shapes: Mapping[str, Sequence[int]]) -> Layout:
        """The layout of a checkpoint's tensors; of one with thousands of experts it takes seconds to find."""
        key = frozenset(shapes)
        known, place = self._layouts.get(key, (None, None))
        if place is None or known is not self.model.__dict__:
            place = layout(self.model, shapes)
            self._layouts[key] = self.model.__dict__, place
        return place


def check_buildable(base: Checkpoint, planned: MergePlan) -> None:
    """Checks, before a weight is read, that transformers can build the merged model and load the base. Takes no memory
    for parameters.

    Raises:
        InputError: it cannot, or the model's parameters have other names or shapes than the checkpoints' tensors.
    """
    from transformers import GenerationConfig

    _check_kind(base)
    if (base.path / _GENERATION_FILE).is_file():
        with _quiet(f"{base.path / _GENERATION_FILE} is not valid", "correct it, or remove it"):
            GenerationConfig.from_pretrained(base.path, local_files_only=True)
    with _quiet(f"{base.path} cannot be loaded as a causal language model", _NO_MODEL), TimeLimit(_SKELETON_SECONDS):
        model = skeleton(planned.config)
        place = layout(model, planned.shapes)
    _check_names(base.path, place.slots, [name for name in planned.jobs if name not in place.unread])
    _check_filled(base.path, model, place.slots)
    for name, slot in place.slots.items():
        job, shape = planned.jobs[name], list(slot.tensor.shape)
        if tuple(shape) != job.shape:
            problem = f"{base.path}: {name} is {list(job.shape)}, and {shape} by its config.json"
            raise InputError(problem, "correct config.json, or download the checkpoint again")


def as_it_is(ref: str, dtype: str) -> Recipe:
    """The recipe of one checkpoint, rounded to `dtype`."""
    return Recipe((Document("passthrough", (Slice((Input(ref),)),), out_dtype=dtype),))


def _check_names(path: Path, slots: Mapping[str, Slot], names: list[str]) -> None:
    unknown = [name for name in names if name not in slots]
    if unknown:
        problem = f"{path}: the model has no parameter for {_listed(unknown)}"
        mend = (
            "it can be merged to disk, but not in memory: transformers lays its parameters out otherwise than its files"
        )
        raise InputError(problem, mend)
    if len(names) < len(slots):
        missing = [name for name in slots if name not in set(names)]
        raise InputError(f"{path}: the recipe makes no {_listed(missing)}", "merge models of one architecture")


def _check_filled(path: Path, model: PreTrainedModel, slots: Mapping[str, Slot]) -> None:
    """InputError where a part of the model has no stored tensor."""

    def memory(tensor: Tensor) -> int:
        return tensor.data_ptr() or id(tensor)  # without memory, on the meta device, shared parameters are one object

    filled = Counter[int]()
    for (home, _), numel in {
        (memory(s.home), s.tensor.storage_offset()): s.tensor.numel() for s in slots.values()
    }.items():
        filled[home] += numel
    state = model.state_dict(keep_vars=True)
    idle = [name for name, tensor in state.items() if filled[memory(tensor)] < tensor.numel()]
    if idle:
        problem = f"{path} stores no {_listed(idle)}, which the model has"
        raise InputError(problem, "save the checkpoint again with this version of transformers")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _structure(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration that decide the model, with defaults filled in."""
    from transformers import AutoConfig

    def pruned(data: dict[str, Any]) -> dict[str, Any]:
        return {k: pruned(v) if isinstance(v, dict) else v for k, v in data.items() if k not in _INERT}

    with _quiet("the merged model's configuration is not valid", "check the base's config.json"):
        return pruned(AutoConfig.for_model(**config).to_dict())


def _check_kind(base: Checkpoint) -> None:
    """InputError for what cannot be a language model here."""
    from transformers import CONFIG_MAPPING

    if base.config.get("is_encoder_decoder"):
        problem = (
            f"{base.path} is an encoder-decoder ({base.config.get('model_type')}), which is merged, but not scored"
        )
        raise InputError(problem, "for other models, let `model` of the fitness file build it")
    if base.config.get("auto_map") and base.config.get("model_type") not in CONFIG_MAPPING:
        problem = f"{base.path} needs its own Python code to run (auto_map in config.json)"
        raise InputError(problem, "code from checkpoints is not run; use an architecture that transformers has")


def _load_model(base: Checkpoint, dtype: str, sharding: Sharding) -> PreTrainedModel:
    """The base's model. If it is stored quantized, transformers would keep it so: it is built, and its parameters are
    set by the first merge."""
    from transformers import GenerationConfig

    with _quiet(f"{base.path} cannot be loaded as a causal language model", _NO_MODEL):
        if base.quantization is None:
            base.fetch()
            return load(base.path, torch_dtype(dtype), sharding)
        model = build(base.config, torch_dtype(dtype), sharding)
        if (base.path / _GENERATION_FILE).is_file():
            model.generation_config = GenerationConfig.from_pretrained(base.path, local_files_only=True)
        return model


@contextlib.contextmanager
def _quiet(problem: str, mend: str) -> Iterator[None]:
    """Runs transformers without progress bars and warnings, and turns its errors into one line."""
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except EvomergeError:
        raise
    except OutOfTime:
        raise InputError(f"{problem} (it takes more than {_SKELETON_SECONDS:g} s to build)", mend) from None
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{problem}: {_reason(error)}", "use a smaller dtype or more GPUs", Where("--device")
        ) from error
    except Exception as error:  # a configuration can make transformers fail with anything
        raise InputError(f"{problem} ({_reason(error)})", mend) from error
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _reason(error: Exception) -> str:
    """An error of a library on one line: some have the reason in the second one."""
    return shortened(" ".join(str(error).split()) or type(error).__name__)
