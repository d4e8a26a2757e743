"""What a design tells: against simulated studies, against itself, and from a pilot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_study import planted

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.planning import hours, planning, round_differences, round_up, what_it_would_take
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.statistics.intervals import noise
from fusion_workbench.reports.statistics.power import needed, needed_examples, pilot, power, smallest, upper_limit

quick = settings(max_examples=40, deadline=None)
variances = st.floats(1e-6, 1.0)


@pytest.mark.parametrize(
    ("replicate", "example", "interaction", "replicates", "examples", "alpha", "difference"),
    [
        (1e-4, 0.04, 0.05, 5, 400, 0.05, 0.03),
        (1e-4, 0.04, 0.05, 5, 400, 0.005, 0.05),
        (1e-4, 0.0, 0.05, 8, 200, 0.01, 0.03),
        (4e-4, 0.2, 0.1, 10, 30, 0.01, 0.25),
    ],
)
def test_power_is_what_simulated_studies_show(
    replicate: float,
    example: float,
    interaction: float,
    replicates: int,
    examples: int,
    alpha: float,
    difference: float,
) -> None:
    rng = np.random.default_rng(11)
    size = 3000
    x = difference + rng.normal(0, replicate**0.5, (size, replicates, 1))
    x = x + rng.normal(0, example**0.5, (size, 1, examples))
    x += rng.normal(0, interaction**0.5, (size, replicates, examples))
    found = power(difference, replicate + interaction / examples, example, replicates, examples, alpha)
    assert float((noise(x).p() < alpha).mean()) == pytest.approx(found, abs=0.035)


def test_power_at_no_difference_is_at_most_the_level() -> None:
    assert power(0.0, 1e-4, 0.0, 5, 400, 0.05) == pytest.approx(0.05, abs=1e-3)
    assert power(0.0, 1e-4, 0.04, 5, 400, 0.05) < 0.05


@quick
@given(variances, variances, st.integers(5, 30), st.integers(10, 3000), st.sampled_from([0.05, 0.005, 0.0005]))
def test_more_of_anything_tells_more(
    seeds: float, sampling: float, replicates: int, examples: int, alpha: float
) -> None:
    d = 3 * (seeds / replicates + sampling / examples) ** 0.5
    at = power(d, seeds, sampling, replicates, examples, alpha)
    slack = 1e-6
    assert 0 <= at <= 1
    assert power(2 * d, seeds, sampling, replicates, examples, alpha) >= at - slack
    assert power(d, seeds, sampling, replicates + 3, examples, alpha) >= at - slack
    assert power(d, seeds, sampling, replicates, 2 * examples, alpha) >= at - slack
    assert power(d, seeds, sampling, replicates, examples, alpha / 5) <= at + slack


@quick
@given(variances, variances, st.integers(5, 30), st.integers(20, 3000), st.sampled_from([0.05, 0.005]))
def test_the_smallest_difference_and_the_replicates_for_it_agree(
    seeds: float, sampling: float, replicates: int, examples: int, alpha: float
) -> None:
    d = smallest(seeds, sampling, replicates, examples, alpha)
    assert power(d, seeds, sampling, replicates, examples, alpha) == pytest.approx(0.8, abs=1e-6)
    found = needed(1.0001 * d, seeds, sampling, examples, alpha)
    assert found is not None
    assert found <= replicates
    assert found == 5 or power(1.0001 * d, seeds, sampling, found - 1, examples, alpha) < 0.8


def test_replicates_do_not_help_against_the_choice_of_examples() -> None:
    assert needed(0.01, 1e-5, 0.2, 100, 0.05) is None
    known = pilot(
        np.random.default_rng(0).normal(0, 0.45, (1, 400)) + np.random.default_rng(1).normal(0, 0.01, (5, 400))
    )
    assert known is not None
    found = needed_examples(0.03, known, 5, 0.05)
    assert found is not None
    assert 1000 < found < 5000
    assert needed(0.03, known.seeds_at(found), known.sampling_var, found, 0.05) == 5


def test_an_upper_limit_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    estimates = rng.chisquare(4, 20_000) / 4
    limits = estimates * upper_limit(1.0, 4)
    assert float((limits >= 1.0).mean()) == pytest.approx(0.8, abs=0.01)


def test_a_pilot_is_its_noise() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0, 0.02, (5, 1)) + rng.normal(0, 0.4, (1, 300)) + rng.normal(0, 0.2, (5, 300))
    found, known = noise(x), pilot(x)
    assert known is not None
    assert known.measured == pytest.approx((float(found.seeds) * 5, float(found.sampling) * 300))
    assert known.seeds_var == pytest.approx(upper_limit(known.measured[0], 4))
    assert known.interaction_var == pytest.approx(0.04, rel=0.15)
    assert known.measured[1] < known.sampling_var < 1.3 * known.measured[1]
    assert known.seeds_at(300) == pytest.approx(known.seeds_var)
    assert known.seeds_at(3000) < known.seeds_var
    assert pilot(x[:1]) is None


def test_groups_are_what_is_counted_from_ten_on() -> None:
    x = np.random.default_rng(4).normal(0, 0.3, (5, 240))
    many, few = np.arange(240) // 12, np.arange(240) // 60
    assert (pilot(x, many).examples, pilot(x, many).grouped) == (20, True)  # type: ignore[union-attr]
    assert (pilot(x, few).examples, pilot(x, few).grouped) == (240, False)  # type: ignore[union-attr]


@pytest.mark.parametrize("truth", [1.0, 0.2])
def test_plans_on_upper_limits_keep_their_promise(truth: float) -> None:
    """Planned from five replicates, the true power is at least .8 in at least .8 of the pilots."""
    rng = np.random.default_rng(5)
    seeds, sampling, examples, difference, kept = truth * 4e-4, 0.01, 200, 0.04, []
    for _ in range(150):
        x = rng.normal(0, seeds**0.5, (5, 1)) + rng.normal(0, sampling**0.5, (1, examples))
        known = pilot(x + rng.normal(0, 0.02, (5, examples)))
        assert known is not None
        found = needed(difference, known.seeds_var, known.sampling_var, examples, 0.01)
        assert found is not None
        kept.append(power(difference, seeds + 4e-4 / examples, sampling, found, examples, 0.01) >= 0.8)
    assert np.mean(kept) > 0.75


# --- a study as the pilot -------------------------------------------------------------------------------------------


def study(replicates: int = 5, images: int = 200, seconds: float | None = 30.0) -> StudyRecord:
    rng = np.random.default_rng(6)
    difficulty = rng.normal(0, 0.2, (1, images))

    def scores(mean: float) -> np.ndarray:
        return mean + difficulty + rng.normal(0, 0.02, (replicates, 1)) + rng.normal(0, 0.05, (replicates, images))

    keys = [("deep_only", (), 5), ("deep_only", (), 12), ("concat", (3, 4, 5), 6), ("mmfuser", (3, 6), 12)]
    record = planted({k: {"read": scores(m)} for k, m in zip(keys, (0.5, 0.3, 0.42, 0.55), strict=True)})
    if seconds is None:
        return record
    return replace(record, runs=tuple(replace(r, metrics={**r.metrics, "cost/seconds": seconds}) for r in record.runs))


def test_the_sentence_says_what_it_would_take_and_what_it_costs() -> None:
    analysis = Analysis(study())
    found = planning(analysis)
    assert (found.cell.strategy, found.against.name) == ("mmfuser", "layer 5 alone")
    # cells: winner, deepest (also the layer 12), layer 5, middle concat; comparisons of the winner: three
    assert (found.fresh.cells, found.fresh.comparisons) == (4, 3)
    assert found.fresh.alpha == pytest.approx(0.05 * 0.5 / 3)
    assert found.whole.comparisons == 6  # every pair of the four holds a baseline
    assert found.whole.alpha == pytest.approx(0.05 / 6)
    assert found.fresh.hours == pytest.approx(4 * 30 / 3600)
    row = found.row(0.01)
    assert row.fresh is not None
    said = what_it_would_take(analysis)
    assert said == (
        f"To tell a difference of 1.0 points from the best baseline, layer 5 alone, with power .8 it would take about "
        f"{round_up(row.fresh)} fresh replicates of the winner and the baselines "
        f"({hours(round_up(row.fresh) * 4 * 30 / 3600)} here)."
    )


def test_without_times_it_names_no_hours() -> None:
    said = what_it_would_take(Analysis(study(seconds=None)))
    assert "here" not in said
    assert said.endswith("the winner and the baselines.")


def test_where_replicates_cannot_do_it_it_names_test_images() -> None:
    rng = np.random.default_rng(7)

    def scores(mean: float) -> np.ndarray:
        return mean + rng.normal(0, 0.1, (1, 100)) + rng.normal(0, 0.01, (5, 1)) + rng.normal(0, 0.01, (5, 100))

    keys = [("deep_only", (), 5), ("concat", (3, 4, 5), 6), ("mmfuser", (3, 6), 12)]
    said = what_it_would_take(Analysis(planted({k: {"read": scores(0.5)} for k in keys})))
    assert said.startswith("No number of replicates tells a difference of 1.0 points from the best baseline")
    assert "the choice of the 100 test images alone hides it; with " in said


def test_one_replicate_is_no_pilot() -> None:
    analysis = Analysis(study(replicates=1))
    assert what_it_would_take(analysis) == ""
    with pytest.raises(WorkbenchError, match="one replicate in common, which tells nothing of seeds"):
        planning(analysis)


def test_fewer_than_five_are_a_poor_pilot_and_make_no_sentence() -> None:
    analysis = Analysis(study(replicates=3))
    found = planning(analysis)
    assert found.now == smallest(found.pilot.seeds_var, found.pilot.sampling_var, 5, 200, found.whole.alpha)
    assert what_it_would_take(analysis) == ""


def test_small_words() -> None:
    assert [hours(h) for h in (None, 0.001, 0.5, 2.14, 100.0)] == ["?", "1 min", "30 min", "2.1 h", "4.2 days"]
    assert [round_up(n) for n in (7, 99, 101, 1234)] == [7, 99, 110, 1300]
    assert round_differences(0.1) == pytest.approx([0.01, 0.02, 0.05, 0.1])
