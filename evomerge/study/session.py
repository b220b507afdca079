"""A run in progress: scores the references, chooses how each trial is scored, and keeps what the optimizer is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from evomerge.errors import InputError, StoppedError, TrialError
from evomerge.evaluator.executor import Executor, run_all
from evomerge.evaluator.jobs import EvalTask
from evomerge.evaluator.watched import WatchedExecutor
from evomerge.optimize.base import Generation, Proposal, Reason, Start
from evomerge.optimize.declarations import uses_gradient
from evomerge.optimize.replay import Asked
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.gates import scales, settle
from evomerge.scoring.item_noise import ItemNoise
from evomerge.space.base import FORMER_WINNER
from evomerge.space.reference_genomes import ReferenceGenome
from evomerge.space.space import Space
from evomerge.study.after.transfer import StartingPoint
from evomerge.study.gradients.trial_gradients import TrialGradients
from evomerge.study.observer import Observer
from evomerge.study.prepare import Plan
from evomerge.study.racing.racer import Racer, applicable, is_cheap
from evomerge.study.run.evaluation import Criteria, TrialResult
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.notes import holdout_note, metric_name, released_note, study_note
from evomerge.study.run.release import Release, looked
from evomerge.study.run.store import Store, duplicate_label
from evomerge.study.run.trial import Trial
from evomerge.study.subsets import propose
from evomerge.study.trials import AIM, Trials
from evomerge.types import Outcome

_SUBSETS = "subsets"
"""The fact that holds the subsets of a pool that are tried first: label -> sources."""

_ERRORS = "errors"
"""The fact that holds the references' `Trial.errors`: label -> slice -> error."""


