"""Tasks of questions: chance baseline, chance-normalised score, and a metric from per-example scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion_workbench.modules.answers import METRICS, AnswerTask
from fusion_workbench.modules.answers.task import FITTED
from fusion_workbench.modules.tasks import Read

words = st.lists(st.sampled_from([("A",), ("B",), ("C",), ("a", "B")]), min_size=1, max_size=30)


def task(metric: str = "exact_match", training_answers: list[tuple[str, ...]] | None = None) -> AnswerTask:
    return AnswerTask("read", METRICS[metric], "reading", training_answers or [])


def test_it_has_what_a_task_of_probes_has() -> None:
    """Record, objective and report read these of either."""
    read = {"name", "title", "metric_name", "direction", "unit", "perfect", "ratio"}
    assert read <= set(dir(Read))
    found = task("yes_no_f1", [("yes",), ("no",)])
    assert {key: getattr(found, key) for key in read} == {
        "name": "read",
        "title": "reading",
        "metric_name": "yes_no_f1",
        "direction": "maximize",
        "unit": "share",
        "perfect": 1.0,
        "ratio": ("twice_hits", "hits_and_calls"),
    }


def test_chance_is_the_best_constant_answer() -> None:
    assert task(training_answers=[("A",), ("B",), ("B",), ("C",)]).chance == 0.5
    assert task(training_answers=[]).chance == 0


def test_the_best_is_judged_by_the_metric_and_not_by_its_frequency() -> None:
    training_answers = [("no",)] * 6 + [("yes",)] * 4
    assert task("yes_no_f1", training_answers).chance == pytest.approx(2 * 4 / (2 * 4 + 6))  # always yes
    loose = [("cat",)] * 3 + [("cats",), ("cats",)]
    assert task("ocrbench", loose).chance == 1  # "cats" contains both


def test_what_was_taught_is_what_is_guessed() -> None:
    found = task(training_answers=[("A",), ("A",), ("B",)])
    assert found.chance_baseline([("A",), ("A",), ("B",)], [("B",), ("B",), ("A",), ("C",)]) == 0.25
    assert found.chance_baseline([("A",)], []) == 0


def test_a_large_teaching_is_sampled_and_scored_whole() -> None:
    training_answers = [("A",), ("B",), ("B",)] * FITTED
    assert task(training_answers=training_answers).chance == pytest.approx(2 / 3)


@given(words)
def test_chance_is_at_least_that_of_every_answer(training_answers: list[tuple[str, ...]]) -> None:
    found = task(training_answers=training_answers)
    for answer in "ABC":
        assert (
            found.chance
            >= sum(METRICS["exact_match"].score(answer, right) for right in training_answers) / len(training_answers)
            - 1e-9
        )


def test_gain_runs_from_chance_to_perfect() -> None:
    found = task(training_answers=[("A",), ("B",)])
    assert [found.chance_normalised(value) for value in (0.5, 0.75, 1.0)] == [0.0, 0.5, 1.0]
    assert task(training_answers=[("A",)]).chance_normalised(1.0) == 0  # nothing can be gained


def test_value_of_scores_is_their_mean_over_items() -> None:
    found = task()
    assert found.value(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1, 1, 2]), {}) == 0.75
    assert math.isnan(found.value(torch.zeros(0), torch.zeros(0), {}))


def test_value_of_a_ratio_is_that_of_the_sums() -> None:
    found, said, right = task("yes_no_f1"), ["yes", "yes", "no", "no"], ["yes", "no", "yes", "no"]
    rows = [found.metric.statistics(a, [b]) for a, b in zip(said, right, strict=True)]
    columns = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
    scores = torch.tensor([found.metric.score(a, [b]) for a, b in zip(said, right, strict=True)])
    assert found.value(scores, torch.ones(4), columns) == 0.5
    assert float(scores.mean()) == 0.5
