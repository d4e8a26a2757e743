"""Intervals and corrections: exact small cases, properties, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reports.statistics import (
    BETTER,
    NONE,
    SAME,
    WORSE,
    crossed,
    estimate,
    half_width,
    holm,
    mean_squares,
    provisional,
    verdict,
)

layouts = st.tuples(st.integers(2, 6), st.integers(2, 12)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-50, 50).map(lambda k: k / 10))
)
quick = settings(max_examples=60, deadline=None)


def test_mean_squares_are_those_of_the_textbook() -> None:
    # Two replicates, three examples; sums of squares worked out by hand: 1.5, 4, 1.
    x = np.array([[1.0, 2.0, 4.0], [3.0, 3.0, 4.0]])
    grand = x.mean()
    rows, columns = x.mean(1), x.mean(0)
    ss_rows = 3 * ((rows - grand) ** 2).sum()
    ss_columns = 2 * ((columns - grand) ** 2).sum()
    ss_rest = ((x - grand) ** 2).sum() - ss_rows - ss_columns
    assert ss_rows == pytest.approx(1.5)
    assert ss_columns == pytest.approx(13 / 3)
    assert ss_rest == pytest.approx(1.0)
    assert [float(ms) for ms in mean_squares(x)] == pytest.approx([ss_rows / 1, ss_columns / 2, ss_rest / 2])


def test_variance_is_the_sum_of_the_components() -> None:
    x = np.array([[1.0, 5.0, 9.0], [4.0, 8.0, 12.5]])
    ms_rep, ms_ex, ms_rest = (float(ms) for ms in mean_squares(x))
    assert min(ms_rep, ms_ex) > ms_rest
    assert float(crossed(x).se) ** 2 == pytest.approx((ms_rep + ms_ex - ms_rest) / 6)


@quick
@given(layouts, st.integers(-100, 100))
def test_intervals_shift_with_the_data(x: np.ndarray, by: int) -> None:
    a, b = estimate(x), estimate(x + by)
    assert (b.mean, b.low, b.high) == pytest.approx((a.mean + by, a.low + by, a.high + by), abs=1e-6)


@quick
@given(layouts, st.randoms(use_true_random=False))
def test_order_of_replicates_and_examples_is_nothing(x: np.ndarray, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    shuffled = x[rng.permutation(len(x))][:, rng.permutation(x.shape[1])]
    a, b = estimate(x), estimate(shuffled)
    assert (a.mean, a.low, a.high) == pytest.approx((b.mean, b.low, b.high), abs=1e-6)


@quick
@given(layouts, st.floats(1.1, 10))
def test_more_noise_is_a_wider_interval(x: np.ndarray, factor: float) -> None:
    noisier = x.mean() + factor * (x - x.mean())
    assert estimate(noisier).half == pytest.approx(factor * estimate(x).half, abs=1e-6)


@quick
@given(layouts, st.floats(1.1, 10))
def test_more_spread_between_seeds_never_narrows(x: np.ndarray, factor: float) -> None:
    rows = x.mean(1, keepdims=True)
    spread = x + (factor - 1) * (rows - x.mean())
    assert float(crossed(spread).se) >= float(crossed(x).se) - 1e-9


@quick
@given(layouts)
def test_variance_never_falls_below_any_of_its_parts(x: np.ndarray) -> None:
    largest = max(float(ms) for ms in mean_squares(x)) / x.size
    assert float(crossed(x).se) ** 2 >= largest - 1e-12


@quick
@given(layouts)
def test_a_sign_change_mirrors(x: np.ndarray) -> None:
    a, b = estimate(x), estimate(-x)
    assert (a.low, a.high, a.p) == pytest.approx((-b.high, -b.low, b.p), abs=1e-9)


@pytest.mark.parametrize("replicates", [5, 10])
@pytest.mark.parametrize("spread", [(0.1, 1.0, 1.0), (0.3, 1.0, 1.0), (1.0, 1.0, 1.0), (0.3, 0.3, 0.5)])
def test_coverage(replicates: int, spread: tuple[float, float, float]) -> None:
    """95 % intervals hold the truth in 93 to 97 % of simulated studies with both sources of noise."""
    seed, example, rest = spread
    studies, examples = 4000, 80
    rng = np.random.default_rng([replicates, int(100 * seed), int(100 * example)])
    x = rng.normal(0, seed, (studies, replicates, 1)) + rng.normal(0, example, (studies, 1, examples))
    x = x + rng.normal(0, rest, (studies, replicates, examples))
    noise = crossed(x)
    assert 0.93 <= float((np.abs(noise.mean) <= half_width(noise)).mean()) <= 0.97


def test_naive_standard_error_would_not_cover() -> None:
    """The reason for all this: taking the R·N scores as independent covers far too rarely."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 0.3, (2000, 5, 1)) + rng.normal(0, 1, (2000, 1, 80)) + rng.normal(0, 1, (2000, 5, 80))
    naive = x.std((-2, -1), ddof=1) / np.sqrt(400)
    assert float((np.abs(x.mean((-2, -1))) <= 1.96 * naive).mean()) < 0.75


def test_one_replicate_leaves_seeds_out() -> None:
    x = np.array([[0.0, 1.0, 1.0, 0.0]])
    e = estimate(x)
    assert (e.replicates, e.examples, e.df) == (1, 4, 3)
    assert e.se == pytest.approx(x.std(ddof=1) / 2)


def test_identical_scores_differ_in_nothing() -> None:
    e = estimate(np.zeros((5, 30)))
    assert (e.mean, e.low, e.high, e.p) == (0, 0, 0, 1)
    assert verdict(e, float(holm([e.p])[0])) == SAME


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    with_gap = holm([0.01, np.nan, 0.02])
    assert with_gap[[0, 2]] == pytest.approx([0.02, 0.02])
    assert np.isnan(with_gap[1])


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_never_lowers_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.asarray(p)).all()
    assert (adjusted <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_verdicts() -> None:
    rng = np.random.default_rng(0)
    good = estimate(0.2 + rng.normal(0, 0.05, (5, 50)))
    assert verdict(good, 0.01) == BETTER
    assert verdict(good, 0.01, sign=-1) == WORSE
    assert verdict(good, 0.06) == SAME
    assert verdict(estimate(0.2 + rng.normal(0, 0.05, (2, 50))), 0.0001) == NONE
    assert [provisional(n) for n in (2, 3, 4, 5)] == [False, True, True, False]
