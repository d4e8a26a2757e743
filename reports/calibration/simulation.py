"""Studies whose truth is known: scores drawn from the crossed model that the intervals are made for.

    score of a cell = truth + replicate + cluster + example + interaction        all but the truth random

The shares of the parts are those of paired differences of real pilots (:mod:`reports.calibration.pilots`). Scores are
normal, heavy-tailed, or shares of right items as real probes give them; in the last, truth and noise meet in a
probit, whose means have a closed form, so that the truth is known exactly there too. Pure numpy: nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from fusion_workbench.reports.statistics.components import VarianceComponents
from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.statistics.intervals import FEW_GROUPS, quotient_shares
from fusion_workbench.reports.statistics.verdicts import PairedScores
from fusion_workbench.schema.names import OVERALL
from fusion_workbench.schema.plan import ComparisonFamily, Plan

NORMAL, HEAVY = "normal", "heavy tails"
ITEMS = {"right or wrong": 1, "share of 6 items": 6}  # as `digit` and `read` of FineScenes
QUOTIENT = "quotient of sums"  # as an IoU
KINDS = (NORMAL, HEAVY, *ITEMS, QUOTIENT)
CLUSTERED = 0.5  # of the example's share is its cluster's, where clusters are what was sampled
_DF = 5  # of the t distribution of heavy tails: kurtosis 9
_LEAST = 0.05  # share of the interaction: items are coarse
_DIFFICULTY = 0.5  # variance of an example's difficulty, common to all cells, in the probit
_SLOPE, _OF_SIZE, _DENOMINATOR, _SIZES = 0.4, 0.4, 0.15, 0.7  # of :func:`_quotients`


@dataclass(frozen=True)
class World:
    """What is drawn: ``examples`` images from ``clusters`` photographs, judged over ``replicates`` seeds."""

    components: VarianceComponents
    replicates: int
    examples: int = 96
    clusters: int = 2
    kind: str = NORMAL

    @property
    def sampled(self) -> bool:
        """Whether the report takes the clusters, and not what is inside them, as sampled."""
        return self.clusters >= FEW_GROUPS

    @property
    def codes(self) -> NDArray[np.int64]:
        """``[N]``: the cluster of each example. The largest has about three times the examples of the smallest."""
        edges = np.cumsum(np.linspace(1, 3, self.clusters) if self.sampled else np.ones(self.clusters))
        return np.searchsorted(edges / edges[-1], (np.arange(self.examples) + 0.5) / self.examples)

    @property
    def variance(self) -> float:
        """Of the mean difference of two cells, over both sources of noise."""
        m, n = self.components, self.examples
        clusters = CLUSTERED * float((self.sizes**2).sum()) if self.sampled else 0.0
        example = m.example * (clusters + (1 - CLUSTERED * self.sampled) / n)
        return self.scale**2 * (m.replicate / self.replicates + example + m.interaction / (self.replicates * n))

    @property
    def sizes(self) -> Floats:
        """``[G]``: each cluster's share of the examples."""
        return np.asarray(np.bincount(self.codes) / self.examples, dtype=float)

    @property
    def scale(self) -> float:
        """Standard deviation of one paired difference; of items to first order."""
        m = self.components
        if self.kind not in ITEMS:
            return float(np.sqrt(m.replicate + m.example + m.interaction))
        return float(np.sqrt(2 * _coarseness(self.kind) / max(m.interaction, _LEAST)))


def draw(world: World, studies: int, rng: np.random.Generator, shift: ArrayLike = (0.0, 0.0)) -> tuple[Floats, Floats]:
    """Scores ``[studies, cells, R, N]`` and the truth ``[studies, cells]`` that an interval should hold.

    Args:
        world: differences of two cells have its mix; of normal scores, with variance 1.
        shift: ``[cells]``, the true mean of each: of differences' standard deviations, or of shares of right items.

    Where clusters are taken as given, each has an effect of its own on each cell; over the clusters at hand, which the
    interval is about, these add up to nothing.
    """
    if world.kind == QUOTIENT:
        return _quotients(world, studies, rng)
    level = np.asarray(shift, dtype=float)
    truth = np.broadcast_to(level, (studies, len(level)))
    parts = _latent(world)
    effects = _effects(world, parts, studies, len(level), rng)
    if world.kind not in ITEMS:
        return level[:, None, None] + effects, truth
    items = ITEMS[world.kind]
    inside = parts.replicate + parts.example + parts.interaction + _DIFFICULTY
    centre = special.ndtri(0.5 + level) * np.sqrt(1 + inside)
    difficulty = rng.normal(0, np.sqrt(_DIFFICULTY), (studies, 1, 1, world.examples))
    chance = special.ndtr(centre[:, None, None] + effects + difficulty)
    return rng.binomial(items, chance) / items, 0.5 + truth


