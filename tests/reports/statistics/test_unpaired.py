"""Two systems that share no replicates: exact cases, tails, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fusion_workbench.reports.statistics.intervals import noise
from fusion_workbench.reports.statistics.unpaired import Unpaired, estimated, unpaired
from fusion_workbench.reports.statistics.verdicts import equivalence


def simulated(
    rng: np.random.Generator, size: int, replicates: tuple[int, int], seeds: tuple[float, float], examples: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of equal systems: a difficulty of each example that both share, a part of it that each has alone."""
    out = []
    for _ in range(size):
        shared = rng.normal(0, 0.3, (1, examples))
        both = [
            shared + rng.normal(0, 0.1, (1, examples)) + rng.normal(0, s, (r, 1)) + rng.normal(0, 0.2, (r, examples))
            for r, s in zip(replicates, seeds, strict=True)
        ]
        out.append((both[0], both[1]))
    return out


def test_without_noise_of_examples_it_is_banerjee_s_interval() -> None:
    a, b = np.array([0.1, 0.3, 0.2, 0.5, 0.35]), np.array([0.2, 0.25, 0.4])
    found = unpaired(np.repeat(a[:, None], 30, 1), np.repeat(b[:, None], 30, 1))
    variances = a.var(ddof=1) / 5, b.var(ddof=1) / 3
    half = np.sqrt(sum(stats.t.isf(0.025, df) ** 2 * v for v, df in zip(variances, (4, 2), strict=True)))
    assert float(found.mean) == pytest.approx(a.mean() - b.mean())
    assert float(found.sampling) == pytest.approx(0)
    assert float(found.half()) == pytest.approx(half)


def test_the_examples_part_is_that_of_the_paired_differences_where_seeds_are_quiet() -> None:
    rng = np.random.default_rng(1)
    example = rng.normal(0, 1, (2, 1, 2000))
    a, b = (example[i] + rng.normal(0, 0.3, (6, 2000)) for i in (0, 1))
    apart, paired = unpaired(a, b), noise(a - b)
    assert float(apart.mean) == pytest.approx(float(paired.mean))
    assert float(apart.sampling) == pytest.approx(float(paired.sampling), rel=0.02)
    assert apart.df_sampling == paired.df_sampling == 1999


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999, 1 - 1e-9])
def test_p_is_the_level_at_which_the_interval_reaches(level: float) -> None:
    a, b = simulated(np.random.default_rng(2), 1, (5, 8), (0.05, 0.02), 60)[0]
    found = unpaired(a, b)
    edge = float(found.mean) + float(found.half(level))
    assert float(found.p(edge)) == pytest.approx(1 - level, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(2, 7), st.integers(0, 2))
