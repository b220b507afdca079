"""Plans a recipe: one job for every tensor of the merged model, from the headers of its checkpoints alone.

`stacking` chooses the tensors that a document merges, `settings` the parameters, `alignment` the vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS
from evomerge.checkpoints.modules import ALIASES, Modules
from evomerge.checkpoints.structure import LAYER_KEYS, is_counter
from evomerge.checkpoints.tokenizer import tokenizer_folder
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.checkpoints.vocabulary_tensors import vocabulary_axes, with_rows
from evomerge.errors import InputError, Where, suggestion
from evomerge.merging.plan.alignment import Alignment, promoted, truncated
from evomerge.merging.plan.core_space import CorePlanner
from evomerge.merging.plan.experts import expert_stacks
from evomerge.merging.plan.jobs import COPY, MergeJob, MergePlan, Model, Operand, TensorRef
from evomerge.merging.plan.models import held_stage, staged_model, stored_model
from evomerge.merging.plan.output_config import LayerRun, follow_tokens, lost_token, output_config
from evomerge.merging.plan.settings import Settings
from evomerge.merging.plan.stacking import Group, OutputTensor, Stacking
from evomerge.merging.plan.uneven import UnevenTensors
from evomerge.recipe.recipe import Document, Module, Recipe, TokenizerPolicy
from evomerge.registry import METHODS

_ALONE = "passthrough"
"""The method of tensors that are one model's: of a model alone in its slice; of modules that a recipe does not name,
which are the base's (mergekit leaves them out); and some of those that not all models store."""
_ALONE_PARAMETERS = {p.name: (p.default if p.default is not None else 1.0,) for p in METHODS[_ALONE].parameters}


def plan(
    recipe: Recipe,
    open_checkpoint: Callable[[str, Where | None], Checkpoint],
    truncate_embeddings: bool = False,
    mix_types: bool = False,
    held: Mapping[str, MergePlan] | None = None,
) -> MergePlan:
    """Plan a recipe.

    Args:
        open_checkpoint: opens a checkpoint, as ``open_checkpoint(reference, where)``.
        truncate_embeddings: merge embeddings of different size, without a tokenizer setting, over the rows that all of
            them have. If these rows mean different tokens, the merge is broken.
        mix_types: merge models of different `model_type`, where their tensors have the same names and shapes. The
            output is of the base's type.
        held: plans of recipes whose output tensors are in memory, by the recipe's id. Where the recipe begins with
            one of them, its tensors are read under that id.

    Raises:
        InputError: the recipe and its checkpoints do not fit: names document, model, tensor, and how to mend.
    """
    models: dict[str, Model] = {}
    stages: dict[str, MergePlan] = {}
    opened: dict[str, Checkpoint] = {}

    def find(reference: str, where: Where | None) -> Model:
        if reference not in models:
            opened[reference] = open_checkpoint(reference, where)
            models[reference] = stored_model(opened[reference])
        return models[reference]

    def find_vocabulary(reference: str, where: Where | None) -> Vocabulary:
        known = models.get(reference)
        return Vocabulary.of(tokenizer_folder(reference, where)) if known is None else known.vocabulary

    result: MergePlan | None = None
    begin, in_memory = held_stage(recipe, held or {})
    if in_memory is not None:
        (name, key), stage = in_memory, (held or {})[in_memory[1]]
        stages[name], models[name] = stage, staged_model(name, stage, key)
        opened.update({checkpoint.reference: checkpoint for checkpoint in stage.checkpoints})
    for document in recipe.documents[begin:]:
        planner = _DocumentPlanner(document, find, find_vocabulary, truncate_embeddings, mix_types, opened)
        jobs, lead = planner.jobs(), planner.lead
        result = MergePlan(
            config=planner.config(jobs),
            jobs=jobs,
            modules=planner.modules(),
            tied=planner.tied(),
            embedding=planner.donor.embedding,
            vocabulary=planner.vocabulary,
            donor=stages[lead].donor if lead in stages else opened[lead],
            checkpoints=tuple(opened.values()),
            notes=(*(result.notes if result else ()), *planner.notes()),
        )
        if document.name:
            stages[document.name] = result
            models[document.name] = staged_model(document.name, result)
    assert result is not None, "a recipe has at least one document"
    return result


