"""Simulated studies: their truth is what they say, and the report's verdicts and intervals keep their word on them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import planted

from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.calibration import checks
from fusion_workbench.reports.calibration.pilots import (
    QUANTILES,
    pilot,
    pilot_components,
    pilots,
)
from fusion_workbench.reports.calibration.simulation import (
    HEAVY,
    ITEMS,
    KINDS,
    NORMAL,
    QUOTIENT,
    Study,
    World,
    draw,
    interval,
)
from fusion_workbench.reports.calibration.table import TITLES, calibration_rows, document, load, markdown, terminal_rows
from fusion_workbench.reports.statistics.components import VarianceComponents, variance_components
from fusion_workbench.reports.statistics.intervals import estimate, noise
from fusion_workbench.reports.statistics.verdicts import judge
from fusion_workbench.schema.names import Verdict

MIX = VarianceComponents(0.05, 0.25, 0.7)


@pytest.mark.parametrize("clusters", [2, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_differences_have_the_mix_that_was_asked_for(kind: str, clusters: int) -> None:
    world = World(MIX, 150, 3000, clusters, kind)
    scores, _ = draw(world, 1, np.random.default_rng(3))
    found = variance_components(scores[0, 0] - scores[0, 1], world.codes if clusters == 2 else None)
    total = found.replicate + found.example + found.interaction
    assert found.replicate / total == pytest.approx(MIX.replicate, abs=0.025)
    assert found.example / total == pytest.approx(MIX.example, abs=0.12 if clusters == 12 else 0.04)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.15, -0.1)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_over_many_studies_is_the_truth(kind: str, shift: tuple[float, float]) -> None:
    world = World(MIX, 5, 60, 12, kind)
    scores, truth = draw(world, 6000, np.random.default_rng(2), shift)
    means = scores.mean((2, 3)) - truth
    se = means.std(0) / np.sqrt(len(means))
    assert (np.abs(means.mean(0)) < 4 * se + (0.002 if kind == QUOTIENT else 0)).all()  # a quotient's bias is 1/N


def test_variance_is_that_of_the_mean_difference() -> None:
    for clusters in (2, 12):
        world = World(MIX, 4, 90, clusters)
        scores, _ = draw(world, 5000, np.random.default_rng(4))
        assert (scores[:, 0] - scores[:, 1]).mean((-2, -1)).var() == pytest.approx(world.variance, rel=0.08)


def test_what_is_counted_is_what_the_report_says() -> None:
    """Coverage is counted on :func:`noise`, whose intervals are those of :func:`estimate`."""
    world = World(MIX, 5, clusters=2)
    scores, _ = draw(world, 3, np.random.default_rng(0))
    differences = scores[:, 0] - scores[:, 1]
    for one, half in zip(differences, noise(differences, world.codes).half(), strict=True):
        assert estimate(one, world.codes).half == pytest.approx(float(half))


def test_a_study_is_judged_under_the_default_plan() -> None:
    study = Study(World(MIX, 5))
    pairs = study.pairs(np.random.default_rng(1))
    assert len({(p.measure, p.key) for p in pairs}) == len(pairs) == 3 * (11 + 10 + 9 + 8)
    assert set(judge(pairs, study.plan, 5)) == {(p.measure, *p.key) for p in pairs}
    assert sum(family.share for family in study.plan.families) == pytest.approx(1)


def test_an_overconfident_referee_would_be_caught() -> None:
    """The check can fail: cells whose replicates are hidden from it are called different far too often."""
    world = World(VarianceComponents(0.4, 0.1, 0.5), 5)
    naive = checks.row(checks.COVERAGE, {"replicates": 5}, _naive_coverage(world, 400), 400)
    assert not naive.passed
    shifted = Study(world).pairs(np.random.default_rng(0), shift=2.0)
    words = {Verdict.BETTER, Verdict.WORSE}
    assert checks._any(Study(world), 2.0, words)(3, np.random.default_rng(0)) == 3
    assert len(shifted) > 0


def _naive_coverage(world: World, studies: int) -> int:
    scores, _ = draw(world, studies, np.random.default_rng(5))
    d = scores[:, 0] - scores[:, 1]
    se = d.std((-2, -1)) / np.sqrt(d.shape[-1] * d.shape[-2])
    return int((np.abs(d.mean((-2, -1))) < 1.96 * se).sum())


def named(check: checks.Check) -> str:
    """The same in every process: a check's own repr holds the address of its function."""
    return f"{check.check} {check.setting}"


@pytest.mark.parametrize("check", [c for c in checks.checks(pilot_components(pilots())) if c.short], ids=named)
def test_short_form(check: checks.Check) -> None:
    row = check.row(300 if check.check != checks.FALSE_VERDICT else 120, 4)
    assert row.passed, row
    assert row.low <= row.rate <= row.high


@pytest.mark.long
@pytest.mark.parametrize("check", list(checks.checks(pilot_components(pilots()))), ids=named)
def test_long_form(check: checks.Check) -> None:
    whole = check.setting.get("comparisons", 1) > 1  # seconds each, and far from their bar
    row = check.row(1500 if whole else 4000, 4)
    assert row.passed, row