def test_turning_the_two_round_turns_the_sign_alone(seed: int, one: int, other: int, kind: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, (one, 24)), rng.normal(0.2, 2, (other, 24))
    groups = [None, np.arange(24) // 2, np.arange(24) // 8][kind]
    first, second = unpaired(a, b, groups), unpaired(b, a, groups)
    assert float(first.mean) == pytest.approx(-float(second.mean))
    assert float(first.half()) == pytest.approx(float(second.half()))
    assert float(first.p()) == pytest.approx(float(second.p()))
    assert float(first.sampling) >= 0


def test_one_replicate_leaves_seeds_out() -> None:
    rng = np.random.default_rng(3)
    found = unpaired(rng.normal(0, 1, (1, 50)), rng.normal(0, 1, (5, 50)))
    assert found.parts[0] == (0.0, 0)
    assert found.df_seeds == 0
    assert np.isfinite(float(found.half()))


def test_an_estimate_and_an_equivalence_can_be_made_of_it() -> None:
    a, b = simulated(np.random.default_rng(4), 1, (5, 5), (0.001, 0.001), 400)[0]
    found = unpaired(a, b)
    e = estimated(found, 5, 400)
    assert (e.low + e.high) / 2 == pytest.approx(float(found.mean))
    assert e.low < e.low90 < e.high90 < e.high
    assert e.p == pytest.approx(float(found.p()))
    assert float(equivalence(found, 0.5)) < 1e-6
    assert float(equivalence(found, abs(float(found.mean)) / 2)) > 0.5


@pytest.mark.parametrize(
    ("replicates", "seeds"),
    [((5, 5), (0.03, 0.03)), ((5, 5), (0.06, 0.01)), ((5, 10), (0.06, 0.01)), ((3, 10), (0.02, 0.05))],
)
def test_intervals_cover(replicates: tuple[int, int], seeds: tuple[float, float]) -> None:
    """95 % or more; not so wide that nobody could use them."""
    found = [unpaired(a, b) for a, b in simulated(np.random.default_rng(5), 1200, replicates, seeds, 60)]
    inside = np.mean([abs(float(f.mean)) <= float(f.half()) for f in found])
    assert inside > 0.935
    known = np.sqrt(sum((s**2 + 0.04 / 60) / r for r, s in zip(replicates, seeds, strict=True)) + 2 * 0.01 / 60)
    needed = stats.t.isf(0.025, min(replicates) - 1) * known
    assert np.median([float(f.half()) for f in found]) < 1.3 * needed


def test_the_tail_holds_where_welch_s_does_not() -> None:
    """Five noisy replicates against twenty quiet ones, the parts drawn as chi-squares: 200,000 at the level .001."""
    rng, size = np.random.default_rng(6), 200_000
    one, other = 1.0, 0.05
    mean = rng.normal(0, np.sqrt(one + other), size)
    a, b = one * rng.chisquare(4, size) / 4, other * rng.chisquare(19, size) / 19
    welch_df = np.floor((a + b) ** 2 / (a**2 / 4 + b**2 / 19))
    welch = np.mean(mean**2 > stats.t.isf(0.0005, welch_df) ** 2 * (a + b))
    zero = np.asarray(0.0)
    edges = [
        float(Unpaired(zero, zero + x + y, zero, 4, 10, ((x, 4), (y, 19))).half(0.999))
        for x, y in zip(a[:50], b[:50], strict=True)
    ]
    ours = stats.t.isf(0.0005, 4) ** 2 * a + stats.t.isf(0.0005, 19) ** 2 * b
    assert np.sqrt(ours[:50]) == pytest.approx(edges)  # the formula is the one that the code has
    assert np.mean(mean**2 > ours) <= 0.001
    assert welch > 0.002


@pytest.mark.long
def test_the_table_of_docs_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """Coverage of the code's own intervals, and how often each form is wrong at .001, relative to that."""
    rows = []
    for replicates, seeds in (
        ((3, 3), (0.03, 0.03)),
        ((5, 5), (0.03, 0.03)),
        ((5, 5), (0.08, 0.01)),
        ((10, 10), (0.03, 0.03)),
        ((5, 10), (0.08, 0.01)),
        ((5, 20), (0.08, 0.01)),
        ((5, 20), (0.01, 0.08)),
    ):
        rng = np.random.default_rng(9)
        found = [unpaired(a, b) for a, b in simulated(rng, 4000, replicates, seeds, 60)]
        cover = float(np.mean([abs(float(f.mean)) <= float(f.half()) for f in found]))
        size, df = 1_000_000, np.array(replicates) - 1
        true = np.array([(s**2 + 0.04 / 60) / r for r, s in zip(replicates, seeds, strict=True)])
        squares = rng.normal(0, np.sqrt(true.sum()), size) ** 2
        parts = [v * rng.chisquare(d, size) / d for v, d in zip(true, df, strict=True)]
        both = np.add(*parts)
        welch = np.floor(both**2 / sum(p**2 / d for p, d in zip(parts, df, strict=True)))
        t = [0.0, *(stats.t.isf(0.0005, d) ** 2 for d in range(1, 40))]
        ours = float(np.mean(squares > sum(t[d] * p for d, p in zip(df, parts, strict=True)))) / 0.001
        theirs = float(np.mean(squares > np.asarray(t)[welch.astype(int)] * both)) / 0.001
        rows.append((replicates, seeds, cover, ours, theirs))
        assert cover > 0.945
        assert ours < 1.1
    with capsys.disabled():
        print()
        for (r1, r2), (s1, s2), cover, ours, theirs in rows:
            print(f"| {r1}, {r2} | {s1:g}, {s2:g} | {100 * cover:.1f} % | {ours:.2f} | {theirs:.2f} |")
