"""Variance components of paired differences: what replicates, examples and their interaction add to the noise."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.statistics.intervals import mean_squares


@dataclass(frozen=True)
class VarianceComponents:
    """Variance of a single paired difference of scores, split into shares that add up to 1.

    Attributes:
        replicate: what all examples of one replicate have in common.
        example: what all replicates of one example have in common.
        interaction: the rest; of probes with a discrete score mostly its coarseness.
    """

    replicate: float
    example: float
    interaction: float


def variance_components(scores: Floats, groups: ArrayLike | None = None) -> VarianceComponents:
    """Variance components (not yet shares) of ``[R, N]`` differences, by the method of moments, none below 0.

    With groups the example's part is that inside its group, as where groups are taken as given.
    """
    replicates, examples = scores.shape
    replicate, example, rest = (float(ms) for ms in mean_squares(scores, groups))
    return VarianceComponents(max(replicate - rest, 0.0) / examples, max(example - rest, 0.0) / replicates, rest)
