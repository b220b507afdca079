"""BoTorch's searches with floors as rows of benchmarks/search.py: constrained qLogNEI, SCBO and SAASBO.

Each is given 48 evaluations: 8 points of a scrambled Sobol sequence, then 40 that it chooses, one at a time. It learns
the objective and the margin above each floor, as numbers. All of its random numbers follow from the seed.

BoTorch counts a constraint as met where it is negative or zero, so that minus a margin is a constraint.
"""

from __future__ import annotations

import logging
import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import jax
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import LogExpectedImprovement, LogProbabilityOfFeasibility
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.objective import GenericMCObjective
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP
from botorch.models.transforms import Standardize
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.settings import max_cholesky_size
from numpyro.infer import MCMC, NUTS
from torch import Tensor
from torch.quasirandom import SobolEngine

from evomerge.optimize.base import Sequential
from evomerge.types import Dimension, Genome, Outcome

FIRST, CHOSEN = 8, 40
"""Sobol points, and evaluations that a row chooses."""

RESTARTS, RAW = 4, 256
"""Starts of the search for the acquisition function's maximum, and the points that they are taken from."""

logging.getLogger("botorch").setLevel(logging.ERROR)
logging.getLogger("jax").setLevel(logging.ERROR)


class BoTorch(Sequential):
    """A search by BoTorch's parts, in the unit cube: 8 Sobol points, then what `_chosen` says. Outcomes that are known
    from the start take the place of the first Sobol points."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        torch.set_num_threads(1)
        self._low = torch.tensor([d.low for d in dimensions], dtype=torch.float64)
        self._high = torch.tensor([d.high for d in dimensions], dtype=torch.float64)
        known = len(self.start.known)
        self._sobol = SobolEngine(len(dimensions), scramble=True, seed=seed).draw(FIRST, dtype=torch.float64)[known:]
        self._last = FIRST - known + CHOSEN
        self._state: dict[str, Any] = {}

    @property
    def exhausted(self) -> str | None:
        return super().exhausted or ("all evaluations are spent" if self.count >= self._last else None)

    def _propose(self) -> Genome:
        if len(self.history) < len(self._sobol):
            return self._genome(self._sobol[len(self.history)])
        told = [*self.start.known, *self.history]
        x = torch.tensor([[float(genome[d.key]) for d in self.dimensions] for genome, _ in told], dtype=torch.float64)
        y = torch.tensor([[o.objective, *o.margins] for _, o in told], dtype=torch.float64)
        # Parts of BoTorch draw from torch's global generator: it is seeded here, and put back.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(1000 * self.seed + self.count)
            return self._genome(self._chosen((x - self._low) / (self._high - self._low), y))

    def _genome(self, point: Tensor) -> Genome:
        values = self._low + point * (self._high - self._low)
        return {d.key: d.tidy(float(v)) for d, v in zip(self.dimensions, values, strict=True)}

    @abstractmethod
    def _chosen(self, x: Tensor, y: Tensor) -> Tensor:
        """[d], the next point after n. `x`: [n, d], in the unit cube. `y`: [n, 1 + floors], objective and margins."""

    def _fitted(self, model: SingleTaskGP) -> SingleTaskGP:
        """The model with its hyperparameters fitted: by a hundred steps of L-BFGS-B from those of the model before. To
        begin anew each time and go on to the last digit takes ten times as long, for a likelihood within 0.1."""
        model.load_state_dict(self._state, strict=False)
        likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
        fit_gpytorch_mll(likelihood, optimizer_kwargs={"options": {"maxiter": 100}})
        self._state = {n: v for n, v in model.state_dict().items() if not n.startswith("outcome_transform")}
        return model

    def _best(self, acquisition: AcquisitionFunction) -> Tensor:
        """The acquisition function's maximum: L-BFGS-B from the likeliest of random points, half of which are next to
        the best points so far."""
        bounds = torch.stack([torch.zeros_like(self._low), torch.ones_like(self._high)])
        options = {"sample_around_best": True, "maxiter": 100, "seed": 1000 * self.seed + self.count}
        point, _ = optimize_acqf(acquisition, bounds, 1, RESTARTS, RAW, options)
        return point[0].detach()


class QLogNEI(BoTorch):
    """Noisy expected improvement, weighted by the probability of feasibility (Letham et al. 2019, "Constrained Bayesian
    Optimization with Noisy Experiments", arXiv:1706.07094; its logarithm: Ament et al. 2023, arXiv:2310.20708).
    The model is BoTorch's default: a process for each output, noise inferred."""

    def _chosen(self, x: Tensor, y: Tensor) -> Tensor:
        model = self._fitted(SingleTaskGP(x, y, outcome_transform=Standardize(y.shape[-1])))
        return self._best(
            qLogNoisyExpectedImprovement(
                model,
                X_baseline=x,
                sampler=SobolQMCNormalSampler(torch.Size([128]), seed=self.count),
                objective=GenericMCObjective(lambda samples, X=None: samples[..., 0]),
                constraints=[_constraint(place) for place in range(1, y.shape[-1])],
                prune_baseline=True,
            )
        )


def _constraint(place: int) -> Any:
    return lambda samples: -samples[..., place]


class SCBO(BoTorch):
    """Scalable constrained Bayesian optimization (Eriksson & Poloczek 2021, arXiv:2002.08526): Thompson sampling with
    constraints in a trust region, which grows after successes and shrinks after failures."""

    SUCCESSES, LONGEST, SHORTEST, START = 3, 1.6, 0.5**7, 0.8
    CANDIDATES = 1000
    """Half of what TuRBO takes for few genes: a joint sample costs their third power."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        self._length, self._successes, self._failures = self.START, 0, 0
        self._tolerance = max(4, len(self.dimensions))

    def _chosen(self, x: Tensor, y: Tensor) -> Tensor:
        # 1. Outputs as in section 3: the objective by its ranks (a Gaussian copula), constraints by
        # sign(c) log(1 + |c|), which keeps the zero and draws in what is far from it.
        order = y[:, 0].argsort().argsort().double()
        copula = torch.special.ndtri((order + 0.5) / len(order))
        margins = y[:, 1:].sign() * (1 + y[:, 1:].abs()).log()
        outputs = torch.cat([copula[:, None], margins], dim=1)
        # 2. A process for each output: Matérn 5/2, a length scale for each gene.
        d, m = x.shape[1], outputs.shape[1]
        batch = torch.Size([m])
        kernel = ScaleKernel(MaternKernel(2.5, ard_num_dims=d, batch_shape=batch), batch_shape=batch)
        model = self._fitted(SingleTaskGP(x, outputs, covar_module=kernel, outcome_transform=Standardize(m)))
        # 3. The trust region: around the best point, longer where the objective's length scale is.
        center = x[_best_place(y)]
        scales = kernel.base_kernel.lengthscale.detach()[0, 0]
        scales = scales / scales.log().mean().exp()
        low = (center - scales * self._length / 2).clamp(0, 1)
        high = (center + scales * self._length / 2).clamp(0, 1)
        # 4. Candidates: the center with some genes, 20 in the mean, moved to a Sobol point of the region.
        generator = torch.Generator().manual_seed(1000 * self.seed + self.count)
        points = SobolEngine(d, scramble=True, seed=self.count).draw(self.CANDIDATES, dtype=torch.float64)
        moved = torch.rand(points.shape, generator=generator, dtype=torch.float64) < min(1.0, 20 / d)
        one = torch.randint(d, (len(points),), generator=generator)
        moved[torch.arange(len(points)), one] |= ~moved.any(dim=1)
        points = torch.where(moved, low + (high - low) * points, center)
        # 5. Of one joint sample of all outputs, the best feasible candidate, or the one with the least violation.
        with torch.no_grad(), max_cholesky_size(self.CANDIDATES + 1):
            drawn = model.posterior(points).rsample(torch.Size([1]))[0]
        return points[_best_place(drawn)]

    def _learn(self, outcome: Outcome) -> None:
        """The region's length after another evaluation (section 3.2)."""
        if len(self.history) <= len(self._sobol):
            return
        y = torch.tensor([[o.objective, *o.margins] for _, o in (*self.start.known, *self.history)]).double()
        better = _best_place(y) == len(y) - 1
        self._successes, self._failures = (self._successes + 1, 0) if better else (0, self._failures + 1)
        if self._successes == self.SUCCESSES:
            self._length, self._successes = min(2 * self._length, self.LONGEST), 0
        elif self._failures == self._tolerance:
            self._length, self._failures = self._length / 2, 0
        if self._length < self.SHORTEST:
            self._length = self.START


def _best_place(y: Tensor) -> int:
    """The best feasible row by the objective; where none is feasible, the one with the least total violation."""
    violation = (-y[:, 1:]).clamp_min(0).sum(dim=1)
    feasible = violation <= 0
    values = torch.where(feasible, y[:, 0], -math.inf) if feasible.any() else -violation
    return int(values.argmax())


class SAASBO(BoTorch):
    """Fully Bayesian processes with sparse axes (Eriksson & Jankowiak 2021, arXiv:2103.00349): the logarithm of the
    expected improvement, plus that of each margin's probability to be met.

    NUTS is short (64 steps to warm up, 64 samples, every fourth kept) and runs at the numbers of outcomes in `FITTED`
    only: in between, the last samples of the hyperparameters see the new outcomes. To run it 40 times takes minutes.
    """

    FITTED = (8, 16, 32)
    STEPS, THINNING = 64, 4

    def __init__(self, dimensions: Sequence[Dimension], seed: int, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        self._samples: list[dict[str, Tensor]] = []

    def _chosen(self, x: Tensor, y: Tensor) -> Tensor:
        models = [
            SaasFullyBayesianSingleTaskGP(x, y[:, place : place + 1], outcome_transform=Standardize(1))
            for place in range(y.shape[1])
        ]
        if len(y) in self.FITTED or not self._samples:
            self._samples = self._sampled(models)
        for model, samples in zip(models, self._samples, strict=True):
            model.load_mcmc_samples(samples)
            model.eval()
        # The best so far by the model, among the points that met all floors: scores are noisy.
        feasible = (y[:, 1:] >= 0).all(dim=1)
        parts: list[AcquisitionFunction] = [LogProbabilityOfFeasibility(m, {0: (0.0, None)}) for m in models[1:]]
        if feasible.any():
            with torch.no_grad():
                best = models[0].posterior(x[feasible]).mixture_mean.max()
            parts.append(LogExpectedImprovement(models[0], best))
        return self._best(_Sum(models[0], parts, x))

    def _sampled(self, models: Sequence[SaasFullyBayesianSingleTaskGP]) -> list[dict[str, Tensor]]:
        """Samples of each model's hyperparameters: BoTorch's `fit_fully_bayesian_model_nuts`, but compiled once for all
        outputs (compiling takes longer than sampling)."""
        process, found = models[0].pyro_model, []
        own = process.train_Y_jax

        def density(y: Any) -> None:
            process.train_Y_jax = y
            process.sample()

        nuts = NUTS(density, dense_mass=True, max_tree_depth=6)
        chain = MCMC(nuts, num_warmup=self.STEPS, num_samples=self.STEPS, progress_bar=False, jit_model_args=True)
        for place, model in enumerate(models):
            y = own if place == 0 else model.pyro_model.train_Y_jax
            chain.run(jax.random.PRNGKey(10_000 * self.seed + 10 * self.count + place), y)
            samples = model.pyro_model.postprocess_mcmc_samples(dict(chain.get_samples()))
            found.append({name: values[:: self.THINNING] for name, values in samples.items()})
        process.train_Y_jax = own
        return found


class _Sum(AcquisitionFunction):
    """The sum of acquisition functions. `model` and `X_baseline` say where its maximum is looked for."""

    def __init__(self, model: Any, parts: Sequence[AcquisitionFunction], x: Tensor) -> None:
        super().__init__(model)
        self._parts = torch.nn.ModuleList(parts)
        self.X_baseline = x

    def forward(self, X: Tensor) -> Tensor:
        return torch.stack([part(X) for part in self._parts]).sum(dim=0)
