"""Plain loops on cached features train what a bank trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fusion_workbench.bench.cached import Trials
from fusion_workbench.bench.others.cached_loop import many_heads, one_by_one
from fusion_workbench.bench.store import MemoryFeatures
from fusion_workbench.bench.turns import Setting


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    found = Trials(Setting("cpu", True, 1, tmp_path_factory.mktemp("cached")), rates=(0.001, 0.01))
    assert len(found.members) == 8
    assert found.bank() > 0
    return found


@pytest.mark.parametrize("way", [one_by_one, many_heads], ids=["one by one", "many heads"])
def test_metrics_and_losses_are_the_banks(trials: Trials, way: Callable[..., Any]) -> None:
    assert trials.loop(way, "loop")() > 0
    for theirs, ours in zip(trials.found["loop"], trials.found["bank"], strict=True):
        assert theirs.metrics == ours.metrics
        assert theirs.loss == pytest.approx(ours.loss, rel=1e-5)


def test_features_in_memory_are_the_stores(trials: Trials) -> None:
    before = trials.found["bank"]
    trials.bank(MemoryFeatures(trials.parts.features, trials.protocol.layers))
    for theirs, ours in zip(trials.found["bank"], before, strict=True):
        assert theirs.loss == ours.loss