class Session:
    """One process's session of a run. It proposes nothing; trials are begun and ended by `trials`.

    Attributes:
        trials: begins and ends them.
        racer: None where every candidate is scored on all items.
        gradients: None where the optimizer needs none.
    """

    def __init__(
        self,
        folder: RunFolder,
        store: Store,
        plan: Plan,
        executor: Executor,
        observer: Observer,
        starting_point: StartingPoint | None = None,
    ) -> None:
        """`starting_point`: the genome of another run with which the search begins."""
        self.folder, self.plan, self.observer = folder, plan, observer
        mend = f"copy the file back with which the run was launched, then `evomerge resume {folder.handle}`"
        self.executor: Executor = WatchedExecutor(executor, plan.checkpoints.values(), mend)
        self.starting_point = starting_point
        store.engines = executor.info.engines
        self.trials = Trials(
            folder,
            store,
            Criteria(plan.fitness, executor.info),
            observer,
            seed=plan.spec.optimizer["seed"],
            asynchronous=plan.spec.asynchronous,
            num_workers=executor.num_workers,
        )
        self.racer: Racer | None = None
        self.gradients: TrialGradients | None = None

    @property
    def store(self) -> Store:
        return self.trials.store

    @property
    def leaderboard(self) -> Leaderboard:
        return self.trials.leaderboard

    def describe(self, release: Release | None = None) -> None:
        """Writes down what Optuna's tools show of the study: the name of its objective, what it is, how it ended."""
        plan, slices = self.plan, self.executor.info.slices
        self.store.name_metric(metric_name(plan.fitness))
        parts = [study_note(self.folder.name, plan.spec, plan.fitness, slices, len(plan.space.dimensions))]
        if release is not None:
            parts.insert(0, released_note(release.leaderboard, release.winner))
            for trial in release.leaderboard.trials:
                self.store.annotate(holdout_note(release.leaderboard, trial), trial)
        self.store.annotate("\n\n".join(parts))

    # References: base, sources and uniform average, scored first; they settle the relative floors.

    def score_references(self) -> None:
        """Scores every reference that has no trial yet, and every parent whose trial failed in an earlier session.
        InputError where a parent cannot be scored."""
        labels = [*self._references()]
        self.observer.stage("references", *self._references_done(labels))
        for trial in run_all(self.executor, map(self._reference_scored, self._references_to_score())):
            self.observer.stage("references", *self._references_done(labels))
            if trial.state == "failed" and trial.is_parent:
                problem = f"{trial.label} could not be scored ({trial.reason})"
                mend = "resume if the cause was outside the run's files, else launch a new run"
                raise InputError(problem, f"{mend}; the log is {self.folder.log}")
        self._settle()

    def _reference_scored(self, trial: Trial) -> EvalTask[Trial]:
        done = self.trials.end(trial, (yield from self.trials.evaluate(trial)))
        former = self.plan.former if done.label == FORMER_WINNER else None
        if former is not None and done.digest not in (None, former.digest):
            self.observer.warn(f"{done.name} should have the weights of {former}, and has others")
        return done

    def _references_done(self, labels: Sequence[str]) -> tuple[int, int]:
        """How many references have ended, and how many there are."""
        ended = {t.label for t in self.store.trials() if t.kind == "reference" and t.state != "running"}
        return sum(label in ended for label in labels), len(labels)

    def _references_to_score(self) -> Iterator[Trial]:
        for label, recipe in self._references().items():
            known = [t for t in self.store.trials() if t.kind == "reference" and t.label == label]
            usable = [t for t in known if t.state != "failed" or not t.is_parent]
            trial = usable[-1] if usable else self.trials.begin("reference", label, {}, recipe)
            if trial.state == "running":
                yield trial

    def _references(self) -> dict[str, Recipe]:
        return self.plan.space.references()

    def _settle(self) -> None:
        """Turns the floors into numbers, by the references' scores, and writes them down for readers."""
        trials = self.store.trials()
        parents = {t.label: t.slice_scores for t in trials if t.is_parent and t.state == "complete"}
        gates = settle(self.executor.info.slices, parents)
        floors = Floors(gates, scales(parents, gates), traded=self.plan.fitness.traded)
        self._know_item_noise()
        self.trials.settle(floors)
        self.aim()
        self.store.record("gates", floors.to_data())
        self._warn_of_flat_slices()
        self.trials.keep_best()
        self._choose_means()

    def aim(self) -> None:
        """Lets what the optimizer is told aim above the floors, by the facts of the run."""
        self.trials.aim(AIM if _ERRORS in self.store.facts else 0.0, looked(self.store).raised)

    def _know_item_noise(self) -> None:
        """Takes in how the floors depend on the references' items. A run of an older version, which aimed at the floors
        themselves, goes on so."""
        references = [t for t in self.store.trials() if t.kind == "reference" and t.state == "complete"]
        scored = {t.label: self.trials.scored(t) for t in references}
        parents = {t.label: scored[t.label] for t in references if t.is_parent}
        self.trials.item_noise = noise = ItemNoise(self.executor.info, parents)
        if _ERRORS not in self.store.facts and "gates" not in self.store.facts:
            self.store.record(_ERRORS, {label: noise.errors(reference) for label, reference in scored.items()})

    def _warn_of_flat_slices(self) -> None:
        """A slice on which all references score the same more likely has a mistake in its task than in its models."""
        scores = [t.scores for t in self.store.trials() if t.kind == "reference" and t.scores]
        models = "base and sources" if self.plan.spec.stacks else "base, sources and average"
        for name, info in self.executor.info.slices.items():
            if info.is_measure:
                continue  # models of one family have one size
            values = {s[name] for s in scores}
            if len(values) == 1 and len(scores) > 1:
                self.observer.warn(f"slice {name}: {models} all score {info.show(values.pop()):.4f}; check its task")

    def _choose_means(self) -> None:
        """Pruning and gradients, as the files ask for them. Both go by the scored references."""
        spec = self.plan.spec
        self.racer = self.make_racer()
        if self.racer is None and self.plan.fitness.auto_pruning:
            reason = "which takes less time than to prune" if self._is_cheap() else "since they are few"
            self.observer.note(f"items: every candidate is scored on all of the search split, {reason}")
        if self.racer is not None:
            alone = "; asynchronous candidates do not race" if spec.asynchronous else ""
            self.observer.note(f"items: {self.racer.schedule}{alone}")
        if uses_gradient(spec.optimizer["name"], spec.options):
            space = self.plan.space
            assert isinstance(space, Space), "paths have no slopes (`prepare.check_files`)"
            self.gradients = TrialGradients(self.trials, self.trials.as_ended, self.executor, space)
            self.gradients.score_references()

    def make_racer(self) -> Racer | None:
        """A racer that goes by the scored references; None where no candidate is pruned."""
        spec = self.plan.spec
        pruning = applicable(spec, self.plan.fitness)
        if not pruning or self._is_cheap():
            return None
        racer = Racer(self.trials, self.trials.as_ended, self.executor, pruning, spec.optimizer["seed"])
        # Pruning costs nothing where nothing can be pruned, but to split an evaluation up does.
        return racer if racer.schedule.ladder or not self.plan.fitness.auto_pruning else None

    def _is_cheap(self) -> bool:
        """Whether `pruning: auto` scores everything, as little is to be saved."""
        auto, info = self.plan.fitness.auto_pruning, self.executor.info
        return auto and is_cheap(sum(t.elements for t in self.plan.models.base.tensors.values()), info.n_read)

    # Searched trials.

    def begin(self, proposal: Proposal, generation: int | None = None) -> Trial:
        """A new trial of a genome that the optimizer proposed, in this generation."""
        recipe = self.plan.space.recipe(proposal.genome)
        label = proposal.label
        if self.starting_point is not None and proposal.genome == self.starting_point.genome:
            label = label or str(self.starting_point)
        original = None if proposal.reason is Reason.RE_EVALUATION else self.trials.original(recipe)
        return self.trials.begin(
            "search",
            duplicate_label(label, original) if original else label,
            proposal.genome,
            recipe,
            needs_gradient=proposal.needs_gradient,
            duplicate_of=original.number if original else None,
            generation=generation,
        )

    def race(self, trials: Sequence[Trial], generation: Generation) -> None:
        """Scores the candidates of a generation against each other, where they race. Duplicates do not, nor do trials
        that need a gradient. `route` then gives their results."""
        if self.racer is None:
            return
        members = [*self.trials.before(trials[0], generation.told), *trials]
        racing = [t for t in members if t.duplicate_of is None and not t.needs_gradient]
        if any(t.state == "running" for t in racing):
            self.racer.race(racing, members[0].number, generation.parents)

    def route(self, trial: Trial) -> EvalTask[TrialResult]:
        """The way on which a trial in flight gets its result."""
        if trial.needs_gradient and self.gradients is not None:
            return self.gradients.evaluate(trial)
        if trial.duplicate_of is not None:
            return self.trials.copy(trial)
        if self.racer is not None:
            return self.racer.evaluate(trial)
        return self.trials.evaluate(trial)

    def end(self, trial: Trial, result: TrialResult) -> Trial:
        """Stores a trial's result."""
        done = self.trials.end(trial, result)
        first = self.starting_point
        if first is not None and done.genome == first.genome and done.digest not in (None, first.digest):
            self.observer.warn(f"{done.name} should have the weights of {first}, and has others")
        return done

    def score_in_full(self, trial: Trial) -> None:
        """Gives a pruned trial, whose scores are predicted, its scores on all items. It stays as it is where that
        fails."""
        assert self.racer is not None  # no trial is pruned without it
        try:
            [result] = run_all(self.executor, [self.racer.score_in_full(trial)])
        except StoppedError:
            raise
        except (TrialError, InputError) as error:
            self.observer.warn(f"{trial.name} cannot be scored in full: {error}")
            return
        self.trials.promote(trial, result)

    # What the optimizer is told.

    def outcome(self, trial: Trial) -> Outcome:
        """What the optimizer learns of a trial."""
        return self.trials.as_ended.outcome(trial) if self.gradients is None else self.gradients.outcome(trial)

    def start(self) -> Start:
        """What is known before the search: the genomes of well-known models, and the outcomes of the references."""
        scored = {t.label: t for t in self.store.as_ended() if t.kind == "reference" and t.state != "running"}
        references = {**self._subsets(), **self.plan.space.reference_genomes}
        errors = self.store.facts.get(_ERRORS, {})
        scored = {label: replace(t, errors=errors.get(label, {})) for label, t in scored.items()}
        known = [(r.genome, self.outcome(scored[label])) for label, r in references.items() if label in scored]
        return Start(self.starting_point.genome if self.starting_point else None, references, known)

    def _subsets(self) -> dict[str, ReferenceGenome]:
        """The subsets of the sources that are tried first, by label, where a merge can leave some out. They stay what
        the references' scores first said."""
        space = self.plan.space
        if not isinstance(space, Space) or not space.leaves_out:
            return {}
        if _SUBSETS not in self.store.facts:
            sources = [*space.models.sources]
            parents = [t for t in self.store.as_ended() if t.is_parent and t.state == "complete"]
            scored = {t.label: self.trials.scored(t) for t in parents}
            self.store.record(_SUBSETS, propose(self.executor.info, sources, scored))
        found: Mapping[str, list[str]] = self.store.facts[_SUBSETS]
        return {label: space.subset(members) for label, members in found.items()}

    def history(self) -> list[Asked]:
        """The optimizer's proposals and what it was told of each: by its record in an asynchronous search; else each
        was told before the next was asked, up to the first that is still in flight."""
        searched = self.trials.searched
        if not self.plan.spec.asynchronous:
            ended = takewhile(lambda trial: trial.state != "running", searched)
            return [Asked(t.genome, at, self.outcome(t), at) for at, t in enumerate(ended)]
        return [
            Asked(t.genome, t.n_told or 0, None if t.state == "running" else self.outcome(t), t.order) for t in searched
        ]
