"""What a fusion strategy is, and the registry of them.

A strategy is a module from the tokens of the selected layers to one token sequence. To add one::

    from dataclasses import dataclass
    from fusion_workbench.modules.fusion import Fusion, register_strategy

    @dataclass(frozen=True)
    class ScaledSumOptions:
        scale: float = 1.0

    @register_strategy("scaled_sum", options=ScaledSumOptions, uses_levels=True, title="scaled sum")
    class ScaledSum(Fusion):
        def forward(self, features, grid):
            self.check(features, grid)
            return self.options.scale * features.sum(0)

in a package that names the class under the entry-point group ``fusion_workbench.strategies``; then run
``workbench check-strategy my_package:ScaledSum``, which is :func:`modules.fusion.contract.check_target`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.core.options import read_options
from fusion_workbench.core.registry import Registry, check_options
from fusion_workbench.modules import cost
from fusion_workbench.modules.optim import others
from fusion_workbench.modules.projector import Projector

M = TypeVar("M", bound=nn.Module)
_C = TypeVar("_C", bound=type[nn.Module])
_F = TypeVar("_F", bound=type["Fusion"])

Grid = tuple[int, int]  # rows, columns
LayerNorm = Literal["per_layer", "none"]  # the option ``layer_norm`` of the strategies without norms of their own


def normalise(features: Tensor, how: LayerNorm) -> Tensor:
    """Every token of every layer to mean 0 and variance 1 (``per_layer``), or as it is (``none``).

    There are no parameters. Without it the layer with the largest norm would be the average; an affine part would be
    absorbed by the projector that follows.
    """
    return F.layer_norm(features, features.shape[-1:], eps=1e-6) if how == "per_layer" else features


def check_features(module: nn.Module, uses: Sequence[int], dim: int, features: Tensor, grid: Grid) -> None:
    """Raises WorkbenchError unless ``features`` is ``[len(uses), B, cells of grid, dim]``, as ``module`` expects."""
    expected = (len(uses), grid[0] * grid[1], dim)
    if features.ndim != 4 or (features.shape[0], *features.shape[2:]) != expected:
        raise WorkbenchError(
            f"{type(module).__name__} expects features [{expected[0]}, batch, {expected[1]}, {expected[2]}] (layers "
            f"{list(uses)}, a token for each cell of the {grid[0]}×{grid[1]} grid, dim {expected[2]}) and got "
            f"{list(features.shape)}; prefix tokens such as CLS are to be cut off before."
        )


class Fusion(nn.Module, ABC):
    """Base of all strategies.

    Attributes:
        uses: the layers that :meth:`forward` expects, in its order; the query last.
        out_dim: channels of a fused token.
        identity_at_start: a fresh module returns the query's tokens unchanged.
    """

    identity_at_start: bool = False

    def __init__(self, selection: Selection, dim: int, options: Any) -> None:
        super().__init__()
        self.selection = selection
        self.dim = dim
        self.options = options
        self.uses: tuple[int, ...] = selection.layers
        self.out_dim: int = dim

    @abstractmethod
    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``features [len(uses), B, T, dim] → [B, T_out, out_dim]``, with T the cells of ``grid``, row by row."""

    def token_map(self, grid: Grid) -> Tensor:
        """The cell of ``grid`` that each output token stands for, ``int64 [T_out]``; -1 for one of no cell."""
        return torch.arange(grid[0] * grid[1])

    def gates(self) -> Iterable[nn.Parameter]:
        """Parameters that open the fuser from a closed start; they get a learning rate of their own."""
        return ()

    def projector(self, kind: str, width: int, grid: Grid | None = None) -> nn.Module:
        """What maps the fused tokens to ``width`` channels; a strategy may bring its own.

        Args:
            kind: one of :data:`modules.projector.PROJECTORS`.
            width: channels of what reads the tokens.
            grid: of the tokens, where it is known; only a projector sized by FLOPs asks for it.

        Raises:
            WorkbenchError: an unknown kind.
        """
        return Projector(kind, self.out_dim, width)

    def diagnose(self, features: Tensor, grid: Grid) -> dict[str, float]:
        """What the trained module does with ``features``, as named numbers for the report."""
        return {}

    def inspect(self, features: Tensor, grid: Grid) -> dict[str, Tensor]:
        """Where the module draws on which level, as a picture: :meth:`modules.fusion.mmfuser.MMFuser.inspect`."""
        return {}

    def flops(self, grid: Grid, batch: int = 1) -> int:
        """Forward floating-point operations, counted by :func:`modules.cost.flops`."""
        like = next(self.parameters(), torch.empty(0))
        features = like.new_zeros(len(self.uses), batch, grid[0] * grid[1], self.dim)
        return cost.flops(lambda x: self(x, grid), features)

    def check(self, features: Tensor, grid: Grid) -> None:
        """Raises WorkbenchError unless ``features`` is ``[len(uses), B, cells of grid, dim]``."""
        check_features(self, self.uses, self.dim, features, grid)


