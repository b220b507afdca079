"""Settles the output tensors that not all models of a document store (by the rules of `checkpoints.layouts.uneven`)."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.checkpoints.layouts.uneven import Role, fate, roles, told
from evomerge.errors import InputError
from evomerge.merging.plan.jobs import Model, TensorRef
from evomerge.merging.plan.stacking import OutputTensor, Stacking


class UnevenTensors:
    """Keeps what was decided for a document's tensors that not all of its models store.

    Attributes:
        kept: for each tensor that is the base's, the models that lack it.
        left: for each tensor that is left out, the models that have it.
    """

    def __init__(self, donor: Model, lead: str, models: Sequence[Model]) -> None:
        """`lead`: what the recipe calls the donor, the model that is the base here."""
        self._donor, self._lead, self._models = donor, lead, models
        self._known: dict[str, dict[str, Role]] = {}
        self.kept: dict[str, list[str]] = {}
        self.left: dict[str, list[str]] = {}

    def keeper(self, output: OutputTensor, found: Sequence[TensorRef | None]) -> int | None:
        """The member of the tensor's group whose tensor is kept as it is; None if the output goes without.

        Raises:
            InputError: the model needs the tensor, and a model lacks it.
        """
        group, name = output.group, output.name
        members = list(zip(group.members, output.names, found, strict=True))
        base = (group.reference or self._donor).reference
        having = [(m, inner) for m, inner, tensor in members if tensor is not None]
        lacking = [(m, inner) for m, inner, tensor in members if tensor is None]
        of_base = next((self._role(m.model, inner) for m, inner in having if m.model.reference == base), None)
        others = [self._role(m.model, inner) for m, inner in having if m.model.reference != base]
        match fate(of_base, others):
            case "keep":
                self.kept[name] = [m.input.model for m, _ in lacking]
                return next(i for i, (m, _, tensor) in enumerate(members) if tensor and m.model.reference == base)
            case "leave":
                self.left[name] = [m.input.model for m, _ in having]
                return None
        member, inner = lacking[0]
        problem = f"{member.input.model} has no tensor {inner}, which another model of the merge has"
        raise InputError(problem, "merge models of one architecture", member.input.where)

    def settle_ends(
        self, part: Stacking, outputs: Sequence[OutputTensor]
    ) -> tuple[list[OutputTensor], dict[str, TensorRef]]:
        """Settles what stands before and behind the layers of a stack, where its first or its last models give it and
        the donor is not among these: of what no model reads, what the donor does not store is left out, and what it
        alone stores is kept.

        Returns:
            The outputs that remain, and the donor's tensors that come to them, by their names in the output.
        """
        ends = part.groups[0], part.groups[-1]
        if all(any(m.model.reference == self._donor.reference for m in group.members) for group in ends):
            return list(outputs), {}
        own, named = part.outside_of(self._donor), {output.name for output in outputs}
        idle = {out: name for out, name in own.items() if out not in named and self._unread(self._donor, name)}
        self.kept |= {out: [m.input.model for m in ends[1].members] for out in idle}
        left: dict[str, list[str]] = {}
        for member in (m for group in part.groups for m in group.members):
            for out, name in part.outside_of(member.model).items():
                if out not in own and self._unread(member.model, name):
                    left.setdefault(out, []).append(member.input.model)
        self.left |= left
        return [o for o in outputs if o.name not in left], {out: self._donor.tensors[idle[out]] for out in idle}

    def _unread(self, model: Model, name: str) -> bool:
        return self._role(model, name) == "unread"

    def told(self) -> list[str]:
        """Lines on what was decided."""
        return told(self.kept, self.left, self._lead)

    def _role(self, model: Model, name: str) -> Role:
        """What the tensor is to the model that stores it. All of a model's that may be asked for are found at once."""
        known = self._known.setdefault(model.reference, {})
        if name not in known:
            others = [other.tensors for other in self._models if other.reference != model.reference]
            asked = [n for n in model.tensors if not all(n in tensors for tensors in others)]
            named = self._donor.config.get("architectures")
            known |= roles(model.config, named, model.stack(None), {*asked, name})
        return known[name]
