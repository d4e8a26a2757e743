"""Cells, baselines and spaces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_workbench.config.study import SelectionConfig, SpaceConfig, StrategyConfig, StudyConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.names import SINGLE_LAYER, Baseline
from fusion_workbench.sweeps.space import Space, Traits, Variant, build_space


def canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"points": 4, "heads": None, **options}


TRAITS = {
    "deep_only": Traits(False, lambda options: dict(options)),
    "average": Traits(True, lambda options: dict(options)),
    "concat": Traits(True, lambda options: dict(options)),
    "mmfuser": Traits(True, canonical),
}


def study(**keys: Any) -> StudyConfig:
    defaults: dict[str, Any] = {
        "name": "test",
        "strategies": [StrategyConfig(name) for name in TRAITS],
        "selections": [SelectionConfig([3, 6, 9]), SelectionConfig(["hs:1", "block:3"], 10)],
    }
    return StudyConfig(**(defaults | keys))


def build(depth: int = 12, **keys: Any) -> Space:
    return build_space(study(**keys), depth, TRAITS)


def test_strategies_times_selections_and_the_four_baselines() -> None:
    space = build(single_layers=["all"])
    by_label = {cell.label: cell for cell in space.listed}
    assert len(by_label) == len(space.listed) == 3 * 2 + 13 + 1
    assert by_label["deep_only 12"].baselines == (SINGLE_LAYER, Baseline.DEEPEST) or set(
        by_label["deep_only 12"].baselines
    ) == {
        SINGLE_LAYER,
        Baseline.DEEPEST,
    }
    assert Baseline.PENULTIMATE in by_label["deep_only 11"].baselines
    assert by_label["concat [3,4,5]→6"].baselines == (Baseline.MIDDLE,)
    assert SINGLE_LAYER in by_label["deep_only 10"].baselines


def test_deep_only_is_the_same_whatever_levels_it_names() -> None:
    space = build(selections=[SelectionConfig([3]), SelectionConfig([6]), SelectionConfig([9])], baselines=False)
    assert [cell.label for cell in space.listed if cell.strategy == "deep_only"] == ["deep_only 12"]


def test_canonical_options_make_the_identity() -> None:
    spelled = build(strategies=[StrategyConfig("mmfuser", {"points": 4})], baselines=False)
    silent = build(strategies=[StrategyConfig("mmfuser")], baselines=False)
    other = build(strategies=[StrategyConfig("mmfuser", {"points": 8})], baselines=False)
    assert [c.id for c in spelled.listed] == [c.id for c in silent.listed]
    assert spelled.listed[0].id != other.listed[0].id


def test_an_alias_is_another_cell_of_the_same_thing() -> None:
    space = build(strategies=[StrategyConfig("concat"), StrategyConfig("concat", alias="A")], baselines=False)
    assert len({cell.id for cell in space.listed}) == 4


def test_choices_multiply() -> None:
    space = build(strategies=[StrategyConfig("mmfuser", {}, {"points": [2, 4], "heads": [3, 6]})], baselines=False)
    assert len(space.listed) == 2 * 4


def test_labels_name_the_options_that_are_not_the_defaults() -> None:
    space = build(
        strategies=[StrategyConfig("mmfuser", {}, {"points": [2, 4]})],
        selections=[SelectionConfig([3])],
        baselines=False,
    )
    assert [cell.label for cell in space.listed] == ["mmfuser(points=2) [3]→12", "mmfuser [3]→12"]


def test_a_family_is_everything_but_the_selection() -> None:
    strategies = [
        StrategyConfig("mmfuser", {}, {"points": [2, 4]}),
        StrategyConfig("mmfuser", {"points": 8}),
        StrategyConfig("mmfuser", alias="again"),
    ]
    space = build(strategies=strategies, baselines=False)
    assert len(space.listed) == 2 * 4
    assert len({cell.family for cell in space.listed}) == 4
    for number, owned in enumerate((4, 2, 2)):
        assert sum(space.has_cell(strategies[number], cell) for cell in space.listed) == owned


def test_a_strategy_may_have_selections_of_its_own() -> None:
    own = StrategyConfig("concat", selections=[SelectionConfig([1, 2, 3, 4])])
    space = build(strategies=[own, StrategyConfig("average")], baselines=False)
    assert [cell.label for cell in space.listed] == [
        "concat [1,2,3,4]→12",
        "average [3,6,9]→12",
        "average [1,3]→10",
    ]


def test_variants_differ_by_learning_rate_and_training() -> None:
    cell = build().listed[0]
    ids = {Variant(cell, lr, training).id for lr in (1e-3, 3e-3) for training in ((("epochs", 1),), (("epochs", 2),))}
    assert len(ids) == 4


@given(depth=st.integers(4, 14), count=st.integers(1, 3))
def test_size_is_what_enumerate_yields(depth: int, count: int) -> None:
    space = build(depth=depth, selections=[], space=SpaceConfig([count], [], [depth, depth - 1]), baselines=False)
    for strategy in space.strategies:
        cells = list(space.enumerate(strategy))
        assert len(cells) == len({c.id for c in cells}) == space.size(strategy)
        assert all(max(c.selection.levels, default=-1) < c.selection.query for c in cells)
    concat = next(s for s in space.strategies if s.name == "concat")
    assert space.size(concat) == math.comb(depth, count) + math.comb(depth - 1, count)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"selections": [SelectionConfig([3, 13])]}, "out of range"),
        ({"selections": [SelectionConfig([3, "25%"])]}, "both layer 3"),
        ({"selections": [SelectionConfig([12])]}, "both layer 12"),
        ({"selections": [SelectionConfig(["third"])]}, "not a layer reference"),
        ({"selections": [SelectionConfig([])]}, "names none"),
        ({"single_layers": [3, "hs:3"]}, "name each layer once"),
        ({"space": SpaceConfig([0])}, "numbers of levels"),
        ({"space": SpaceConfig([4], [1, 2, 3])}, "only 3 candidate layers"),
        ({"selections": [], "baselines": False}, "trains nothing"),
        ({"strategies": [StrategyConfig("concat"), StrategyConfig("concat")]}, r"strategies\[1\] is 'concat' with"),
    ],
)
def test_what_cannot_be_is_said(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        build(**keys)
