"""Intervals and corrections: exact small cases, properties, coverage."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from fusion_workbench.reports.reading.parsing import scores_by_example
from fusion_workbench.reports.statistics.intervals import estimate, holm, mean_squares, noise

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


def test_variance_is_what_seeds_show_and_what_examples_add() -> None:
    x = np.array([[1.0, 5.0, 9.0], [4.0, 8.0, 12.5]])
    ms_rep, ms_ex, ms_rest = (float(ms) for ms in mean_squares(x))
    found = noise(x)
    assert float(found.seeds) == pytest.approx(ms_rep / 6)
    assert float(found.sampling) == pytest.approx((ms_ex - ms_rest) / 6)
    assert (found.df_seeds, found.df_sampling) == (1, 2)
    half = np.sqrt(stats.t.ppf(0.975, 1) ** 2 * found.seeds + stats.t.ppf(0.975, 2) ** 2 * found.sampling)
    assert float(found.half()) == pytest.approx(float(half))


def test_without_noise_of_examples_it_is_the_t_test_over_seeds() -> None:
    means = np.array([0.1, 0.3, 0.2, 0.5, 0.35])
    x = np.repeat(means[:, None], 40, axis=1)
    e = estimate(x)
    known = stats.ttest_1samp(means, 0)
    low, high = known.confidence_interval(0.95)
    assert (e.low, e.high) == pytest.approx((low, high))
    assert e.p == pytest.approx(known.pvalue, rel=1e-3)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99, 0.9999, 1 - 1e-9])
def test_p_is_the_level_at_which_the_interval_reaches(level: float) -> None:
    rng = np.random.default_rng(4)
    found = noise(rng.normal(0, 0.3, (5, 1)) + rng.normal(0, 1, (1, 60)) + rng.normal(0, 0.5, (5, 60)))
    assert float(found.p(found.mean + found.half(level))) == pytest.approx(1 - level, rel=5e-3)


@quick
@given(layouts)
def test_p_and_interval_never_disagree(x: np.ndarray) -> None:
    e = estimate(x)
    if e.se > 1e-9 and min(abs(e.low), abs(e.high)) > 1e-9:
        assert (e.p < 0.05) == (not e.low <= 0 <= e.high)


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
    assert estimate(spread).half >= estimate(x).half - 1e-9


@quick
@given(layouts)
def test_a_sign_change_mirrors(x: np.ndarray) -> None:
    a, b = estimate(x), estimate(-x)
    assert (a.low, a.high, a.p) == pytest.approx((-b.high, -b.low, b.p), abs=1e-9)


SPREADS = [(0.0, 1.0, 0.5), (0.1, 1.0, 1.0), (0.3, 1.0, 1.0), (1.0, 1.0, 1.0), (0.3, 0.3, 0.5)]  # seed, example, rest


@pytest.mark.parametrize("replicates", [3, 5, 10])
@pytest.mark.parametrize("spread", SPREADS)
def test_coverage(replicates: int, spread: tuple[float, float, float]) -> None:
    """95 % intervals hold the truth in 93 to 97 % of simulated studies with both sources of noise (three: 98 %)."""
    seed, example, rest = spread
    studies, examples = 4000, 80
    rng = np.random.default_rng([replicates, int(100 * seed), int(100 * example)])
    x = rng.normal(0, seed, (studies, replicates, 1)) + rng.normal(0, example, (studies, 1, examples))
    x = x + rng.normal(0, rest, (studies, replicates, examples))
    found = noise(x)
    assert 0.93 <= float((np.abs(found.mean) <= found.half()).mean()) <= (0.985 if replicates == 3 else 0.975)


@pytest.mark.parametrize("size", [1, 8])
def test_coverage_when_groups_are_what_was_sampled(size: int) -> None:
    """Examples of one photograph are alike: taking them for independent covers far too rarely, groups do not."""
    studies, groups, replicates = 2000, 20, 5
    rng = np.random.default_rng(size)
    codes = np.repeat(np.arange(groups), rng.integers(size, 2 * size + 1, groups))
    x = rng.normal(0, 0.1, (studies, replicates, 1)) + rng.normal(0, 1, (studies, 1, groups))[..., codes]
    x = x + rng.normal(0, 0.5, (studies, replicates, groups))[..., codes]
    x = x + rng.normal(0, 1, (studies, replicates, len(codes)))
    found = noise(x, codes)
    assert 0.93 <= float((np.abs(found.mean) <= found.half()).mean()) <= 0.975
    if size > 1:
        naive = noise(x)
        assert float((np.abs(naive.mean) <= naive.half()).mean()) < 0.75


def test_few_groups_are_taken_as_given() -> None:
    """What differs between two photographs is no noise when it is these two photographs that are spoken of."""
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1], 50)
    x = rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.1, (5, 100)) + 3.0 * codes
    given_, anew = noise(x, codes), noise(x)
    assert float(given_.mean) == pytest.approx(float(anew.mean))
    assert float(given_.half()) < float(anew.half()) / 2
    assert given_.df_sampling == 98
    alone = noise(x[:, :2], [0, 1])  # no example has a fellow: nothing can be said within
    assert np.isfinite(alone.half())


@pytest.mark.parametrize("alpha", [0.01, 0.001])
def test_tails_hold_too(alpha: float) -> None:
    """Corrections for many comparisons look far out: there, too, p is below alpha no more often than alpha."""
    studies, replicates, examples = 40000, 5, 40
    rng = np.random.default_rng(7)
    for seeds in (0.1, 0.5, 1.0):
        x = rng.normal(0, seeds, (studies, replicates, 1)) + rng.normal(0, 1, (studies, 1, examples))
        x = x + rng.normal(0, 0.7, (studies, replicates, examples))
        false = int((noise(x).p() < alpha).sum())
        assert false <= stats.binom.ppf(0.999, studies, alpha)


def test_naive_standard_error_would_not_cover() -> None:
    """The reason for all this: taking the R·N scores as independent covers far too rarely."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 0.3, (2000, 5, 1)) + rng.normal(0, 1, (2000, 1, 80)) + rng.normal(0, 1, (2000, 5, 80))
    naive = x.std((-2, -1), ddof=1) / np.sqrt(400)
    assert float((np.abs(x.mean((-2, -1))) <= 1.96 * naive).mean()) < 0.75


