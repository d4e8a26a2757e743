from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from fusion_workbench.bench import turns
from fusion_workbench.bench.turns import Ratio, in_turn


def meter(name: str, calls: list[str], seconds: list[float]) -> Callable[[], float]:
    left = iter(seconds)

    def turn() -> float:
        calls.append(name)
        return next(left)

    return turn


def test_turns_alternate_and_the_first_does_not_count() -> None:
    calls: list[str] = []
    taken = in_turn({"a": meter("a", calls, [9, 1, 2]), "b": meter("b", calls, [9, 3, 4])}, 2)
    assert calls == ["a", "b"] * 3
    assert taken == {"a": [1, 2], "b": [3, 4]}


def test_without_a_warm_up_every_turn_counts() -> None:
    calls: list[str] = []
    assert in_turn({"a": meter("a", calls, [5, 6])}, 2, warm=0) == {"a": [5, 6]}


def test_a_ratio_is_of_neighbours() -> None:
    """A machine that is ten times slower in one round moves no ratio."""
    assert Ratio.paired([2, 20, 4], [1, 10, 1]) == Ratio(2, 2, 4, 3)
    assert Ratio.paired([2], [4], factor=3) == Ratio(1.5, 1.5, 1.5, 1)


def test_quick_work_is_repeated_within_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(
        turns.time, "perf_counter", lambda: next(ticks) / 8
    )  # every look at the clock: an eighth second
    calls: list[int] = []
    turn = turns.clock(lambda: calls.append(1), "cpu", least=1.0)
    assert turn() == 1 / 64, "eight calls within an eighth of a second"
    assert len(calls) == 1 + 8, "one to find out how many"
    turn()
    assert len(calls) == 1 + 8 + 8
