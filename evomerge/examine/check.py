"""`evomerge.check`: what can go wrong with a merge, and what to try, from headers and samples of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evomerge.cards.licences import Licence, licence_of
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.pickled import with_pickles
from evomerge.checkpoints.preflight import check_family, check_stackable, tensor_notes
from evomerge.checkpoints.samples.deltas import Deltas, measure
from evomerge.checkpoints.samples.spectrum import Spectrum, spectrum
from evomerge.checkpoints.tokenizer import vocabulary
from evomerge.errors import InputError
from evomerge.evaluator.device import parse_memory
from evomerge.examine.checks.advice import WEIGHTS_FIRST, Advice, advice
from evomerge.examine.checks.findings import Finding, note, problem
from evomerge.examine.checks.licences import compare_licences
from evomerge.examine.checks.lineage import lineage, unrelated
from evomerge.examine.checks.parents import Parents, open_parents
from evomerge.examine.checks.signals import Signal, signals
from evomerge.examine.checks.tokens import (
    compare_configs,
    compare_generation,
    compare_special_tokens,
    compare_templates,
    compare_tokens,
    lost_tokens,
)
from evomerge.study.observer import Observer


@dataclass(frozen=True)
class ModelFacts:
    """What the headers and files of one model say.

    Attributes:
        reference: as it was given.
        architecture: the class that its configuration names, else its model type.
        elements: of all tensors.
        tokens: of its tokenizer; None if there is none that can be read.
        licence: as its card names it.
    """

    name: str
    reference: str
    architecture: str
    layers: int
    tensors: int
    elements: int
    dtype: str
    quantized: str | None
    tokens: int | None
    licence: str | None


@dataclass
class Checked:
    """The result of a check.

    Attributes:
        models: base first.
        findings: what is wrong, doubtful, or good to know.
        deltas, spectrum: sampled from the weights; None where no source's could be compared with the base's.
        signals: numbers of the sources together, those first that say how much a merge loses.
        advice: what to try, with reasons.
        plan: the memory of a search, and the time of a candidate, in words.
    """

    models: list[ModelFacts]
    findings: list[Finding] = field(default_factory=list)
    deltas: Deltas | None = None
    spectrum: Spectrum | None = None
    signals: list[Signal] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    plan: dict[str, str] = field(default_factory=dict)

    @property
    def mergeable(self) -> bool:
        """Whether nothing speaks against merging them."""
        return not any(finding.level == "problem" for finding in self.findings)


@with_pickles
def check(
    models: str | Path | Sequence[str | Path],
    *,
    require_token: Iterable[str] = (),
    device: str = "auto",
    memory: str | None = None,
    allow_pickle: bool = False,
    observer: Observer | None = None,
) -> Checked:
    """Looks for what makes merges fail, in seconds: reads headers, and some megabytes of the weights.

    Args:
        models: a search space, a mergekit recipe, or a base and its sources (folders or hub ids). Of models on the hub
            only headers are read.
        require_token: tokens that the merged model must have.
        device, memory: where a search would run, as `search` takes them.
        allow_pickle: as in `search`.
        observer: is told what happens.

    Raises:
        InputError: a file or a model is wrong, or is none.
    """
    observer = observer or Observer()
    parse_memory(memory)
    named = [models] if isinstance(models, str | Path) else list(models)
    parents = open_parents(named, lambda: observer.phase("reading headers"))
    result = Checked([_facts(name, checkpoint) for name, checkpoint in parents.all.items()])
    fitting, result.findings = _fitting(parents)
    result.findings += _compared(parents, require_token)
    result.findings += compare_licences({model.name: Licence(model.licence) for model in result.models})
    if fitting:
        observer.phase("sampling weights")
        result.deltas = measure(
            parents.base, fitting, progress=lambda share: observer.progress("sampled tensors", share)
        )
        result.findings += _sampled(result, parents, fitting)
    # torch takes a second to import: what is wrong with the weights is known before.
    from evomerge.examine.checks.plan import planned

    dtype = parents.space.dtype if parents.space is not None and parents.space.dtype else parents.base.dtype
    result.plan, doubts = planned(parents.base, parents.all, dtype, device, memory)
    result.findings += doubts
    return result


def _facts(name: str, checkpoint: Checkpoint) -> ModelFacts:
    named = checkpoint.config.get("architectures")
    tokens = vocabulary(checkpoint)
    return ModelFacts(
        name=name,
        reference=checkpoint.reference,
        architecture=str(named[0] if isinstance(named, list) and named else checkpoint.config.get("model_type", "-")),
        layers=checkpoint.layers,
        tensors=len(checkpoint.tensors),
        elements=sum(info.elements for info in checkpoint.tensors.values()),
        dtype=checkpoint.dtype,
        quantized=str(checkpoint.quantization) if checkpoint.quantization is not None else None,
        tokens=len(tokens) if tokens else None,
        licence=licence_of(checkpoint).name,
    )


def _fitting(parents: Parents) -> tuple[dict[str, Checkpoint], list[Finding]]:
    """The sources that have the base's tensors, and what is wrong with the others. Whether a recipe fits its models is
    told by planning it: it may stack other layers. Models of a path need to have like layers only."""
    fitting, findings = {}, []
    for name, source in parents.sources.items():
        try:
            check_family(parents.base, {name: source}, lambda _: None)
            fitting[name] = source
        except InputError as error:
            unlike = _unlike(parents, name, source) if parents.stacked else error
            if parents.recipe is None and unlike is not None:
                findings.append(problem("tensors", f"{unlike.problem}; {unlike.mend}"))
            else:
                findings.append(note("tensors", f"not compared: {error.problem}"))
    if parents.recipe is not None:
        from evomerge.merging.plan.plan import plan
        from evomerge.merging.resident.bank import SourceBank

        try:
            planned = plan(parents.recipe, SourceBank().open)
            findings += [note("tensors", line) for line in planned.notes]
        except InputError as error:
            findings.append(problem("recipe", str(error)))
    elif fitting and not parents.stacked:
        findings += [note("tensors", line) for line in tensor_notes(parents.base, fitting, usual=True)]
    same = {checkpoint.resolved(): name for name, checkpoint in reversed(parents.all.items())}
    for name, checkpoint in parents.sources.items():
        if same[checkpoint.resolved()] != name:
            findings.append(problem("models", f"{name} is the same checkpoint as {same[checkpoint.resolved()]}"))
    return fitting, findings


def _unlike(parents: Parents, name: str, source: Checkpoint) -> InputError | None:
    """What keeps a source's layers out of the stacks that a search makes."""
    try:
        check_stackable({"base": parents.base, name: source}, lambda _: None)
    except InputError as error:
        return error
    return None


