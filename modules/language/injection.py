"""Injection: strategies that fuse inside the language model, and the registry of them.

An injection is a module from the tokens of the selected layers to a :class:`~modules.language.visual.VisualInput`:
tokens for the input sequence, and tokens that are added to the hidden states at the same places when they enter
deeper decoder blocks. What adds them is :class:`~modules.language.injector.Injector`. To write one::

    @dataclass(frozen=True)
    class LastBlockOptions:
        scale: float = 1.0

    @register_injection("last_block", options=LastBlockOptions, title="levels added at the last block")
    class LastBlock(Injection):
        def __init__(self, setting, options):
            super().__init__(setting, options)
            self.query, self.level = self.new_projector(), self.new_projector()

        def blocks(self):
            return (self.setting.depth - 1,)

        def forward(self, features, grid):
            self.check(features, grid)
            added = self.options.scale * self.level(features[:-1].sum(0))
            return VisualInput(self.query(features[-1]), {self.setting.depth - 1: added})

in a package that names the class under the entry-point group ``fusion_workbench.injections``; then run
``workbench check-strategy my_package:LastBlock``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.core.registry import Registry
from fusion_workbench.modules import cost
from fusion_workbench.modules.fusion.base import STRATEGIES, Grid, StrategySpec, check_features, strategy_decorator
from fusion_workbench.modules.language.injector import Injector
from fusion_workbench.modules.language.visual import LanguageConnector, VisualInput
from fusion_workbench.modules.optim import others
from fusion_workbench.modules.projector import Projector

__all__ = [
    "INJECTIONS",
    "Injection",
    "InjectionSetting",
    "Injector",
    "build_injection",
    "canonical_injection",
    "check_blocks",
    "injection_of_class",
    "injection_spec",
    "register_injection",
]


@dataclass(frozen=True)
class InjectionSetting:
    """What an injection is built between: an encoder's layers and a decoder.

    Attributes:
        selection: the encoder's layers; levels are injected, the query feeds the input sequence.
        dim: channels of an encoder token.
        width: channels of the decoder's hidden states.
        depth: the decoder's blocks.
        projector: one of :data:`modules.projector.PROJECTORS`.
    """

    selection: Selection
    dim: int
    width: int
    depth: int
    projector: str = "mlp2x_gelu"


class Injection(LanguageConnector):
    """Base of all injections: a connector that fills ``injected``.

    Attributes:
        uses: the layers that :meth:`forward` expects, in its order; the query last.
    """

    def __init__(self, setting: InjectionSetting, options: Any) -> None:
        super().__init__()
        self.setting = setting
        self.options = options
        self.uses: tuple[int, ...] = setting.selection.layers

    @abstractmethod
    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        """``features [len(uses), N, T, dim]`` → tokens and what is injected, ``[N, T', width]`` each."""

    @abstractmethod
    def blocks(self) -> tuple[int, ...]:
        """The decoder blocks that are added to, counted from 0, ascending."""

    def new_projector(self) -> Projector:
        """A fresh projector of the setting's kind, from ``dim`` to ``width`` channels."""
        return Projector(self.setting.projector, self.setting.dim, self.setting.width)

    def projectors(self) -> Iterator[Projector]:
        return (module for module in self.modules() if isinstance(module, Projector))

    def gates(self) -> Iterable[nn.Parameter]:
        """Parameters that open the injection from a closed start; they get a learning rate of their own."""
        return ()

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by part, as :meth:`modules.probes.probe.Probe.parts`; all but gates are the projectors'.

        A subclass with modules that are neither names them under ``fuser``.
        """
        gates = list(self.gates())
        return {"fuser": [], "gates": gates, "projector": others(self.parameters(), gates)}

    def flops(self, grid: Grid, batch: int = 1) -> int:
        """Forward floating-point operations of ``batch`` images, counted by :func:`modules.cost.flops`.

        The additions themselves are element-wise and not counted, and the decoder's own cost is what it is without
        them: injection makes its sequence no longer.
        """
        like = next(self.parameters(), torch.empty(0))
        features = like.new_zeros(len(self.uses), batch, grid[0] * grid[1], self.setting.dim)
        return cost.flops(lambda x: self(x, grid), features)

    def check(self, features: Tensor, grid: Grid) -> None:
        """Raises WorkbenchError unless ``features`` is ``[len(uses), N, cells of grid, dim]``."""
        check_features(self, self.uses, self.setting.dim, features, grid)


INJECTIONS: Registry[StrategySpec[Injection]] = Registry(
    "injection",
    "strategies",  # a study names both kinds in one list, so they share their names
    group="fusion_workbench.injections",
    base=Injection,
    decorator="@register_injection('a_name', options=AnOptionsDataclass)",
    beside=STRATEGIES,  # whose group held injections too before they had one of their own
    elsewhere=(
        "strategy '{name}' adds to the hidden states of a language model, so a probe cannot have it; a study with a "
        "language_model section can."
    ),
)

_I = TypeVar("_I", bound=type[Injection])


def register_injection(
    name: str, *, options: type[Any], uses_levels: bool = True, title: str = "", source: str = ""
) -> Callable[[_I], _I]:
    """Class decorator that makes an injection known under ``name``.

    Raises:
        WorkbenchError: the name is taken by another class or by a fusion strategy, the class is no Injection, or the
            options are no dataclass with defaults.
    """

    return strategy_decorator(INJECTIONS, name, options, uses_levels, title, source)


def injection_spec(name: str) -> StrategySpec[Injection]:
    """Raises WorkbenchError for an unknown injection."""
    return INJECTIONS.find(name)


def injection_of_class(cls: type[Injection]) -> StrategySpec[Injection]:
    """Raises WorkbenchError for a class that is not registered."""
    return INJECTIONS.of_class(cls)


def canonical_injection(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """As :meth:`~modules.fusion.base.StrategySpec.canonical_options`, of the injection ``name``.

    Raises:
        WorkbenchError: an unknown injection or option, or a value of the wrong type.
    """
    return injection_spec(name).canonical_options(options)


def build_injection(name: str, setting: InjectionSetting, options: Mapping[str, Any] | None = None) -> Injection:
    """A fresh injection.

    Raises:
        WorkbenchError: an unknown injection or option, a wrong value, no levels, or a decoder with too few blocks.
    """
    spec = injection_spec(name)
    parsed = spec.parse_options(options or {})
    spec.check_levels(setting.selection)
    return spec.cls(setting, parsed)


def check_blocks(name: str, blocks: Sequence[int], setting: InjectionSetting, remedy: str) -> None:
    """Raises WorkbenchError unless ``blocks`` are a block of the decoder for each level, each block once.

    Args:
        name: of the injection.
        blocks: one for each level of the setting's selection, in their order.
        setting: with the decoder's depth.
        remedy: the end of the message: what to write instead.
    """
    levels = setting.selection.levels
    where = f"{name}: levels {list(levels)} at decoder blocks {list(blocks)}"
    if len(blocks) != len(levels):
        raise WorkbenchError(f"{where}; there should be a block for each level. {remedy}")
    if len(set(blocks)) != len(blocks):
        raise WorkbenchError(f"{where}; no two levels can be added at one block. {remedy}")
    if min(blocks, default=0) < 0 or max(blocks, default=0) >= setting.depth:
        raise WorkbenchError(
            f"{where}; this language model has {setting.depth} blocks, 0 to {setting.depth - 1}. {remedy}"
        )
