"""The matched control meets the budget of every other strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from every_strategy import every_strategy

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import STRATEGIES, build
from fusion_workbench.modules.fusion.matched import cost_of, read_options
from fusion_workbench.modules.probes.probe import Probe, ProbeConfig
from fusion_workbench.modules.projector import PROJECTORS, Projector

SELECTION, DIM, WIDTH, GRID = Selection((3, 6, 9), 12), 384, 512, (8, 9)
OTHERS = [(name, options) for name, options in every_strategy() if name != "matched"]


def written(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}".replace("False", "false") for key, value in options.items())


@pytest.mark.parametrize("kind", PROJECTORS)
@pytest.mark.parametrize(("name", "options"), OTHERS, ids=lambda value: str(value))
def test_budgets_are_met(name: str, options: dict[str, Any], kind: str) -> None:
    with torch.device("meta"):
        other = build(name, SELECTION if STRATEGIES[name].uses_levels else Selection((), 12), DIM, options)
        parameters, flops = cost_of(other, kind, WIDTH, GRID)
        for budget in ("parameters", "flops"):
            like = {"like": name, "like_options": written(options), "budget": budget}
            control = build("matched", SELECTION, DIM, like)
            found_parameters, found_flops = cost_of(control, kind, WIDTH, GRID)
            if budget == "parameters":
                assert abs(found_parameters - parameters) <= (DIM + WIDTH + 1) / 2
            else:
                assert found_flops == pytest.approx(flops, rel=0.01)


def test_a_budget_of_the_plain_projector_is_the_plain_projector() -> None:
    for like in ("deep_only", "average", "weighted"):
        control = build("matched", SELECTION, DIM, {"like": like})
        projector = control.projector("linear", WIDTH)
        assert isinstance(projector, Projector)
        assert isinstance(projector.map, torch.nn.Linear)


def test_flops_are_matched_on_the_grid_of_the_probe() -> None:
    """Global attention costs more a token where there are more tokens; the parameters stay."""
    like = {"like": "mmfuser", "like_options": "attention=global", "budget": "flops"}

    def hidden(grid: tuple[int, int]) -> int:
        probe = Probe(ProbeConfig("matched", SELECTION, 64, like, "linear", 32, grid=grid), [])
        return int(probe.projector.map[0].out_features)

    assert hidden((4, 4)) < hidden((12, 12))


def test_a_budget_below_the_plain_projectors_makes_a_narrow_middle() -> None:
    """A strategy may halve the channels; the control then has the smaller budget, not the plain projector's."""
    like = {"like": "fpn", "like_options": "channels=4"}
    selection = Selection((3,), 12)
    control = build("matched", selection, DIM, like)
    other = build("fpn", selection, DIM, {"channels": 4})
    parameters, _ = cost_of(other, "linear", WIDTH, GRID)
    projector = control.projector("linear", WIDTH)
    found = sum(p.numel() for p in projector.parameters())
    assert found < DIM * WIDTH
    assert abs(found - parameters) <= (DIM + WIDTH + 1) / 2


def test_levels_set_the_budget_and_are_not_read() -> None:
    one, three = (build("matched", Selection(levels, 12), DIM) for levels in ((3,), (3, 6, 9)))
    assert one.uses == three.uses == (12,)
    sizes = [sum(p.numel() for p in c.projector("linear", WIDTH).parameters()) for c in (one, three)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"like": "mmfusr"}, r"unknown strategy 'mmfusr'\. Did you mean 'mmfuser'\?"),
        ({"like": "matched"}, "name the strategy whose budget is to be met"),
        ({"like_options": "attention"}, "like_options has 'attention'; write key=value"),
        ({"like_options": "head=2"}, "'mmfuser' has no option 'head'"),
        ({"like_options": "attention=globl"}, "Did you mean 'global'"),
        ({"like": "dci", "like_options": "groups=4"}, "groups=4, and the 3 levels make 1 to 3 groups"),
        ({"budget": "flop"}, "Did you mean 'flops'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        build("matched", SELECTION, DIM, options)


def test_options_of_the_other_are_read() -> None:
    assert read_options(" attention=global, points=4 ,gate_init=1.5,self_attention=false,heads=null") == {
        "attention": "global",
        "points": 4,
        "gate_init": 1.5,
        "self_attention": False,
        "heads": None,
    }
    assert read_options("") == {}