def _quotients(world: World, studies: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Two cells that differ, as the report scores them. Denominators vary with the example (log-normal) and the cell;
    the share of one that is right depends on its size.
    """
    effects = _effects(world, _latent(world), studies, 2, rng)
    size = rng.normal(size=(studies, 1, 1, world.examples))
    below = np.exp(_SIZES * size + rng.normal(0, _DENOMINATOR, effects.shape))
    centre = np.array([0.0, 0.25])
    share = special.ndtr(centre[:, None, None] + _OF_SIZE * size + _SLOPE * effects)
    # weighting by a log-normal size moves its normal logarithm by its standard deviation
    spread = (
        1
        + _OF_SIZE**2
        + _SLOPE**2 * (world.components.replicate + world.components.example + world.components.interaction)
    )
    truth = special.ndtr((centre + _OF_SIZE * _SIZES) / np.sqrt(spread))
    return quotient_shares(below * share, below), np.broadcast_to(truth, (studies, 2))


@dataclass(frozen=True)
class Study:
    """A whole study of equals: cells against four of them as baselines, on two tasks and their mean.

    Attributes:
        cells: all of them; the first four are the baselines.
        kinds: of the scores of the tasks.
        looks: of the plan; the last is how many replicates the world has.
    """

    world: World
    kinds: tuple[str, str] = (NORMAL, NORMAL)
    cells: int = 12
    looks: tuple[int, ...] = ()
    level: float = 0.05
    margin: float | None = None
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        families = (ComparisonFamily((OVERALL,), 0.8), ComparisonFamily(("a", "b"), 0.2))  # as a plan that says nothing
        looks = self.looks or (self.world.replicates,)
        object.__setattr__(self, "plan", Plan(OVERALL, families, self.level, self.margin, looks))

    def pairs(self, rng: np.random.Generator, shift: float = 0.0) -> list[PairedScores]:
        """One study's comparisons, as the report makes them; cells that are no baseline lie ``shift`` above."""
        shifts = np.where(np.arange(self.cells) < BASELINES, 0.0, shift)
        tasks = {
            name: draw(World(**(self.world.__dict__ | {"kind": kind})), 1, rng, shifts)[0][0]
            for name, kind in zip(("a", "b"), self.kinds, strict=True)
        }
        tasks[OVERALL] = (tasks["a"] + tasks["b"]) / 2
        rows, groups = tuple(range(self.world.replicates)), self.world.codes
        return [
            PairedScores(
                measure, (f"{cell:03d}", f"{baseline:03d}"), scores[cell] - scores[baseline], rows, self.margin, groups
            )
            for measure, scores in tasks.items()
            for baseline in range(BASELINES)
            for cell in range(baseline + 1, self.cells)
        ]

    def differ(self, pair: PairedScores) -> bool:
        """Whether a pair is of a baseline and a cell that is none."""
        return int(pair.key[0]) >= BASELINES


BASELINES = 4  # deepest, penultimate, best single layer, middle concat


def _latent(world: World) -> VarianceComponents:
    """Variances of the parts of a cell's score, half of those of a difference; in the probit, where items are scored.

    There the coarseness of the items is the interaction, and a score moves with its probit by the slope φ, whose mean
    square over examples of difficulty v is 1 / (2π √(1 + 2v)).
    """
    m = world.components
    if world.kind == QUOTIENT:
        return m
    if world.kind not in ITEMS:
        return VarianceComponents(m.replicate / 2, m.example / 2, m.interaction / 2)
    slope = 1 / (2 * np.pi * np.sqrt(1 + 2 * _DIFFICULTY))
    unit = float(_coarseness(world.kind) / max(m.interaction, _LEAST) / slope)
    return VarianceComponents(m.replicate * unit, m.example * unit, 0.0)


def _coarseness(kind: str) -> float:
    """Variance of a share of items about its chance p: the mean of p(1 − p) is 1/4 − arcsin(v / (1 + v)) / 2π."""
    return float(0.25 - np.arcsin(_DIFFICULTY / (1 + _DIFFICULTY)) / (2 * np.pi)) / ITEMS[kind]


def _effects(world: World, parts: VarianceComponents, studies: int, cells: int, rng: np.random.Generator) -> Floats:
    """``[studies, cells, R, N]`` sums of the random parts."""
    r, n, codes = world.replicates, world.examples, world.codes
    shared = CLUSTERED if world.sampled else 0.0

    def noise(variance: float, *shape: int) -> Floats:
        if not variance:
            return np.zeros((studies, cells, *shape))
        if world.kind == HEAVY:
            x = rng.standard_t(_DF, (studies, cells, *shape)) * np.sqrt((_DF - 2) / _DF)
        else:
            x = rng.standard_normal((studies, cells, *shape))
        return np.asarray(np.sqrt(variance) * x, dtype=float)

    example = noise((1 - shared) * parts.example, n)
    if world.sampled:
        example += noise(shared * parts.example, world.clusters)[..., codes]
    elif world.kind in (NORMAL, HEAVY):
        own = noise(parts.example, world.clusters)
        example += (own - own @ world.sizes[:, None])[..., codes]
    out = noise(parts.interaction, r, n)
    out += example[:, :, None]
    out += noise(parts.replicate, r, 1)
    return out


def interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a rate (Biometrika 26, 1934)."""
    found = stats.binomtest(count, total).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)
