"""Others' systems judged: pairing, one family, words, files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.scores.judge import Judgement, judge_scores, paired_differences
from fusion_workbench.reports.scores.render import to_json, write_judgement
from fusion_workbench.reports.scores.tables import Scores
from fusion_workbench.reports.statistics.example_scores import ExampleScores
from fusion_workbench.reports.statistics.intervals import estimate, holm
from fusion_workbench.reports.words.units import MIXED, SHARE
from fusion_workbench.schema.names import Verdict


def example_scores(
    scores: np.ndarray, replicates: str = "01234", examples: range | None = None, groups: int = 0
) -> ExampleScores:
    names = tuple(map(str, examples if examples is not None else range(scores.shape[1])))
    parts = tuple(f"g{i * groups // len(names)}" for i in range(len(names))) if groups else ()
    return ExampleScores(tuple(replicates)[: len(scores)], names, scores, parts)


def scores_of(**systems: ExampleScores) -> Scores:
    return Scores(tuple(systems), ("t",), {(name, "t"): o for name, o in systems.items()})


def noisy(mean: float, seed: int, replicates: int = 5, examples: int = 300) -> np.ndarray:
    shared = np.random.default_rng(99).normal(0, 0.05, (1, examples))
    rng = np.random.default_rng(seed)
    return np.clip(
        mean + shared + rng.normal(0, 0.004, (replicates, 1)) + rng.normal(0, 0.03, (replicates, examples)), 0, 1
    )


def verdicts(found: Judgement) -> dict[tuple[str, str], str]:
    return {(c.cell, c.baseline): c.verdict for c in found.comparisons}


def test_the_five_words() -> None:
    few = example_scores(noisy(0.9, 5, 3))
    scores = scores_of(
        base=example_scores(noisy(0.5, 0)),
        up=example_scores(noisy(0.56, 1)),
        down=example_scores(noisy(0.44, 2)),
        alike=example_scores(noisy(0.5, 3)),
        near=example_scores(noisy(0.5, 3) + 0.02),
        few=few,
    )
    found = judge_scores(scores, margin=0.02)
    words = verdicts(found)
    assert [words[s, "base"] for s in ("up", "down", "alike", "few")] == [
        Verdict.BETTER,
        Verdict.WORSE,
        Verdict.EQUIVALENT,
        Verdict.NONE,
    ]
    assert verdicts(judge_scores(scores))["alike", "base"] == Verdict.SAME  # without a margin nothing is equivalent
    turned = verdicts(judge_scores(scores, higher_is_better=False))
    assert (turned["up", "base"], turned["down", "base"]) == (Verdict.WORSE, Verdict.BETTER)
    assert found.headline.startswith("Of 5 comparisons ")
    assert "1 has no verdict" in found.headline
    assert "A verdict takes 5 replicates of both systems" in found.caveats[0]


def test_numbers_are_those_of_the_report() -> None:
    a, b, c = noisy(0.5, 0), noisy(0.51, 1), noisy(0.52, 2)
    found = judge_scores(scores_of(a=example_scores(a), b=example_scores(b), c=example_scores(c)))
    one, two = found.comparisons
    assert one.difference == estimate(b - a)
    assert [one.p, two.p] == pytest.approx(holm([estimate(b - a).p, estimate(c - a).p]).tolist())
    assert found.tables[0].unit is SHARE


def test_two_baselines_meet_once() -> None:
    a, b, c = noisy(0.5, 0), noisy(0.51, 1), noisy(0.52, 2)
    found = judge_scores(scores_of(a=example_scores(a), b=example_scores(b), c=example_scores(c)), ["a", "b"])
    assert (len(found.comparisons), len(found.distinct)) == (4, 3)
    by = {(x.cell, x.baseline): x for x in found.comparisons}
    assert by["a", "b"].p == by["b", "a"].p
    assert by["a", "b"].difference.mean == pytest.approx(-by["b", "a"].difference.mean)  # type: ignore[union-attr]
    assert by["a", "b"].difference.low == pytest.approx(-by["b", "a"].difference.high)  # type: ignore[union-attr]
    raw = [estimate(x).p for x in (b - a, c - a, c - b)]
    assert sorted({x.p for x in found.comparisons}) == pytest.approx(sorted(set(holm(raw).tolist())))


def test_replicates_are_paired_where_names_agree_and_else_not() -> None:
    a, b = noisy(0.5, 0), noisy(0.5, 1)
    paired = judge_scores(scores_of(a=example_scores(a), b=example_scores(b)))
    apart = judge_scores(scores_of(a=example_scores(a), b=example_scores(b, "56789")))
    forced = judge_scores(scores_of(a=example_scores(a), b=example_scores(b)), independent=True)
    assert not any("not by replicate" in c for c in paired.caveats)
    assert "Paired by example and not by replicate (they share too few): a and b." in apart.caveats[0]
    assert "(as asked for)" in forced.caveats[0]
    assert apart.comparisons[0].difference == forced.comparisons[0].difference
    assert paired.comparisons[0].difference.mean == pytest.approx(apart.comparisons[0].difference.mean)  # type: ignore[union-attr]


def test_one_common_replicate_of_many_pairs_nothing() -> None:
    found = judge_scores(scores_of(a=example_scores(noisy(0.5, 0)), b=example_scores(noisy(0.5, 1), "4abcd")))
    assert "not by replicate" in found.caveats[0]
    assert found.comparisons[0].verdict == Verdict.SAME


def test_one_replicate_says_that_seeds_are_left_out() -> None:
    found = judge_scores(scores_of(a=example_scores(noisy(0.5, 0, 1)), b=example_scores(noisy(0.6, 1, 1))))
    assert verdicts(found) == {("b", "a"): Verdict.NONE}
    assert found.headline.startswith("No verdict: b against a makes +")
    assert found.caveats[0].startswith(
        "a and b have one replicate: their intervals are over examples alone and leave seeds out"
    )
    single = judge_scores(scores_of(a=example_scores(noisy(0.5, 0)), b=example_scores(noisy(0.6, 1, 1), "x")))
    assert single.caveats[0].startswith("b has one replicate: its intervals")
    assert verdicts(single) == {("b", "a"): Verdict.NONE}


def test_few_groups_are_a_condition() -> None:
    four = judge_scores(scores_of(a=example_scores(noisy(0.5, 0), groups=4), b=example_scores(noisy(0.6, 1), groups=4)))
    many = judge_scores(
        scores_of(a=example_scores(noisy(0.5, 0), groups=12), b=example_scores(noisy(0.6, 1), groups=12))
    )
    assert "Conditional on these groups on t: the examples come from 4 groups" in four.caveats[0]
    assert not many.caveats
    assert many.tables[0].lines[0].mean.groups == 12


def test_examples_that_one_lacks_are_told() -> None:
    a, b = example_scores(noisy(0.5, 0)), example_scores(noisy(0.6, 1)[:, :290], examples=range(10, 300))
    found = judge_scores(scores_of(a=a, b=b))
    assert "a and b on t: 10 examples that only one of them has are left out." in found.caveats
    assert found.comparisons[0].difference.examples == 290  # type: ignore[union-attr]


def test_scores_beyond_one_are_numbers_as_they_are() -> None:
    found = judge_scores(scores_of(a=example_scores(30 * noisy(0.5, 0)), b=example_scores(30 * noisy(0.51, 1))))
    assert found.tables[0].unit is MIXED


def test_what_cannot_be_judged_is_said() -> None:
    a, b = example_scores(noisy(0.5, 0)), example_scores(noisy(0.6, 1))
    elsewhere = example_scores(noisy(0.6, 1), examples=range(1000, 1300))
    cases = [
        (scores_of(a=a), {}, "the files hold one system, a; a verdict takes two"),
        (scores_of(a=a, b=b), {"baselines": ["bb"]}, "--baseline bb: there is no such system. Did you mean 'b'"),
        (scores_of(a=a, b=elsewhere), {}, "a and b have no example in common on t: such as '0' in the one and '1000'"),
        (scores_of(a=a, b=b), {"level": 1.0}, "--level 1: it is the chance"),
        (scores_of(a=a, b=b), {"margin": -1.0}, "--margin -1: it is a difference"),
        (
            Scores(("a", "b"), ("t", "u"), {("a", "t"): a, ("b", "u"): b}),
            {},
            "no measure is scored for a and for another",
        ),
    ]
    for scores, more, said in cases:
        with pytest.raises(WorkbenchError, match=re.escape(said)) as caught:
            judge_scores(scores, **more)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_at_most_one_in_twenty_files_of_equals_holds_a_false_verdict() -> None:
    """Four equal systems, replicates of their own: any better or worse is false. 300 files."""
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(300):
        shared = rng.normal(0, 0.2, (1, 60))
        systems = {
            f"s{k}": example_scores(
                shared + rng.normal(0, 0.1, (1, 60)) + rng.normal(0, 0.05, (5, 1)) + rng.normal(0, 0.1, (5, 60)),
                "".join(chr(97 + 5 * k + r) for r in range(5)),
            )
            for k in range(4)
        }
        found = judge_scores(scores_of(**systems))
        wrong += any(c.verdict in (Verdict.BETTER, Verdict.WORSE) for c in found.comparisons)
    assert wrong <= 24  # 15 expected at most; 24 has a chance of 1 % there


def test_differences_are_paired_for_a_pilot() -> None:
    scores = scores_of(
        a=example_scores(noisy(0.5, 0)),
        b=example_scores(noisy(0.6, 1), "34567"),
        c=example_scores(noisy(0.6, 1), "vwxyz"),
    )
    found = paired_differences(scores, "t", "b", "a")
    assert found is not None
    assert found.replicates == ("3", "4")
    assert paired_differences(scores, "t", "c", "a") is None


def test_files_say_the_same_and_escape_what_they_print(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    scores = scores_of(
        **{
            "base": example_scores(noisy(0.5, 0)),
            evil: example_scores(noisy(0.6, 1)),
            "few": example_scores(noisy(0.5, 2, 2)),
        }
    )
    found = judge_scores(scores, margin=0.01)
    html, markdown, plain, table = write_judgement(found, tmp_path / "out", ("x.csv",))
    text = html.read_text()
    assert evil not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "▲" in text
    assert "± 1.0 points" in text
    assert evil not in markdown.read_text()
    assert "| base | 50" in markdown.read_text()
    told = json.loads(plain.read_text())
    assert told == json.loads(json.dumps(to_json(found, ("x.csv",))))
    assert told["comparisons"][1]["p"] is None  # two replicates: no verdict
    rows = list(csv.DictReader(table.open()))
    assert [r["verdict"] for r in rows] == ["the baseline itself", Verdict.BETTER, Verdict.NONE]
    assert float(rows[1]["difference"]) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("evil", ["=cmd|'/c calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "a\r\n=1"])
def test_a_spreadsheet_runs_nothing(tmp_path: Path, evil: str) -> None:
    scores = scores_of(**{evil: example_scores(noisy(0.5, 0)), "other": example_scores(noisy(0.6, 1))})
    *_, table = write_judgement(judge_scores(scores), tmp_path / "out")
    rows = list(csv.DictReader(table.open(newline="")))
    plain = evil.replace("\r\n", "\n")
    assert {r["system"] for r in rows} == {"other", plain if plain.startswith("a") else f"'{plain}"}
    assert float(rows[-1]["difference"]) != 0, "numbers stay numbers"


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    found = judge_scores(scores_of(a=example_scores(noisy(0.5, 0)), b=example_scores(noisy(0.6, 1))))
    with pytest.raises(WorkbenchError, match="cannot be written"):
        write_judgement(found, tmp_path / "out")


def test_a_measure_that_one_system_lacks_is_told() -> None:
    a, b = example_scores(noisy(0.5, 0)), example_scores(noisy(0.5, 1))
    found = judge_scores(Scores(("a", "b"), ("t", "u"), {("a", "t"): a, ("b", "t"): b, ("a", "u"): a}))
    assert "u is not scored for b: not compared there." in found.caveats


def test_markdown_tells_what_the_intervals_count(tmp_path: Path) -> None:
    """Two hundred examples of twelve groups are twelve draws."""
    a, b = example_scores(noisy(0.5, 0), groups=12), example_scores(noisy(0.6, 1), groups=12)
    write_judgement(judge_scores(scores_of(a=a, b=b)), tmp_path)
    text = (tmp_path / "verdict.md").read_text()
    assert "| replicates | examples | groups |\n|---|---|---|---:|---:|---:|\n| a | " in text
    assert "| 5 | 300 | 12 |\n| b | " in text
    assert "correction for the one comparison" in text
    write_judgement(judge_scores(scores_of(a=example_scores(noisy(0.5, 0)), b=example_scores(noisy(0.6, 1)))), tmp_path)
    assert "| examples |\n|---|---|---|---:|---:|\n| a | " in (tmp_path / "verdict.md").read_text()
