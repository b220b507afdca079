"""The resident model stays in memory, and each candidate overwrites its parameters, or links them to those of the
sources. Nothing touches the disk."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import SIZES
from evomerge.checkpoints.layouts.layout import Layout, Slot
from evomerge.checkpoints.siblings import siblings
from evomerge.checkpoints.structure import Stack
from evomerge.checkpoints.tokenizer import load_tokenizer
from evomerge.errors import InputError, TrialError
from evomerge.merging.kernels.compiled import Compiled
from evomerge.merging.kernels.digest import NotFinite, Words, combined, tensor_record
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.jobs import MergeJob, MergePlan
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank, torch_dtype
from evomerge.merging.resident.building import check_filled, check_kind, check_names, load_model, quiet, structure
from evomerge.merging.resident.execute import carry_out, execute, not_finite
from evomerge.merging.resident.placement import CPU
from evomerge.merging.resident.sharding import Sharding, build, without_memory
from evomerge.merging.resident.skeleton import Memory, Skeleton
from evomerge.merging.resident.slopes import Pulls
from evomerge.merging.resident.stacks import assign, is_stack, origin
from evomerge.recipe.recipe import Document, Input, Recipe, Slice

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MOST_SKELETONS = 64
"""Models of other depths that are kept: modules without memory."""


@dataclass(frozen=True)
class _Candidate:
    planned: MergePlan
    digest: str
    tensors: Mapping[str, Tensor]


class Resident:
    """Holds one model in evaluation mode, in one dtype, on one device or in runs of layers on several.

    Attributes:
        model: always the same object; its parameters take no gradient. A recipe whose configuration differs from the
            last one's (another depth, say) gives it new layers; every other one only overwrites its parameters. A
            stack of the sources' own layers is linked to their tensors, where the model is on one device (`stacks`).
        planned: the plan of the last recipe.
        tokenizer: the base's, or the one that was passed in.
        compiled: the kernels that are compiled once plain torch has taken too long.
        most_kept: so many bytes of parameters are kept, of the latest candidates: a race comes back to those of a
            generation, and small ones are copied faster than they are merged again.
    """

    model: PreTrainedModel
    planned: MergePlan
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
        compiled: Compiled | None = None,
    ) -> None:
        """Load `base` with transformers, without running code from it.

        Args:
            device: one device, or several with the bytes that each has free (`Placement.room`).
            planned: a merge whose configuration the model gets. If it differs from the base's, or the base is stored
                quantized, the parameters are not set before the first `materialize`.
            tokenizer: a tokenizer in place of the base's.
            compiled: kernels that are there, or being compiled, already.

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
        self._unwritten: frozenset[str] = frozenset()  # tensors that are linked or lent
        self._digest = ""  # of the last recipe
        self._lines: dict[Hashable, str] = {}  # of the digest, of what is linked or lent
        self._skeletons: dict[str, Skeleton] = {}  # by structure
        self._memory = Memory(next(iter(self._room)))
        self._assigned: tuple[Skeleton, Layout, bool] | None = None
        self._kept: dict[str, _Candidate] = {}  # the id of a recipe -> its candidate, the latest last
        self.most_kept = 0
        self.compiled = compiled or Compiled()
        self._runner = Runner(self.compiled)
        check_kind(base)
        self.tokenizer = load_tokenizer(base.path) if tokenizer is None else tokenizer
        if planned is None or structure(planned.config) == structure(base.config):
            config, layers = base.config, base.layers
            shapes: dict[str, Sequence[int]] = {name: info.shape for name, info in base.tensors.items()}
            sharding = self._sharding({n: i.elements for n, i in base.tensors.items()}, base.stack)
            model = load_model(base, dtype, sharding)
        else:
            config, shapes, layers = planned.config, dict(planned.shapes), planned.stack.layers
            model = self._built(planned)
        self._skeleton = self._add(structure(config), model, layers)
        self.model = model.__class__.__new__(model.__class__)
        self._adopt(self._skeleton, config, shapes)

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
        planned = plan(recipe, self.bank.open, held=self.bank.held) if kept is None else kept.planned
        self._fit(planned, link=is_stack(recipe) and len(self._room) == 1)
        self._jobs = {}
        if kept is not None:
            for name, tensor in kept.tensors.items():
                self._slots[name].tensor.copy_(tensor)
            self._jobs, self.planned, self._digest = planned.jobs, planned, kept.digest
            return kept.digest
        self.compiled.collect()
        records = [record for jobs in self._together(planned) for record in self._carry_out(jobs)]
        self._jobs, self.planned, self._digest = planned.jobs, planned, combined(records)
        if not self._unwritten:
            self._keep(recipe, planned, self._digest)
        return self._digest

    def distrust(self) -> None:
        """Has the sources read again, where code that got the model has written into their tensors."""
        if self._unwritten and not self._is_sound():
            self.bank.forget()
            self._lines, self._words, self._assigned = {}, {}, None

    def _is_sound(self) -> bool:
        """Whether the model still is what the last recipe made it."""
        try:
            return self.digest() == self._digest
        except TrialError:
            return False

    def _together(self, planned: MergePlan) -> Iterator[list[MergeJob]]:
        """The plan's jobs, those together that may take one call."""
        for name in planned.jobs:
            names = self._alike.get(name, [name])
            if name == names[0]:
                yield [planned.jobs[each] for each in names]

    def _carry_out(self, jobs: list[MergeJob]) -> list[str]:
        """Merge some tensors; returns their lines of the digest. What is not in the model is merged for these only."""
        if any(job.tensor in self._unwritten for job in jobs):
            return [line for job in jobs for line in self._line(job)]
        if jobs[0].tensor not in self._unread:
            slots = [self._slots[job.tensor].tensor for job in jobs]
            return carry_out(jobs, slots, self.bank, self._runner, self._words)
        device = next(iter(self._room))
        return [tensor_record(job.tensor, execute(job, self.bank, device, self._runner), self._runner) for job in jobs]

    def _line(self, job: MergeJob) -> list[str]:
        """The line of the digest of a tensor that is linked or lent, as `_carry_out`. That of a source's own tensor is
        the same in every candidate."""
        if job.tensor not in self._unwritten:
            return self._carry_out([job])
        key = origin(job), job.out
        if key not in self._lines:
            device = next(iter(self._room))
            try:
                record = tensor_record(job.tensor, execute(job, self.bank, device, self._runner), self._runner)
            except NotFinite:
                raise not_finite(job) from None
            if key[0] is None or key[0][1] != 1.0:
                return [record]
            self._lines[key] = record.removeprefix(job.tensor)
        return [job.tensor + self._lines[key]]

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
        if job is not None and name in self._unwritten:
            return execute(job, self.bank, next(iter(self._room)), self._runner)
        if name in self._unread:
            stored = self.bank.tensor(self.base.resolved(), name)
            return stored.to(torch_dtype(self.dtype)) if job is None else execute(job, self.bank, runner=self._runner)
        slot = self._slots[name].tensor
        return slot if job is None else slot.to(torch_dtype(job.out))

    def _fit(self, planned: MergePlan, link: bool) -> None:
        """Check that every job has its parameter, of its shape, in a dtype that holds the job's. A plan of another
        structure first gives the model new layers. `link`: parameters are linked to the sources where they can be."""
        if planned.config != self._config or link or self._unwritten:
            self._adopt(self._skeleton_of(planned), planned.config, planned.shapes, planned.jobs if link else None)
        if not planned.jobs.keys() <= self._slots.keys() | self._unread:
            # a checkpoint that stores more, or in another layout
            self._adopt(self._skeleton, planned.config, planned.shapes)
        read = [name for name in planned.jobs if name not in self._unread]
        check_names(self.base.path, self._slots, read)
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

    def _skeleton_of(self, planned: MergePlan) -> Skeleton:
        """The model of the merge's structure. InputError where it is another architecture."""
        key = structure(planned.config)
        found = self._skeletons.get(key)
        if found is not None:
            return found
        built = self._built(planned)
        if type(built) is not type(self.model):
            problem = f"the recipe makes a {type(built).__name__}, the resident model is another architecture"
            raise InputError(problem, "merge models of one architecture")
        return self._add(key, built, planned.stack.layers)

    def _add(self, key: str, model: PreTrainedModel, layers: int) -> Skeleton:
        """Takes up a model. On one device its memory is for candidates of any structure; on several each has its own,
        and only the last one is kept."""
        skeleton = Skeleton(model.eval().requires_grad_(False), layers)
        if len(self._room) > 1:
            self._skeletons.clear()
        elif len(self._skeletons) == _MOST_SKELETONS:
            del self._skeletons[next(iter(self._skeletons))]
        self._skeletons[key] = skeleton
        if len(self._room) == 1:
            self._memory.add(home.parameter.detach() for home in skeleton.homes if not home.parameter.is_meta)
        return skeleton

    def _built(self, planned: MergePlan) -> PreTrainedModel:
        """A model of the merge's configuration. On one device it has no memory, on several its own; its parameters are
        not set yet."""
        like, dtype = getattr(self, "model", None), torch_dtype(self.dtype)
        with quiet(f"the merged model of {self.base.path} cannot be built", "check the recipe's layer ranges"):
            if len(self._room) == 1:
                return without_memory(planned.config, dtype, self.devices, like)
            elements = {name: math.prod(job.shape) for name, job in planned.jobs.items()}
            return build(planned.config, dtype, self._sharding(elements, planned.stack), like)

    def _sharding(self, elements: Mapping[str, int], stack: Stack) -> Sharding:
        return Sharding({name: n * SIZES[self.dtype] for name, n in elements.items()}, stack, self._room)

    def _adopt(
        self,
        skeleton: Skeleton,
        config: dict[str, Any],
        shapes: Mapping[str, Sequence[int]],
        linked: Mapping[str, MergeJob] | None = None,
    ) -> None:
        """Make the model this one, and find the place of every checkpoint tensor in it. `linked`: the jobs of a stack,
        whose parameters may be the sources'."""
        self._skeleton, self._config, self._jobs = skeleton, config, {}
        self.model.__dict__ = skeleton.model.__dict__

        def check(place: Layout) -> None:
            check_names(self.base.path, place.slots, [name for name in shapes if name not in place.unread])
            check_filled(self.base.path, skeleton.model, place.slots)

        place = skeleton.layout(shapes, check)
        last, self._assigned = self._assigned, (skeleton, place, linked is not None)
        if last is not None and last[0] is skeleton and last[1] is place and linked is None and not last[2]:
            return
        self._unwritten = frozenset()
        if len(self._room) == 1:
            jobs, device = linked or {}, self.devices
            unwritten = assign(skeleton, place, jobs, self.bank, self._memory, device, self._runner)
            self._unwritten = frozenset(unwritten)
        self._slots, self._words, self._unread = skeleton.slots(place), {}, place.unread
        self._alike = {name: names for names in siblings(self._slots) for name in names}


def as_it_is(ref: str, dtype: str) -> Recipe:
    """The recipe of one checkpoint, rounded to `dtype`."""
    return Recipe((Document("passthrough", (Slice((Input(ref),)),), out_dtype=dtype),))
