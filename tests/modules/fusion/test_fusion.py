"""Contract 1, for every registered strategy; the registry; what each built-in strategy computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from every_strategy import every_strategy
from torch import Tensor, nn

from fusion_workbench.core import registry
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.cost import parameters
from fusion_workbench.modules.fusion import STRATEGIES, Fusion, build, canonical_options, register_strategy
from fusion_workbench.modules.fusion.contract import check, check_target, name_of, require, select_used

SELECTION = Selection((1, 3), 6)


@pytest.mark.parametrize(("name", "options"), every_strategy(), ids=str)
@pytest.mark.parametrize("levels", [(1, 3, 4), (0,)], ids=["three levels", "one level"])
def test_contract(name: str, options: dict[str, Any], levels: tuple[int, ...]) -> None:
    require(name, options, levels=levels)


def test_contract_of_mmfuser_with_one_head() -> None:
    require("mmfuser", {"heads": 1, "points": 2})


# --- the contract finds what is wrong -------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoOptions:
    pass


class Sound(Fusion):
    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return features.sum(0)


class Deaf(Sound):  # to its first level
    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return features[1:].sum(0)


class Mixing(Sound):  # the images of a batch
    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        out: Tensor = features.sum(0) - features.mean((0, 1))
        return out


class Destructive(Sound):
    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        out: Tensor = features.mul_(2).sum(0)
        return out


class Boastful(Sound):
    identity_at_start = True


class Dead(Sound):  # a parameter that nothing reads
    def __init__(self, selection: Selection, dim: int, options: Any) -> None:
        super().__init__(selection, dim, options)
        self.scale, self.unread = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        out: Tensor = features.sum(0) * self.scale
        return out


class Pooling(Sound):  # appends a token and does not say so
    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        out = features.sum(0)
        return torch.cat((out, out.mean(1, keepdim=True)), 1)


class PoolingThatSaysSo(Pooling):
    def token_map(self, grid: tuple[int, int]) -> Tensor:
        return torch.cat((super().token_map(grid), torch.tensor([-1])))


class Square(Sound):  # takes every grid for a square
    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        side = int(features.shape[2] ** 0.5)
        return features.view(*features.shape[:2], side * side, -1).sum(0)


@pytest.mark.parametrize(
    ("cls", "broken"),
    [
        (Sound, None),
        (PoolingThatSaysSo, None),
        (Deaf, "does not move the output"),
        (Mixing, "with and without image 1"),
        (Destructive, "changed in place"),
        (Boastful, "does not return the query's tokens"),
        (Dead, "unread has no gradient"),
        (Pooling, "token_map 16"),
        (Square, "RuntimeError"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_contract_notices(cls: type[Fusion], broken: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STRATEGIES, "_members", {})
    register_strategy("mine", options=NoOptions, uses_levels=True)(cls)
    if broken is None:
        assert all(finding.kept for finding in check("mine"))
    else:
        with pytest.raises(AssertionError, match=broken):
            require("mine")


def test_checking_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    check("concat")
    assert torch.equal(before, torch.get_rng_state())


# --- the contract of what a user names ---


def test_a_class_is_found_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the user's own: by decorator, unregistered, and with mistakes in it."""
    monkeypatch.setattr(STRATEGIES, "_members", STRATEGIES._members.copy())
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_fusion.py").write_text(
        """
from dataclasses import dataclass
from fusion_workbench.modules.fusion import Fusion, register_strategy

@dataclass(frozen=True)
class Options:
    scale: float = 1.0

@register_strategy("theirs", options=Options, uses_levels=True)
class Theirs(Fusion):
    def forward(self, features, grid):
        self.check(features, grid)
        return self.options.scale * features.sum(0)

class Bare(Fusion):
    def forward(self, features, grid):
        return features[-1]

NUMBER = 3
"""
    )
    (tmp_path / "broken_fusion.py").write_text("import nowhere_at_all")
    assert all(finding.kept for finding in check_target("their_fusion:Theirs", {"scale": 2}))
    assert name_of("their_fusion:Theirs") == "theirs"
    broken = [f for f in check_target("their_fusion:Theirs", {"scale": 0}) if not f.kept]
    assert any("does not move the output" in f.detail for f in broken)
    for target, message in {
        "their_fusion:Bare": "their_fusion.Bare is a Fusion and not registered; put @register_strategy",
        "their_fusion:Thiers": r"their_fusion has no 'Thiers'\. Did you mean 'Theirs'\?",
        "their_fusion:NUMBER": "is not a subclass of fusion_workbench.modules.fusion.Fusion but 3",
        "broken_fusion:Theirs": "does not import: ModuleNotFoundError: No module named 'nowhere_at_all'",
        "no_such_module:Theirs": "does not import: ModuleNotFoundError: No module named 'no_such_module'",
        "their_fusion:": "is not of the form my_package.my_module:MyFusion",
        "concta": "unknown strategy 'concta'. Did you mean 'concat'",
    }.items():
        with pytest.raises(WorkbenchError, match=message):
            check_target(target)


