"""Settles the output tensors that not all models of a document store (by the rules of `checkpoints.layouts.uneven`)."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.checkpoints.layouts.uneven import Role, fate, roles, told
from evomerge.errors import InputError
from evomerge.merging.plan.jobs import Model, TensorRef
from evomerge.merging.plan.stacking import Member, OutputTensor


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
        of_base = next((self._role(m, inner) for m, inner in having if m.model.reference == base), None)
        others = [self._role(m, inner) for m, inner in having if m.model.reference != base]
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

    def told(self) -> list[str]:
        """Lines on what was decided."""
        return told(self.kept, self.left, self._lead)

    def _role(self, member: Member, name: str) -> Role:
        """What the tensor is to the model that stores it. All of a model's that may be asked for are found at once."""
        model = member.model
        known = self._known.setdefault(model.reference, {})
        if name not in known:
            others = [other.tensors for other in self._models if other.reference != model.reference]
            asked = [n for n in model.tensors if not all(n in tensors for tensors in others)]
            named = self._donor.config.get("architectures")
            known |= roles(model.config, named, model.stack(None), {*asked, name})
        return known[name]
