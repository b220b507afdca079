"""Merges the experts of a layer as one tensor (`experts: fused`), as mergekit 0.1.5 does with transformers 5.

Checkpoints store a matrix for each expert, and transformers stacks them when it loads: a parameter [experts, rows,
columns], in which a gate may stand above its projection. What a method does over a whole tensor (trim, normalise, draw)
it then does over the stack. The merged stack is written as it was stored, in blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints.lora_names import Parameter, ParameterNames
from evomerge.errors import InputError, Where
from evomerge.merging.plan.alignment import promoted
from evomerge.merging.plan.jobs import Block, BlockOf, MergeJob, StackedMatrices, TensorRef
from evomerge.merging.plan.once import Once
from evomerge.merging.plan.stacking import Member, OutputTensor

_EXPERT = re.compile(r"(^|\.)experts\.\d+\..*weight$")


@dataclass(frozen=True)
class ExpertStack:
    """The stack of one kind of a layer's experts.

    Attributes:
        output: its name in memory, and that in each model of its group.
        shape: [experts, rows, columns].
        blocks: the output tensors that it is written as, with their places.
    """

    output: OutputTensor
    shape: tuple[int, ...]
    blocks: tuple[tuple[OutputTensor, Block], ...]

    def of_model(self, number: int) -> TensorRef:
        """The stack of one model of the group."""
        found = [
            (block, output.group.members[number].model.find(output.names[number])) for output, block in self.blocks
        ]
        parts = tuple((block, tensor.operand) for block, tensor in found if tensor is not None)
        dtype = promoted([tensor.dtype for _, tensor in found if tensor is not None])
        return TensorRef(StackedMatrices(("stacked", parts), self.shape, dtype, parts), self.shape, dtype)

    def written(self, job: MergeJob) -> dict[str, BlockOf]:
        """The blocks of the merged stack, by the names of the output tensors."""
        once = Once(len(self.blocks))
        return {output.name: BlockOf(job, block, once) for output, block in self.blocks}


def expert_stacks(outputs: Sequence[OutputTensor], config: Mapping[str, Any], where: Where) -> list[ExpertStack]:
    """The stacks of a document's experts.

    Args:
        outputs: its output tensors.
        config: the configuration of its base.
        where: for errors.

    Raises:
        InputError: transformers does not stack these experts, or a model stores them in another way.
    """
    stored = {output.name: tensor for output in outputs if (tensor := _first(output)) is not None}
    names, by_name = ParameterNames(stored, config), {output.name: output for output in outputs}
    stacks = [_stack(name, parameter, names, by_name) for name, parameter in names.stacked().items()]
    known = {output.name for stack in stacks for output, _ in stack.blocks}
    for output in outputs:
        if output.name not in known and _EXPERT.search(output.name):
            problem = f"{output.name} is no part of a stack of experts in transformers"
            raise InputError(problem, "write experts: each", where)
        if output.name in known and any(m.model.find(n) is None for m, n in _members(output)):
            raise InputError(f"not all models have {output.name}", "write experts: each", where)
    return stacks


def _stack(name: str, parameter: Parameter, names: ParameterNames, outputs: Mapping[str, OutputTensor]) -> ExpertStack:
    blocks = tuple((outputs[part.stored], Block(part.expert or 0, *part.rows)) for part in parameter.parts)
    first = blocks[0][0]
    output = OutputTensor(first.group, name, tuple(map(names.loaded, first.names)), first.t)
    return ExpertStack(output, parameter.shape, blocks)


def _members(output: OutputTensor) -> list[tuple[Member, str]]:
    return list(zip(output.group.members, output.names, strict=True))


def _first(output: OutputTensor) -> TensorRef | None:
    """The tensor of the first model that has it."""
    return next((tensor for m, n in _members(output) if (tensor := m.model.find(n)) is not None), None)
