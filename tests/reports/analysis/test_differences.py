"""Differences between two studies: what may be paired is, and intervals hold for what may not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_workbench.reports.statistics.example_scores import ExampleScores
from fusion_workbench.reports.statistics.intervals import estimate, noise
from fusion_workbench.reports.statistics.unpaired import (
    BOTH,
    IMAGES,
    NOTHING,
    Difference,
    Unpaired,
    of_estimates,
    of_example_scores,
)
from fusion_workbench.reports.statistics.verdicts import equivalence

IMAGE_NAMES = tuple(f"{i:03d}" for i in range(60))


def example_scores(scores: np.ndarray, first: int = 0, images: tuple[str, ...] = IMAGE_NAMES) -> ExampleScores:
    return ExampleScores(tuple(str(first + r) for r in range(len(scores))), images, scores)


def crossed(rng: np.random.Generator, difficulty: np.ndarray, replicates: int = 5) -> np.ndarray:
    """``[R, N]`` scores of one cell: a replicate's shift, the images' difficulty, their interaction."""
    return rng.normal(0, 0.02, (replicates, 1)) + difficulty + rng.normal(0, 0.05, (replicates, len(difficulty)))


def test_paired_is_the_report_s_own_paired_interval() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(0.5, 0.1, (5, 60)), rng.normal(0.48, 0.1, (5, 60))
    found, expected = of_example_scores(example_scores(one), example_scores(other)), estimate(one - other)
    assert found is not None
    assert found.shares == BOTH
    e = found.estimate
    assert (e.mean, e.low, e.high, e.low90, e.se) == pytest.approx(
        (expected.mean, expected.low, expected.high, expected.low90, expected.se)
    )
    assert e.p == pytest.approx(expected.p)
    assert equivalence(found.noise, 0.05) == pytest.approx(equivalence(noise(one - other), 0.05))


def test_images_in_another_order_are_found_by_name() -> None:
    scores = np.random.default_rng(2).random((5, 60))
    turned = example_scores(scores[:, ::-1], images=IMAGE_NAMES[::-1])
    found = of_example_scores(example_scores(scores), turned)
    assert found is not None
    assert found.identical
    assert (found.mean, found.noise.half(), found.noise.p()) == (0.0, 0.0, 1.0)
    assert equivalence(found.noise, 1e-6) == 0.0
    assert math.isnan(equivalence(found.noise, math.nan))


def test_what_is_shared_decides_how_it_is_compared() -> None:
    scores = np.random.default_rng(3).random((10, 60))
    five, later, few = (
        example_scores(scores[:5]),
        example_scores(scores[5:], first=5),
        example_scores(scores[3:8], first=3),
    )
    found = [
        of_example_scores(example_scores(scores), five),
        of_example_scores(five, later),
        of_example_scores(five, few),
    ]
    assert [(f.shares, f.replicates) for f in found if f] == [(BOTH, 5), (IMAGES, 5), (IMAGES, 5)]
    assert of_example_scores(five, example_scores(scores[:5], images=tuple(f"other {i}" for i in range(60)))) is None
    assert of_estimates(estimate(scores[:5]), estimate(scores[5:])).shares == NOTHING


def images_alone(rng: np.random.Generator) -> Difference | None:
    difficulty = rng.normal(0, 0.2, 60)
    return of_example_scores(
        example_scores(crossed(rng, difficulty)), example_scores(crossed(rng, difficulty), first=5)
    )


def nothing(rng: np.random.Generator) -> Difference | None:
    return of_estimates(*(estimate(crossed(rng, rng.normal(0, 0.2, 60))) for _ in range(2)))


@pytest.mark.parametrize("draw", [images_alone, nothing])
def test_intervals_cover(draw: Callable[[np.random.Generator], Difference | None]) -> None:
    rng = np.random.default_rng(4)
    found = [draw(rng) for _ in range(800)]
    covered = np.mean([abs(d.mean) <= d.noise.half() for d in found if d])
    assert 0.935 <= covered <= 0.995  # a t for each part errs on the wide side


def test_images_in_common_make_it_sharper() -> None:
    rng = np.random.default_rng(5)
    difficulty = rng.normal(0, 0.2, 60)
    one, other = crossed(rng, difficulty), crossed(rng, difficulty)
    paired, apart = (
        of_example_scores(example_scores(one), example_scores(other)),
        of_estimates(estimate(one), estimate(other)),
    )
    assert paired is not None
    assert paired.noise.half() < 0.6 * apart.noise.half()


@settings(max_examples=60, deadline=None)
@given(
    mean=st.floats(-1, 1),
    parts=st.lists(st.tuples(st.floats(1e-6, 0.1), st.integers(1, 200)), min_size=1, max_size=4),
    level=st.sampled_from([0.9, 0.95, 0.999]),
)
def test_p_and_interval_agree(mean: float, parts: list[tuple[float, int]], level: float) -> None:
    whole = np.asarray(sum(v for v, _ in parts))
    d = Unpaired(np.asarray(mean), whole, np.zeros(()), 1, 1, tuple(parts))
    for edge in (mean - d.half(level), mean + d.half(level)):
        assert d.p(edge) == pytest.approx(1 - level, rel=1e-6)
    assert 0 <= d.p() <= 1
    assert 0 <= equivalence(d, 0.01) <= 1
