"""The contract of injections: ours keep it, and each requirement catches what breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.fusion.base import Grid
from fusion_workbench.modules.language import injection
from fusion_workbench.modules.language.contract import check_injection
from fusion_workbench.modules.language.injection import INJECTIONS, Injection, InjectionSetting, register_injection
from fusion_workbench.modules.language.visual import VisualInput


@dataclass(frozen=True)
class Options:
    """None."""


class Whole(Injection):
    """The mean of the levels at the third block; every case below breaks one thing of it."""

    def __init__(self, setting: InjectionSetting, options: Options) -> None:
        super().__init__(setting, options)
        self.query, self.level = self.new_projector(), self.new_projector()

    def blocks(self) -> tuple[int, ...]:
        return (2,)

    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        self.check(features, grid)
        return VisualInput(self.query(features[-1]), {2: self.level(features[:-1].mean(0))})


class Uses(Whole):
    def __init__(self, setting: InjectionSetting, options: Options) -> None:
        super().__init__(setting, options)
        self.uses = (*setting.selection.layers[::-1],)


class Shape(Whole):
    def blocks(self) -> tuple[int, ...]:
        return (3,)


class Layer(Whole):
    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        return VisualInput(self.query(features[-1]), {2: self.level(features[1:-1].mean(0))})


class Block(Whole):
    def blocks(self) -> tuple[int, ...]:
        return (2, 4)

    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        given = super().forward(features, grid)
        return VisualInput(given.tokens, {**given.injected, 4: 0.0 * given.tokens})


class Apart(Whole):
    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        return super().forward(features + features.mean(1, keepdim=True), grid)


class Gradient(Whole):
    def __init__(self, setting: InjectionSetting, options: Options) -> None:
        super().__init__(setting, options)
        self.idle = nn.Linear(2, 2)


class Parts(Whole):
    def parts(self) -> dict[str, list[nn.Parameter]]:
        return super().parts() | {"projector": list(self.query.parameters())}


class Cost(Whole):
    def flops(self, grid: Grid, batch: int = 1) -> int:
        return 1000


class Autocast(Whole):
    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        given = super().forward(features, grid)
        return VisualInput(given.tokens, {2: given.injected[2] * (1 + (given.injected[2].dtype == torch.bfloat16))})


class Trip(Whole):
    def __init__(self, setting: InjectionSetting, options: Options) -> None:
        super().__init__(setting, options)
        self.drift = torch.randn(())

    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        given = super().forward(features, grid)
        return VisualInput(given.tokens * (1 + self.drift.abs()), given.injected)


class Diagnosis(Whole):
    def diagnose(self, features: Tensor, grid: Grid) -> dict[str, Any]:
        return {"rms": float("nan")}


BROKEN = {
    Uses: "uses names layers",
    Shape: "tokens and what each of blocks()",
    Layer: "every layer it says it uses",
    Block: "what each block is given",
    Apart: "an image's tokens",
    Gradient: "at random parameters",
    Parts: "at random parameters",
    Cost: "cost is a function",
    Autocast: "runs under bfloat16",
    Trip: "weights go through",
    Diagnosis: "diagnose returns",
}


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Injection]], str]:
    monkeypatch.setattr(INJECTIONS, "_members", INJECTIONS._members.copy())

    def under(cls: type[Injection]) -> str:
        register_injection(cls.__name__.lower(), options=Options)(cls)
        return cls.__name__.lower()

    return under


@pytest.mark.parametrize("name", INJECTIONS)
def test_ours_keep_it(name: str) -> None:
    assert [str(finding) for finding in check_injection(name) if not finding.kept] == []


def test_the_whole_one_keeps_it(register: Callable[[type[Injection]], str]) -> None:
    assert [str(finding) for finding in check_injection(register(Whole)) if not finding.kept] == []


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_each_requirement_catches_its_fault(cls: type[Injection], register: Callable[[type[Injection]], str]) -> None:
    broken = [finding.name for finding in check_injection(register(cls)) if not finding.kept]
    assert any(name.startswith(BROKEN[cls]) for name in broken), broken
    assert len(broken) <= 2, broken


def test_a_check_leaves_the_random_state_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check_injection("deepstack")
    assert torch.equal(torch.rand(3), expected)


def test_what_is_not_registered_is_said() -> None:
    with pytest.raises(WorkbenchError, match="unknown injection 'concat'"):
        check_injection("concat")
    with pytest.raises(WorkbenchError, match="is an Injection and not registered"):
        injection.injection_of_class(Whole)
