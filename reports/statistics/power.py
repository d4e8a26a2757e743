"""How many replicates and test examples it takes to tell a difference, planned before they are paid for.

The difference of two systems, paired by replicate r and example n, is modelled as in :mod:`.intervals`:
``d[r, n] = difference + replicate[r] + example[n] + interaction[r, n]``. Its mean over R replicates and N examples has
the variance ``seeds_var / R + sampling_var / N`` with

    seeds_var    = Var(replicate) + Var(interaction) / N    of one replicate's mean difference on the given examples
    sampling_var = Var(example)                             of the difference that an example would have over all seeds

A pilot of a few replicates knows both badly, and planning on its own numbers falls short of the promise about every
second time. So plans stand on the upper 80 % confidence limits (Browne, Statistics in Medicine 14, 1995, 1933–1940):
with chance 0.8 the power is at least what was promised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.statistics.intervals import FEW_GROUPS, noise
from fusion_workbench.schema.plan import FEWEST

POWER = 0.8
CONFIDENCE = 0.8  # of the upper limits of a pilot's variances
MOST = 100_000  # replicates or examples that are looked for at most


def power(
    difference: float, seeds_var: float, sampling_var: float, replicates: int, examples: int, alpha: float
) -> float:
    """The chance that a true ``difference`` is detected: that the two-sided p of :meth:`Noise.p` is below ``alpha``.

    The mean is normal; the estimates of the two variances are taken as chi-squared, with R − 1 and N − 1 degrees of
    freedom, and integrated over (the second is a difference of mean squares: an approximation that hardly matters from
    some dozens of examples on).

    Args:
        difference: in scores; its sign does not matter.
        seeds_var: Var(replicate) + Var(interaction) / N, of one replicate's mean paired difference (scores²):
            ``Noise.seeds · R`` of a pilot with as many examples.
        sampling_var: Var(example), of the paired difference over examples (scores²): ``Noise.sampling · N``.
        replicates: R, two or more.
        examples: N; where groups are what is sampled, their number, and ``sampling_var`` is theirs.
        alpha: level at which this one comparison is judged: two-sided, corrected for the others.
    """
    seeds, sampling = seeds_var / replicates, sampling_var / examples
    total = float(np.sqrt(seeds + sampling))
    if total == 0:
        return 1.0 if difference else 0.0
    (a, wa), (b, wb) = _chi_squared(replicates - 1, 64), _chi_squared(examples - 1, 24)
    ta, tb = (stats.t.isf(alpha / 2, df) ** 2 for df in (replicates - 1, examples - 1))
    half = np.sqrt(ta * seeds * a[:, None] + tb * sampling * b[None, :])
    detected = special.ndtr((abs(difference) - half) / total) + special.ndtr((-abs(difference) - half) / total)
    return float(wa @ detected @ wb)


def needed(
    difference: float,
    seeds_var: float,
    sampling_var: float,
    examples: int,
    alpha: float,
    wanted: float = POWER,
) -> int | None:
    """Replicates, five or more, that tell ``difference`` with power ``wanted`` on ``examples`` test examples.

    None where no number of replicates does: what the choice of the examples adds hides it alone.
    """
    return _fewest(lambda r: power(difference, seeds_var, sampling_var, r, examples, alpha) >= wanted, FEWEST)


def needed_examples(
    difference: float, known: Pilot, replicates: int, alpha: float, wanted: float = POWER
) -> int | None:
    """Test examples, ten or more, that tell ``difference`` with power ``wanted`` from ``replicates`` of them.

    None where no number of examples does: the replicates' own spread hides it.
    """

    def enough(examples: int) -> bool:
        seeds = known.seeds_at(examples)
        return power(difference, seeds, known.sampling_var, replicates, examples, alpha) >= wanted

    return _fewest(enough, FEW_GROUPS)


def smallest(
    seeds_var: float, sampling_var: float, replicates: int, examples: int, alpha: float, wanted: float = POWER
) -> float:
    """The smallest difference, in scores, that a design tells with power ``wanted``."""
    total = float(np.sqrt(seeds_var / replicates + sampling_var / examples))
    if total == 0:
        return 0.0

    def short(steps: float) -> float:
        return power(steps * total, seeds_var, sampling_var, replicates, examples, alpha) - wanted

    high = 4.0
    while short(high) < 0:
        high *= 2
    return total * float(optimize.brentq(short, 0.0, high))


def upper_limit(variance: float, df: int, confidence: float = CONFIDENCE) -> float:
    """Upper confidence limit of a variance estimated with ``df`` degrees of freedom: v·df / χ²(1 − confidence).

    With the 4 degrees of freedom of five replicates it is 2.4 times the estimate, with 9 it is 1.7 times.
    """
    return float(variance * df / stats.chi2.ppf(1 - confidence, df))


@dataclass(frozen=True)
class Pilot:
    """What a pilot knows of a paired difference; ``seeds_var`` and ``sampling_var`` are upper limits to plan on.

    Attributes:
        interaction_var: what ``seeds_var`` holds, divided by the pilot's number of examples: more examples average it
            out. Of scores that are right or wrong it is often most of what differs from seed to seed.
        measured: the first two as the pilot estimates them.
        examples: N, of groups where ``grouped``.
    """

    seeds_var: float
    sampling_var: float
    interaction_var: float
    measured: tuple[float, float]
    replicates: int
    examples: int
    grouped: bool

    def seeds_at(self, examples: int) -> float:
        """``seeds_var`` with another number of examples."""
        own = max(self.seeds_var - self.interaction_var / self.examples, 0.0)
        return own + self.interaction_var / examples


def pilot(differences: ArrayLike, groups: ArrayLike | None = None) -> Pilot | None:
    """Of ``[R, N]`` paired differences; None with one replicate, which tells nothing of seeds.

    The sampling part is (MS of examples − MS of interaction) / R; its limit takes that of the first and leaves the
    second as it is.

    Args:
        groups: ``[N]``, as in :func:`reports.statistics.intervals.noise`: from ten on they are what is sampled.
    """
    x = np.asarray(differences, dtype=float)
    if x.shape[0] < 2 or x.shape[1] < 2:
        return None
    number = 0 if groups is None else len(np.unique(np.asarray(groups)))
    grouped = number >= FEW_GROUPS
    examples = number if grouped else x.shape[1]
    found, by_example = noise(x, groups), noise(x.mean(0, keepdims=True), groups)
    interaction = float(by_example.sampling - found.sampling)
    above = upper_limit(float(by_example.sampling), by_example.df_sampling) - interaction
    seeds = float(found.seeds) * x.shape[0]
    return Pilot(
        seeds_var=upper_limit(seeds, found.df_seeds),
        sampling_var=max(above, 0.0) * examples,
        interaction_var=interaction * x.shape[0] * examples,
        measured=(seeds, float(found.sampling) * examples),
        replicates=x.shape[0],
        examples=examples,
        grouped=grouped,
    )


def _fewest(enough: Callable[[int], bool], least: int) -> int | None:
    """The smallest number from ``least`` to :data:`MOST` at which ``enough`` turns true."""
    high = least
    while not enough(high):
        if high >= MOST:
            return None
        high = min(2 * high, MOST)
    low = max(high // 2, least)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


@lru_cache(maxsize=4096)
def _chi_squared(df: int, nodes: int) -> tuple[Floats, Floats]:
    """Nodes and weights to average over χ²(df) / df: Gauss and Legendre's, of its distribution function."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    return stats.chi2.ppf((at + 1) / 2, df) / df, weights / 2