def test_intervals_of_rates_are_exact() -> None:
    assert interval(0, 100) == pytest.approx((0.0, 0.0362), abs=1e-4)
    assert interval(5, 100) == pytest.approx((0.0164, 0.1128), abs=1e-4)


def test_bars() -> None:
    for count, passed in ((3680, False), (3760, True), (3880, True), (3920, False)):
        assert checks.row(checks.COVERAGE, {"replicates": 5}, count, 4000).passed == passed
    assert checks.row(checks.COVERAGE, {"replicates": 3}, 3700, 4000).passed
    assert checks.row(checks.FALSE_VERDICT, {}, 215, 4000).passed
    assert not checks.row(checks.FALSE_VERDICT, {}, 240, 4000).passed
    assert [checks.row(checks.PLANTED, {}, n, 20).passed for n in (18, 19)] == [False, True]


# --- pilots -------------------------------------------------------------------------------------------------


def test_components_come_back() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.2, (80, 1)) + rng.normal(0, 0.5, (1, 900)) + rng.normal(0, 1, (80, 900))
    found = variance_components(x)
    assert (found.replicate, found.example, found.interaction) == pytest.approx((0.04, 0.25, 1.0), rel=0.2)


def made(replicates: int = 5) -> Analysis:
    rng = np.random.default_rng(1)
    keys = [("deep_only", (), 12), ("deep_only", (), 11), ("deep_only", (), 5), ("concat", (3, 6), 12)]
    scores = {key: {t: rng.binomial(1, 0.5, (replicates, 60)).astype(float) for t in ("a", "b")} for key in keys}
    return Analysis(planted(scores))


def test_a_pilot_is_read_from_a_study() -> None:
    found = pilot(made().record)
    assert (found["study"], found["replicates"], found["cells"]) == ("planted", 5, 4)
    assert set(found["mixes"]) == set(QUANTILES)
    for mix in found["mixes"].values():
        assert sum(mix.values()) == pytest.approx(1, abs=1e-3)
    assert found["mixes"]["min"]["replicate"] <= found["mixes"]["max"]["replicate"]
    assert json.dumps(found)
    assert set(pilot_components([found])) == set(QUANTILES)


def test_a_pilot_names_no_folder_of_its_machine() -> None:
    command = "workbench sweep mine -w '/home/me/my ws' replicates=7 --workspace=/data"
    record = replace(made().record, tags={"workbench.command": command})
    assert pilot(record)["command"] == "workbench sweep mine replicates=7"


def test_shipped_pilots_say_where_they_come_from() -> None:
    for row in pilots():
        assert row["study"]
        assert row["command"].startswith("workbench ")
        assert row["pairs"] > 50


# --- the table ----------------------------------------------------------------------------------------------


def test_the_shipped_table_is_of_enough_studies_and_holds_its_bars() -> None:
    found = load()
    assert found["studies"] >= 4000
    assert found["passed"]
    assert found["command"].startswith("workbench calibrate")
    kinds = {r["setting"]["scores"] for r in found["rows"] if r["check"] == checks.COVERAGE}
    assert kinds == {NORMAL, HEAVY, QUOTIENT, *ITEMS}
    assert found["mixes"] == {name: mix.__dict__ for name, mix in pilot_components(pilots()).items()}
    assert len(terminal_rows(found)) < len(found["rows"])
    assert all(line.count("|") == 6 for line in markdown(found).splitlines() if line.startswith("| "))


def test_a_report_shows_the_rows_nearest_to_its_study() -> None:
    rows = [
        checks.row(check, {"replicates": r, "clusters": c, "taken as": as_, "scores": "x", "mix": "m"}, 96 * r, 100 * r)
        for check in (checks.COVERAGE,)
        for r in (3, 5, 10)
        for c, as_ in ((2, "given"), (10, "sampled"), (30, "sampled"))
    ]
    found = document(rows, {"studies": 4000, "command": "workbench calibrate", "version": "0"})
    analysis = made(7)  # twelve groups
    told_ = calibration_rows(analysis, found)
    assert told_ is not None
    assert [r["total"] for r in told_["rows"]] == [500]
    assert "10 clusters sampled" in told_["rows"][0]["of"]
    assert told_["rows"][0]["most"] is None  # one row: no range
    few = Analysis(replace(analysis.record, groups=("a", "b")))
    told_ = calibration_rows(few, found)
    assert told_ is not None
    assert "2 clusters given" in told_["rows"][0]["of"]


def test_the_section_names_the_worst_of_the_shipped_rows() -> None:
    """Of intervals the fewest that held, of mistakes the most."""
    found = calibration_rows(made(5))
    assert found is not None
    table = load()["rows"]
    by_what = {row["what"]: row for row in found["rows"]}
    for check, pick in ((checks.COVERAGE, min), (checks.FALSE_VERDICT, max)):
        own = [r for r in table if r["check"] == check and r["setting"]["replicates"] == 5]
        own = [r for r in own if r["setting"]["clusters"] == 10]  # twelve groups
        assert by_what[TITLES[check]]["rate"] == pick(r["rate"] for r in own)