def _compared(parents: Parents, required: Iterable[str]) -> Iterator[Finding]:
    """What files beside the weights say."""
    models = parents.all
    yield from compare_tokens(parents.base, parents.sources, parents.tokenizer)
    yield from lost_tokens(parents.base, parents.sources, parents.tokenizer, required)
    yield from compare_special_tokens(models)
    yield from compare_templates(models)
    yield from compare_generation(models)
    yield from compare_configs(models)
    dtypes = {name: model.dtype for name, model in models.items()}
    if len(set(dtypes.values())) > 1:
        shown = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        yield note("dtype", f"{shown}: the merge has the base's unless `dtype` says another")


def _sampled(result: Checked, parents: Parents, fitting: dict[str, Checkpoint]) -> list[Finding]:
    """What samples of the weights say; fills in spectrum, signals and advice."""
    deltas = result.deltas
    assert deltas is not None
    findings = [note("samples", f"{count} tensors are not compared: {why}") for why, count in deltas.unread.items()]
    if not deltas.tensors:
        return findings
    if parents.stacked:  # differences of weights tell of their merge
        findings += [f for f in lineage(deltas, None, ()) if f.topic == "weights"]
        result.deltas = None
        result.advice = [WEIGHTS_FIRST] if not unrelated(deltas) else []
        return findings
    result.spectrum = spectrum(parents.base, fitting)
    aligned = parents.space.to_align if parents.space is not None else ()
    told = lineage(deltas, result.spectrum, parents.methods, aligned)
    if parents.stands_in:
        # How far two fine-tunes are apart tells nothing of how either was trained
        text = f"the recipe has no base: {parents.base.reference} stands for it, and what is sampled are differences"
        return [*findings, note("lineage", f"{text} from it"), *(f for f in told if f.level == "problem")]
    findings += told
    result.signals = signals(deltas, result.spectrum)
    related = [source for source in deltas.sources if source not in unrelated(deltas)]
    if related == list(deltas.sources):
        trials = (parents.space.trials if parents.space is not None else None) or 100
        moves = parents.space is not None and parents.space.dataflow is not None
        result.advice = advice(deltas, parents.base.layers, trials, blocks=moves)
    return findings