def _passing(job: MergeJob, operand: Operand) -> MergeJob:
    """A job that passes an operand through, with the dtypes of another."""
    return replace(job, method=_ALONE, inputs=(operand,), base=None, parameters=_ALONE_PARAMETERS)


class _DocumentPlanner:
    """Plans one document."""

    def __init__(
        self,
        document: Document,
        find: Callable[[str, Where | None], Model],
        find_vocabulary: Callable[[str, Where | None], Vocabulary],
        truncate: bool,
        mix_types: bool,
        opened: Mapping[str, Checkpoint],
    ) -> None:
        self.document, self._find_vocabulary, self._truncate = document, find_vocabulary, truncate
        first = document.all_slices[0].inputs[0]
        self.lead = document.base or first.model
        self.donor = find(self.lead, document.where if document.base else first.where)
        named: dict[str, Model] = {}

        def find_alike(reference: str, where: Where | None) -> Model:
            if reference not in named:
                named[reference] = find(reference, where).named_like(self.donor)
            return named[reference]

        self._find = find_alike
        self.parts = [
            Stacking(document, m, self._module(m), self.donor, find_alike, mix_types) for m in self._modules()
        ]
        members = [m.model for part in self.parts for group in part.groups for m in group.members]
        self._models = {model.reference: model for model in (self.donor, *members)}
        self._uneven = UnevenTensors(self.donor, self.lead, list(self._models.values()))
        self._padding: list[str] = []
        self._settings = Settings()
        self._alignment = self._aligned()
        self._core = CorePlanner(document, opened, _passing) if document.core else None

    @property
    def vocabulary(self) -> Vocabulary:
        """The output's vocabulary."""
        return self._alignment.vocabulary if self._alignment else self.donor.vocabulary

    def jobs(self) -> dict[str, MergeJob]:
        """The jobs of all output tensors, in the order of the model."""
        outputs: list[OutputTensor] = []
        added: dict[str, TensorRef] = {}
        for part in self.parts:
            remaining, kept = self._uneven.settle_ends(part, list(part.outputs()))
            outputs += remaining
            added |= kept
        fused = self._fused(outputs) if self.document.fused_experts else {}
        jobs = [fused.get(output.name) or self._job(output) for output in outputs]
        passed = [self._passed(name, tensor) for name, tensor in added.items()]
        if self._core is not None:
            self._core.check_rank()
        return {job.tensor: job for job in (*jobs, *passed, *self._unnamed()) if job is not None}

    def notes(self) -> list[str]:
        """Lines on what not all models store, once the jobs are planned."""
        return [*self._padding, *self._uneven.told()]

    def config(self, jobs: Mapping[str, MergeJob]) -> dict[str, Any]:
        """The output's configuration: the donor's, changed where the merge changes the model."""
        main, elements = self._main(), Counter[str]()
        for job in jobs.values():
            elements[job.out] += math.prod(job.shape)
        runs: list[LayerRun] = []
        for group, length in zip(main.groups, main.lengths, strict=True) if main else ():
            runs.append((group.members[0].model.config, group.members[0].start, length))
        config = output_config(self.donor.config, runs, elements.most_common(1)[0][0], self.tied())
        self._set_layers(config)
        if self._alignment or self._truncate:
            axes = self._axes
            rows = next((job.shape[axes[name]] for name, job in jobs.items() if name in axes), None)
            config = config if rows is None else with_rows(config, rows)
        if self._alignment:
            lost = lost_token(config, self.donor.vocabulary, self.vocabulary, self.donor.rows, self._alignment.rows)
            if lost is not None:
                policy = self.document.tokenizer
                mend = "keep it: `tokens: {TOKEN: {source: MODEL}}` under tokenizer, or the models' own vocabulary"
                raise InputError(lost, mend, policy.where if policy else self.document.where)
            config = follow_tokens(config, self.donor.vocabulary, self.vocabulary)
        return config

    def modules(self) -> Modules:
        """The output's modules."""
        modules = self.donor.modules
        stacks = {part.name or modules.main: part.stack for part in self.parts}
        return replace(modules, stacks={**modules.stacks, **stacks})

    def tied(self) -> bool:
        """Whether the output's head is its embeddings: so it is in all models that embeddings or head come from."""
        main = self._main()
        if main is None:
            return self.donor.tied
        return all(m.model.tied for m in (*main.groups[0].members, *main.groups[-1].members))

    def _modules(self) -> tuple[Module, ...]:
        """The recipe's modules. A recipe that is written with `models` merges each module of the models by itself."""
        document = self.document
        if document.modules:
            return document.modules
        names = self.donor.modules.stacks if document.whole else [""]
        return tuple(Module(name, document.slices, where=document.where) for name in names)

    def _module(self, module: Module) -> str | None:
        """The models' name of a module; None if the models have only one."""
        names = self.donor.modules.stacks
        name = ALIASES.get(module.name, module.name)
        if name and name not in names:
            raise InputError(f"the models have no module {name!r}", suggestion(name, names), module.where)
        return name if len(names) > 1 and name else None

    def _main(self) -> Stacking | None:
        """The part that merges the language model's layers."""
        return next((p for p in self.parts if p.name in (None, self.donor.modules.main)), None)

    def _set_layers(self, config: dict[str, Any]) -> None:
        """Set the layers of modules beside the language model. InputError if the configuration has no key for them."""
        modules = self.donor.modules
        for part in self.parts:
            if part.name is None or part.stack.layers == self.donor.stack(part.name).layers:
                continue
            if part.name == modules.main and "encoder" not in modules.stacks:
                continue
            path = modules.keys.get(part.name)
            if path is None:
                problem = f"the configuration of {self.lead} does not tell the layers of {part.name}"
                raise InputError(problem, "keep as many as it has", self.document.where)
            holder = config
            for key in path[:-1]:
                holder = holder[key]
            before, holder[path[-1]] = holder[path[-1]], part.stack.layers
            if part.name == "encoder":  # the same number under the name that all models share
                for key in LAYER_KEYS:
                    if config.get(key) == before:
                        config[key] = part.stack.layers

    def _aligned(self) -> Alignment | None:
        policy = self.document.tokenizer or self._padded()
        if policy is None:
            return None
        return Alignment(policy, list(self._models.values()), self._find, self._find_vocabulary)

    def _padded(self) -> TokenizerPolicy | None:
        """The base's tokens, where all models have the same ones, and embeddings of different size: the rest of the
        rows is padding."""
        models = list(self._models.values())
        rows = {m.tensors[m.embedding].shape[0] for m in models if m.embedding in m.tensors}
        if self._truncate or len(rows) < 2:
            return None
        tokens = models[0].vocabulary
        try:
            alike = all(m.vocabulary.readable and m.vocabulary.tokens == tokens.tokens for m in models)
        except InputError:
            return None
        if not alike or tokens.rows > min(rows):
            return None
        sizes = " and ".join(map(str, sorted(rows)))
        self._padding.append(f"embeddings have {sizes} rows for the same {tokens.rows} tokens: padding is left out")
        return TokenizerPolicy("base", where=self.document.where)

    def _unnamed(self) -> Iterator[MergeJob]:
        """The jobs of the tensors of modules that the recipe does not name: the donor's, as they are."""
        if not self.document.modules:
            return
        named = {part.name or self.donor.modules.main for part in self.parts}
        for name, tensor in self.donor.tensors.items():
            if self.donor.modules.of(name) not in named:
                yield self._passed(name, tensor)

    def _passed(self, name: str, tensor: TensorRef) -> MergeJob:
        """The job of a tensor that is one model's, as it is."""
        copied = tensor.dtype not in FLOATS
        return MergeJob(
            tensor=name,
            method=COPY if copied else _ALONE,
            inputs=(tensor.operand,),
            base=None,
            parameters={} if copied else _ALONE_PARAMETERS,
            work=tensor.dtype,
            out=tensor.dtype if copied else self.document.out_dtype or self.document.dtype or tensor.dtype,
            shape=tensor.shape,
        )

    def _fused(self, outputs: Sequence[OutputTensor]) -> dict[str, MergeJob]:
        """The jobs of the experts, of a recipe that merges those of a layer as one tensor."""
        jobs = {}
        for stack in expert_stacks(outputs, self.donor.config, self.document.where):
            merged = self._merged(stack.output, [stack.of_model(i) for i in range(len(stack.output.names))])
            for name, block in stack.written(merged).items():
                jobs[name] = self._passed(name, TensorRef(block, block.shape, merged.out))
        return jobs

    def _job(self, output: OutputTensor) -> MergeJob | None:
        """The job of an output tensor; None if it is left out, as not all models store it."""
        group, name = output.group, output.name
        found = [m.model.find(inner) for m, inner in zip(group.members, output.names, strict=True)]
        stored = [tensor for tensor in found if tensor is not None]
        if len(stored) < len(found):
            keeper = self._uneven.keeper(output, found)
            if keeper is None:
                return None
            alone = replace(group, members=(group.members[keeper],))
            return self._passed(name, self._fitted(name, alone, [t for t in [found[keeper]] if t])[0])
        tensors = self._fitted(name, group, stored)
        if any(tensor.dtype not in FLOATS for tensor in tensors):
            return MergeJob(
                tensor=name,
                method=COPY,
                inputs=tuple(t.operand for t in (tensors[:1] if is_counter(name) else tensors)),
                base=None,
                parameters={},
                work=tensors[0].dtype,
                out=tensors[0].dtype,
                shape=tensors[0].shape,
            )
        return self._merged(output, tensors)

    def _merged(self, output: OutputTensor, tensors: Sequence[TensorRef]) -> MergeJob:
        """The job that merges the tensors of an output tensor's models by the document's method."""
        document, group, name = self.document, output.group, output.name
        rows = list(zip(group.members, output.names, tensors, strict=True))
        merged = {id(m) for m in group.merged}
        chosen = [row for row in rows if id(row[0]) in merged]
        base = next((tensor.operand for member, _, tensor in rows if id(member) not in merged), None)
        members, shape = [(member.input, inner) for member, inner, _ in chosen], tensors[0].shape
        parameters = (
            _ALONE_PARAMETERS if group.alone else self._settings.of(group.levels, members, name, output.t, shape)
        )
        work = document.dtype or promoted([tensor.dtype for tensor in tensors])
        job = MergeJob(
            tensor=name,
            method=_ALONE if group.alone else document.method,
            inputs=tuple(tensor.operand for _, _, tensor in chosen),
            base=base,
            parameters=parameters,
            work=work,
            out=document.out_dtype or work,
            shape=shape,
            seed=document.seed,
        )
        return job if self._core is None or group.alone else self._core.job(job)

    def _fitted(self, name: str, group: Group, stored: Sequence[TensorRef]) -> Sequence[TensorRef]:
        """The tensors, brought to one vocabulary. InputError if their shapes differ all the same."""
        tensors = list(stored)
        axis = self._axis(name, stored)
        if axis is not None and self._alignment:
            models = [m.model for m in group.members]
            tensors = self._alignment.tensors(axis, models, tensors, group.reference, self.document.dtype)
        elif axis is not None and self._truncate:
            tensors = truncated(tensors, axis)
        for member, tensor in zip(group.members, tensors, strict=True):
            if tensor.shape != tensors[0].shape:
                first = group.members[0].input.model
                problem = f"{name} is {list(tensor.shape)} in {member.input.model}, {list(tensors[0].shape)} in {first}"
                mend = "merge models of one architecture"
                if axis is not None:
                    problem += ": their vocabularies differ"
                    mend = "add tokenizer_source: union (every model's tokens) or base (the base's tokens)"
                raise InputError(problem, mend, member.input.where)
        return tensors

    def _axis(self, name: str, stored: Sequence[TensorRef]) -> int | None:
        """The dimension of an output tensor that counts tokens; None if none does, or the others are not alike. It is
        asked for only where it may matter."""
        alike = len({tensor.shape for tensor in stored}) == 1
        if alike and not self._alignment:
            return None
        axis = self._axes.get(name)
        others = {tuple(n for i, n in enumerate(tensor.shape) if i != axis) for tensor in stored}
        return axis if len(others) == 1 else None

    @cached_property
    def _axes(self) -> Mapping[str, int]:
        """The dimension that counts tokens, for each tensor that has one."""
        return vocabulary_axes(self.donor.config, {name for model in self._models.values() for name in model.tensors})
