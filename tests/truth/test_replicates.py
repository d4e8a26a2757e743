"""Replicates that are none, and examples too few to tell what others would change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cases import Kind, case
from synthetic_study import planted
from typer.testing import CliRunner

from fusion_workbench.cli.main import app
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.caveats import caveats
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.scores.judge import Judgement, judge_scores
from fusion_workbench.reports.scores.tables import read_scores
from fusion_workbench.reports.statistics.copies import copies, counted_once
from fusion_workbench.reports.statistics.example_scores import ExampleScores
from fusion_workbench.schema.names import Verdict

HEAD = "system,seed,id,score\n"


def rows(system: str, scores: np.ndarray) -> str:
    return "".join(f"{system},{r},{i},{s:g}\n" for r, row in enumerate(scores) for i, s in enumerate(row))


def judged(path: Path, text: str) -> Judgement:
    (path / "s.csv").write_text(HEAD + text)
    return judge_scores(read_scores([str(path / "s.csv")]))


def answers(seed: int, replicates: int, examples: int, share: float = 0.6, agree: float = 0.8) -> np.ndarray:
    """Right or wrong: each replicate follows a common answer with a chance of ``agree``, else its own."""
    rng = np.random.default_rng(seed)
    common = rng.random(examples) < share
    own = rng.random((replicates, examples)) < share
    return np.where(rng.random((replicates, examples)) < agree, common, own).astype(float)


def system(scores: np.ndarray) -> ExampleScores:
    return ExampleScores(tuple(map(str, range(len(scores)))), tuple(map(str, range(scores.shape[1]))), scores)


@case(
    Kind.REPLICATES,
    "one greedy evaluation, repeated five times: all replicates of both systems are identical",
    "told, counted as one, no verdict: its interval is over examples alone",
    "EleutherAI/lm-evaluation-harness#2089",
)
def test_one_evaluation_repeated(tmp_path: Path) -> None:
    good, bad = (np.repeat(answers(seed, 1, 200, share), 5, 0) for seed, share in ((0, 0.65), (1, 0.45)))
    found = judged(tmp_path, rows("good", good) + rows("bad", bad))
    alone = judged(tmp_path, rows("good", good[:1]) + rows("bad", bad[:1]))
    (comparison,) = found.comparisons
    assert comparison.verdict == Verdict.NONE
    assert comparison.difference == alone.comparisons[0].difference
    assert [line.mean.replicates for line in found.tables[0].lines] == [1, 1]
    assert (
        "The 5 replicates of good are identical on all 200 scores, so nothing is known of seeds: they count as one."
        in found.caveats
    )
    assert "leave seeds out" in found.caveats[0]


@case(
    Kind.REPLICATES,
    "one of two systems is an evaluation repeated five times, or two of five replicates are copies",
    "the copies count once, which leaves too few for a verdict, and both are told",
)
def test_copies_among_replicates(tmp_path: Path) -> None:
    one = answers(0, 5, 200)
    found = judged(tmp_path, rows("a", one) + rows("b", np.repeat(answers(1, 1, 200), 5, 0)))
    assert found.comparisons[0].verdict == Verdict.NONE
    assert "The 5 replicates of b are identical on all 200 scores" in " ".join(found.caveats)
    assert "The 5 replicates of a" not in " ".join(found.caveats)
    some = one.copy()
    some[3] = some[1]
    found = judged(tmp_path, rows("a", some) + rows("b", answers(2, 5, 200)))
    assert "Replicates 1 and 3 of a are identical on all 200 scores and count as one." in found.caveats
    assert [line.mean.replicates for line in found.tables[0].lines] == [4, 5]
    assert found.comparisons[0].verdict == Verdict.NONE


@case(
    Kind.REPLICATES,
    "replicates that agree on a handful of right-or-wrong scores, as independent ones may",
    "counted as they are, and told",
)
def test_agreement_that_may_be_chance(tmp_path: Path) -> None:
    few, other = (
        np.array([[int(c) for c in row] for row in scores.split()], float)
        for scores in (
            "11010111 11010111 01010111 11011111 11000111",
            "10010111 00010111 10110111 10010110 11010111",
        )
    )
    found = judged(tmp_path, rows("a", few) + rows("b", other))
    assert [line.mean.replicates for line in found.tables[0].lines] == [5, 5]
    said = "Replicates 0 and 1 of a are the same on all 8 scores; on so few that can be chance, and they count as 2."
    assert said in found.caveats


def test_independent_replicates_are_seldom_taken_for_copies() -> None:
    """Right-or-wrong scores of replicates that agree on nine examples of ten, of 30 examples: 2,000 systems."""
    taken = 0
    for seed in range(2000):
        found = copies([system(answers(seed, 5, 30, agree=0.85))])
        taken += found is not None and found.certain
    assert taken <= 4


def test_nothing_is_said_of_a_system_that_is_always_right() -> None:
    assert copies([system(np.ones((5, 50)))]) is None


def test_replicates_are_copies_only_on_all_measures() -> None:
    same, other = np.repeat(answers(0, 1, 40), 5, 0), answers(1, 5, 40)
    assert copies([system(same), system(other)]) is None
    found = copies([system(same), system(same[:, ::-1])])
    assert found is not None
    assert (found.all, found.scores, found.certain) == (True, 80, True)
    kept, said = counted_once({"x": system(same), "y": system(same)}, "a")
    assert [m.replicates for m in kept.values()] == [("0",), ("0",)]
    assert said == (
        "The 5 replicates of a are identical on all 80 scores, so nothing is known of seeds: they count as one.",
    )


@pytest.mark.parametrize(("examples", "these"), [(1, "this example"), (2, "these 2 examples")])
@case(
    Kind.REPLICATES,
    "five replicates of one or two examples",
    "no verdict: conditional on them, since nobody can tell what others would change",
    "heypinchy/pinchy#797",
    "mateuszbuda/ml-stat-util#2",
)
def test_one_or_two_examples(tmp_path: Path, examples: int, these: str) -> None:
    found = judged(tmp_path, rows("a", np.ones((5, examples))) + rows("b", np.zeros((5, examples))))
    assert found.comparisons[0].verdict == Verdict.NONE
    assert found.headline.startswith("No verdict: b against a makes −100.0")
    assert found.caveats[0].startswith(f"Conditional on {these}: from {examples} nobody can tell what other examples")


def test_three_examples_have_a_verdict_as_before(tmp_path: Path) -> None:
    spread = np.linspace(0, 0.02, 15).reshape(5, 3)
    found = judged(tmp_path, rows("a", 0.9 + spread) + rows("b", 0.1 + spread[::-1]))
    assert found.comparisons[0].verdict == Verdict.WORSE


@case(
    Kind.REPLICATES,
    "`workbench power` with a pilot whose replicates are identical, or of one or two examples",
    "refused: it tells nothing of seeds, or of other examples",
)
def test_a_pilot_that_tells_nothing(tmp_path: Path) -> None:
    texts = (
        (rows("a", np.repeat(answers(0, 1, 60), 5, 0)) + rows("b", np.repeat(answers(1, 1, 60), 5, 0)), "identical"),
        (rows("a", answers(0, 5, 2)) + rows("b", answers(1, 5, 2)), "of 2 examples nobody can tell"),
    )
    for text, said in texts:
        (tmp_path / "s.csv").write_text(HEAD + text)
        done = CliRunner().invoke(app, ["power", "--scores", str(tmp_path / "s.csv")])
        assert isinstance(done.exception, WorkbenchError)
        assert said in str(done.exception)
        assert "\n" not in str(done.exception)


# --- a study's own report -------------------------------------------------------------------------------------------

CONCAT, LAST, FIFTH = ("concat", (3, 6), 12), ("deep_only", (), 12), ("deep_only", (), 5)


def study(**changed: np.ndarray) -> Analysis:
    scores = {CONCAT: answers(0, 5, 90), LAST: answers(1, 5, 90), FIFTH: answers(2, 5, 90)}
    scores |= {{"concat": CONCAT, "last": LAST, "fifth": FIFTH}[name]: values for name, values in changed.items()}
    return Analysis(planted({key: {"digit": values} for key, values in scores.items()}, groups=()))


@case(
    Kind.REPLICATES,
    "a study's cell whose replicates are identical on the whole test split: seeds change nothing of it",
    "told in the report",
    "EleutherAI/lm-evaluation-harness#2089",
)
def test_a_cell_of_a_study_that_no_seed_moves() -> None:
    said = caveats(study(last=np.repeat(answers(1, 1, 90), 5, 0)))
    assert (
        "The 5 replicates of layer 12 alone are identical on all 90 test scores: nothing is known of seeds there, and "
        "intervals and verdicts leave them out." in said
    )
    some = answers(0, 5, 90)
    some[4] = some[2]
    assert (
        "Replicates 2 and 4 of concat [3,6]→12 are identical on all 90 test scores, and were counted as several."
        in (caveats(study(concat=some)))
    )
    assert not any("identical" in c for c in caveats(study()))


@pytest.mark.parametrize(("images", "these"), [(1, "this test image"), (2, "these 2 test images")])
@case(Kind.REPLICATES, "a study with one or two test images", "no verdicts in its report, and why")
def test_a_study_of_one_or_two_test_images(images: int, these: str) -> None:
    ones, zeros = np.ones((5, images)), np.zeros((5, images))
    analysis = study(concat=ones, last=zeros, fifth=zeros)
    assert {c.verdict for c in analysis.comparisons.values()} <= {Verdict.NONE, Verdict.ITSELF}
    found = answer(analysis)
    assert found.headline.startswith("No verdict yet: concat [3,6]→12 is the best on validation")
    assert "a verdict takes 3 test images" in found.lead
    assert any(c.startswith(f"Conditional on {these}: nobody can tell from {images} what") for c in found.caveats)