def test_a_strategy_is_checked_by_its_name_too() -> None:
    assert all(finding.kept for finding in check_target("concat", {"layer_norm": "none"}))


# --- what the plain strategies compute ------------------------------------------------------------------------------


def test_deep_only_is_the_query_and_costs_nothing() -> None:
    fuser = build("deep_only", SELECTION, 8)
    hidden_states = torch.randn(7, 2, 6, 8)
    assert fuser.uses == (6,)
    assert torch.equal(fuser(select_used(hidden_states, fuser), (2, 3)), hidden_states[6])
    assert (parameters(fuser), fuser.flops((2, 3))) == (0, 0)


# --- the registry and its messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mmfusr", {}, r"unknown strategy 'mmfusr'\. Did you mean 'mmfuser'\?"),
        ("mmfuser", {"head": 2}, r"'mmfuser' has no option 'head'\. Did you mean 'heads'\?"),
        ("deep_only", {"heads": 2}, r"'deep_only' has no option 'heads'\. It has none\."),
        ("concat", {"heads": 2}, r"'concat' has no option 'heads'\. Known: layer_norm\."),
        ("mmfuser", {"heads": "two"}, r"option 'heads' of strategy 'mmfuser' is 'two'; it takes int or nothing"),
        ("mmfuser", {"points": 2.5}, "takes int"),
        ("mmfuser", {"points": True}, "takes int"),
        ("mmfuser", {"self_attention": 1}, "takes bool"),
        ("mmfuser", {"heads": 7}, "heads=7 does not divide dim=32; these do: 1, 2, 4, 8, 16, 32"),
        ("mmfuser", {"heads": 0}, "at least one head"),
        ("mmfuser", {"points": 0}, "at least one head, level and point"),
    ],
)
def test_wrong_names_and_values_are_one_clear_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message) as caught:
        build(name, SELECTION, 32, options)
    assert "\n" not in str(caught.value)


def test_a_strategy_that_reads_levels_needs_some() -> None:
    with pytest.raises(WorkbenchError, match="'concat' reads levels, and the selection with query 6 names none"):
        build("concat", Selection((), 6), 8)


@pytest.mark.parametrize("shape", [(3, 2, 7, 32), (2, 2, 6, 32), (3, 2, 6, 16), (3, 6, 32)], ids=str)
@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"deep_only", "matched"}))
def test_features_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(WorkbenchError, match="expects features"):
        build(name, SELECTION, 32)(torch.randn(shape), (2, 3))


def test_canonical_options_fill_in_defaults() -> None:
    full = {"heads": None, "points": 4, "gate_init": 0.0, "self_attention": True, "attention": "deformable"}
    assert canonical_options("mmfuser", {}) == full
    assert canonical_options("mmfuser", {"points": 4.0, "gate_init": 0}) == full
    assert canonical_options("deep_only", {}) == {}
    assert canonical_options("concat", {}) == {"layer_norm": "per_layer"}


@dataclass(frozen=True)
class WordOptions:
    form: Literal["round", "square"] | None = None
    size: Literal["small"] | int = "small"


def test_a_set_of_words_takes_its_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STRATEGIES, "_members", {})
    register_strategy("words", options=WordOptions, uses_levels=True)(Sound)
    for options in ({"form": "round", "size": "small"}, {"form": None, "size": 3}):
        assert canonical_options("words", options) == options
    with pytest.raises(WorkbenchError, match=r"option 'form' of strategy 'words' is 'sqare'\. Did you mean 'square'\?"):
        canonical_options("words", {"form": "sqare"})
    with pytest.raises(WorkbenchError, match="is 2; it takes 'round' or 'square' or nothing"):
        canonical_options("words", {"form": 2})


def test_one_name_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STRATEGIES, "_members", STRATEGIES._members.copy())
    with pytest.raises(WorkbenchError, match="two strategies are called 'concat'"):
        register_strategy("concat", options=NoOptions, uses_levels=True)(Sound)


def test_a_broken_plugin_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name, value = "broken", "nowhere:Nothing"

        def load(self) -> None:
            raise ModuleNotFoundError("No module named 'nowhere'")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry()] if group == STRATEGIES.group else [])
    monkeypatch.setattr(STRATEGIES, "_loaded", False)
    monkeypatch.setattr(STRATEGIES, "_failed", {})
    with pytest.warns(UserWarning, match=r"plugin broken = nowhere:Nothing is left out.*No module named 'nowhere'"):
        STRATEGIES.load()
    assert "concat" in STRATEGIES


def test_every_strategy_builds_without_memory() -> None:
    with torch.device("meta"):
        for name in STRATEGIES:
            assert all(p.is_meta for p in build(name, SELECTION, 64).parameters())
