"""Families, looks and equivalence: what the level is spent on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fusion_workbench.reports.statistics.intervals import holm, noise
from fusion_workbench.reports.statistics.verdicts import Judged, PairedScores, equivalence, judge, verdict
from fusion_workbench.schema.names import Verdict
from fusion_workbench.schema.plan import ComparisonFamily, Plan

PLAN = Plan(
    "overall", (ComparisonFamily(("overall",), 0.8), ComparisonFamily(("read", "digit"), 0.2)), 0.05, 0.01, (5,)
)


def pair(measure: str, number: int, mean: float, replicates: int = 5, margin: float | None = 0.01) -> PairedScores:
    rng = np.random.default_rng([number, replicates])
    x = mean + rng.normal(0, 0.002, (replicates, 1)) + rng.normal(0, 0.02, (replicates, 200))
    return PairedScores(measure, ("a", f"b{number}"), x, tuple(range(replicates)), margin)


def test_a_family_is_corrected_by_holm_at_its_share() -> None:
    pairs = [pair("overall", n, 0.002 * n) for n in range(4)] + [pair("read", 9, 0.004)]
    judged = judge(pairs, PLAN, 5)
    raw = [float(noise(p.scores).p()) for p in pairs]
    expected = np.minimum(holm(raw[:4]) / 0.8, 1)
    assert [judged["overall", "a", f"b{n}"].p for n in range(4)] == pytest.approx(list(expected))
    assert judged["read", "a", "b9"].p == pytest.approx(min(raw[4] / 0.2, 1))


@pytest.mark.parametrize("groups", [None, 3, 20])
def test_many_pairs_at_once_are_judged_as_one_by_one(groups: int | None) -> None:
    """Shapes, margins and groups mixed: stacking them changes no digit of any p."""
    rng = np.random.default_rng(5)
    codes = None if groups is None else np.arange(40) % groups
    pairs = []
    for number in range(12):
        x = rng.normal(0.004, 0.01, (10, 1)) + rng.normal(0, 0.02, (10, 40 if number % 3 else 25))
        own = codes if number % 3 else None
        rows = tuple(range(10)) if number % 4 else (0, 2, 3, 5, 6, 7, 9, 10, 11, 12)
        pairs.append(PairedScores("overall", ("a", f"b{number}"), x, rows, 0.01 if number % 5 else None, own))
    plan = Plan("overall", (ComparisonFamily(("overall",), 1.0),), 0.05, 0.01, (5, 10))
    together = judge(pairs, plan, 10)
    raw = {look: [[i for i, r in enumerate(p.replicates) if r < look] for p in pairs] for look in (5, 10)}
    looks = []
    for rows_of in raw.values():
        found = [noise(p.scores[r], p.groups) if len(r) >= 5 else None for p, r in zip(pairs, rows_of, strict=True)]
        p = [np.nan if f is None else float(f.p()) for f in found]
        close = [
            np.nan if f is None or p_.margin is None else float(equivalence(f, p_.margin))
            for f, p_ in zip(found, pairs, strict=True)
        ]
        looks.append((np.minimum(holm(p) / 0.5, 1), np.minimum(holm(close) / 0.5, 1)))
    different, alike = (np.fmin(a, b) for a, b in zip(*looks, strict=True))
    assert np.array_equal([together["overall", "a", f"b{n}"].p for n in range(12)], different)
    assert np.array_equal([together["overall", "a", f"b{n}"].p_equivalent for n in range(12)], alike, equal_nan=True)
    assert np.isnan(together["overall", "a", "b5"].p_equivalent)


def test_below_five_replicates_there_is_no_verdict() -> None:
    found = judge([pair("overall", 1, 0.5, replicates=4)], PLAN, 5).get(("overall", "a", "b1"))
    assert verdict(0.5, found, 0.05) == Verdict.NONE


def test_nothing_is_read_before_the_planned_look() -> None:
    plan = Plan("overall", PLAN.families, 0.05, 0.01, (10,))
    eight = pair("overall", 1, 0.5, replicates=8)
    assert verdict(0.5, judge([eight], plan, 8).get(("overall", "a", "b1")), 0.05) == Verdict.NONE
    ten = pair("overall", 1, 0.5, replicates=10)
    assert verdict(0.5, judge([ten], plan, 10)["overall", "a", "b1"], 0.05) == Verdict.BETTER


def test_looks_share_the_level() -> None:
    plan = Plan("overall", (ComparisonFamily(("overall",), 1.0),), 0.05, None, (5, 10, 20))
    assert plan.spent() == pytest.approx((0.25, 0.25, 0.5))
    one = pair("overall", 3, 0.003, replicates=20)
    early = float(noise(one.scores[:5]).p()) / 0.25
    middle = float(noise(one.scores[:10]).p()) / 0.25
    late = float(noise(one.scores).p()) / 0.5
    assert judge([one], plan, 10)["overall", "a", "b3"].p == pytest.approx(min(early, middle, 1))
    assert judge([one], plan, 20)["overall", "a", "b3"].p == pytest.approx(min(early, middle, late, 1))


def test_looking_often_stays_honest() -> None:
    """Of studies of equals, looked at three times, at most 5 % ever hold a false verdict; unspent, more would."""
    plan = Plan("overall", (ComparisonFamily(("overall",), 1.0),), 0.05, None, (5, 10, 15))
    honest = naive = 0
    studies = 600
    for study in range(studies):
        rng = np.random.default_rng([11, study])
        x = rng.normal(0, 0.02, (15, 1)) + rng.normal(0, 0.1, (1, 60)) + rng.normal(0, 0.1, (15, 60))
        one = PairedScores("overall", ("a", "b"), x, tuple(range(15)))
        honest += judge([one], plan, 15)["overall", "a", "b"].p < 0.05
        naive += any(float(noise(x[:n]).p()) < 0.05 for n in plan.looks)
    assert honest <= stats.binom.ppf(0.99, studies, 0.05)
    assert naive > honest


def test_equivalence_is_two_one_sided_tests() -> None:
    means = np.array([0.001, -0.002, 0.0005, 0.002, -0.001])
    found = noise(np.repeat(means[:, None], 30, axis=1))
    upper = stats.ttest_1samp(means, 0.01, alternative="less").pvalue
    lower = stats.ttest_1samp(means, -0.01, alternative="greater").pvalue
    assert float(equivalence(found, 0.01)) == pytest.approx(max(upper, lower), rel=2e-3)
    far = noise(np.repeat(means[:, None] + 0.05, 30, axis=1))
    assert float(equivalence(far, 0.01)) > 0.95


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0001, 0.2), st.integers(0, 2**31))
def test_equivalence_is_the_90_percent_interval_inside_the_margin(margin: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = noise(rng.normal(0.02, 0.02, (5, 1)) + rng.normal(0, 0.1, (5, 50)))
    low, high = float(found.mean - found.half(0.9)), float(found.mean + found.half(0.9))
    if min(abs(low + margin), abs(high - margin)) > 1e-6:
        assert (float(equivalence(found, margin)) < 0.05) == (-margin < low and high < margin)


def test_words() -> None:
    assert verdict(0.2, Judged(0.01, 1, 5), 0.05) == Verdict.BETTER
    assert verdict(0.2, Judged(0.01, 1, 5), 0.05, sign=-1) == Verdict.WORSE
    assert verdict(0.001, Judged(0.01, 0.01, 5), 0.05) == Verdict.BETTER  # a difference that is shown counts first
    assert verdict(0.001, Judged(0.3, 0.01, 5), 0.05) == Verdict.EQUIVALENT
    assert verdict(0.2, Judged(0.06, 0.2, 5), 0.05) == Verdict.SAME
    assert verdict(0.2, Judged(0.06, float("nan"), 5), 0.05) == Verdict.SAME
    assert verdict(0.2, None, 0.05) == Verdict.NONE