def connector_parts(fuser: Fusion, projector: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of a fuser and its projector by part; each part has its own learning rate."""
    gates = list(fuser.gates())
    return {
        "fuser": others(fuser.parameters(), gates),
        "gates": gates,
        "projector": list(projector.parameters()),
    }


@dataclass(frozen=True)
class StrategySpec(Generic[M]):
    """A registered strategy: a fusion strategy, or an injection into a language model."""

    name: str
    cls: type[M]
    options: type[Any]  # a dataclass of plain values with defaults
    uses_levels: bool
    title: str
    source: str

    def parse_options(self, options: Mapping[str, Any]) -> Any:
        """The options dataclass, filled from ``options``.

        Raises:
            WorkbenchError: an unknown option, or a value of the wrong type.
        """
        return read_options(f"strategy '{self.name}'", self.options, options)

    def canonical_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """``options`` with every default filled in, as plain values: equal for options that mean the same.

        Raises:
            WorkbenchError: as :meth:`parse_options`.
        """
        return asdict(self.parse_options(options))

    def check_levels(self, selection: Selection) -> None:
        """Raises WorkbenchError where it reads levels and ``selection`` names none."""
        if self.uses_levels and not selection.levels:
            raise WorkbenchError(
                f"strategy '{self.name}' reads levels, and the selection with query {selection.query} names none."
            )


STRATEGIES: Registry[StrategySpec[Fusion]] = Registry(
    "strategy",
    "strategies",
    group="fusion_workbench.strategies",
    base=Fusion,
    decorator="@register_strategy('a_name', options=AnOptionsDataclass, uses_levels=True)",
)


def register_strategy(
    name: str, *, options: type[Any], uses_levels: bool, title: str = "", source: str = ""
) -> Callable[[_F], _F]:
    """Class decorator that makes a strategy known under ``name``.

    Raises:
        WorkbenchError: the name is taken by another class, the class is no Fusion, or the options are no dataclass with
            defaults.
    """

    return strategy_decorator(STRATEGIES, name, options, uses_levels, title, source)


def strategy_decorator(
    registry: Registry[StrategySpec[Any]], name: str, options: type[Any], uses_levels: bool, title: str, source: str
) -> Callable[[_C], _C]:
    """The decorator of a registry of strategies; see :func:`register_strategy`."""

    def register(cls: _C) -> _C:
        registry.check(name, cls)
        check_options(f"{registry.kind} '{name}'", options)
        registry.add(name, StrategySpec(name, cls, options, uses_levels, title or name, source), cls)
        return cls

    return register


def spec_of(name: str) -> StrategySpec[Fusion]:
    """Raises WorkbenchError for an unknown strategy; where :mod:`modules.language` is imported, its strategies are told
    apart from unknown ones."""
    return STRATEGIES.find(name)


def canonical_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """As :meth:`StrategySpec.canonical_options`, of the strategy ``name``.

    Raises:
        WorkbenchError: an unknown strategy or option, or a value of the wrong type.
    """
    return spec_of(name).canonical_options(options)


def build(name: str, selection: Selection, dim: int, options: Mapping[str, Any] | None = None) -> Fusion:
    """A fresh fuser.

    Raises:
        WorkbenchError: an unknown strategy or option, a wrong value, or no levels for a strategy that reads them.
    """
    spec = spec_of(name)
    parsed = spec.parse_options(options or {})
    spec.check_levels(selection)
    return spec.cls(selection, dim, parsed)


def spec_of_class(cls: type[Fusion]) -> StrategySpec[Fusion]:
    """Raises WorkbenchError for a class that is not registered."""
    return STRATEGIES.of_class(cls)