def test_one_replicate_leaves_seeds_out() -> None:
    x = np.array([[0.0, 1.0, 1.0, 0.0]])
    e = estimate(x)
    assert (e.replicates, e.examples, e.se_seeds) == (1, 4, 0)
    assert e.se == pytest.approx(x.std(ddof=1) / 2)


def test_identical_scores_differ_in_nothing() -> None:
    e = estimate(np.zeros((5, 30)))
    assert (e.mean, e.low, e.high, e.p) == (0, 0, 0, 1)


def test_holm_takes_many_studies_at_once() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(3, 4, 7))
    p[0, 0, 2] = np.nan
    whole = holm(p)
    assert whole[1, 2] == pytest.approx(holm(p[1, 2]))
    assert whole[0, 0] == pytest.approx(holm(p[0, 0]), nan_ok=True)


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


def test_a_ratio_of_sums_gets_the_interval_that_resampling_gives() -> None:
    """IoU over a split is no mean over images: its interval comes from each image's intersection and union."""
    rng = np.random.default_rng(5)
    union = rng.integers(1, 60, 300).astype(float)
    above = rng.binomial(union.astype(int), np.clip(0.2 + union / 120, 0, 1)).astype(float)
    table = pd.DataFrame({"score": above / union, "stat.intersection": above, "stat.union": union})
    scores = scores_by_example(table, ("intersection", "union")).to_numpy()
    pooled = above.sum() / union.sum()
    assert scores.mean() == pytest.approx(pooled)
    assert abs(table["score"].mean() - pooled) > 0.05  # they are different metrics
    drawn = rng.integers(0, 300, (4000, 300))
    resampled = above[drawn].sum(1) / union[drawn].sum(1)
    assert estimate(scores[None]).se == pytest.approx(resampled.std(), rel=0.05)
    assert scores_by_example(table, None).equals(table["score"])
    assert scores_by_example(table.drop(columns="stat.union"), ("intersection", "union")).equals(table["score"])
