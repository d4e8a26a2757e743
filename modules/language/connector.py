"""From the encoder's layers to what the language model is given: fusion and projector as one module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import Fusion, build
from fusion_workbench.modules.fusion.base import Grid, connector_parts
from fusion_workbench.modules.language.injection import INJECTIONS, InjectionSetting, build_injection
from fusion_workbench.modules.language.visual import LanguageConnector, VisualInput
from fusion_workbench.modules.projector import Projector

__all__ = [
    "ConnectorConfig",
    "FusedConnector",
    "LanguageConnector",
    "VisualInput",
    "build_connector",
    "match_scale",
    "seeded_connector",
]


@dataclass(frozen=True)
class ConnectorConfig:
    """Everything that shapes a connector; plain values, so that it is saved beside the weights.

    Attributes:
        strategy: a fusion strategy, or one that injects into the decoder.
        dim: channels of the encoder.
        width: channels of the language model.
        depth: blocks of the language model.
        grid: of the encoder's tokens; for a control that is matched in FLOPs.
        projector_norm: the projector normalises what it reads; False for LLaVA's own, which does not.
        output_rms: what :func:`match_scale` made of the projected tokens at the start; 0: nothing.
    """

    strategy: str
    selection: Selection
    dim: int
    width: int
    depth: int
    options: Mapping[str, Any] = field(default_factory=dict)
    projector: str = "mlp2x_gelu"
    grid: Grid | None = None
    projector_norm: bool = True
    output_rms: float = 0.0


class FusedConnector(LanguageConnector):
    """Any fusion strategy and its projector: one token sequence for each image, nothing injected."""

    def __init__(self, fuser: Fusion, projector: nn.Module) -> None:
        super().__init__()
        self.fuser = fuser
        self.projector = projector
        self.uses = fuser.uses

    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        return VisualInput(self.projector(self.fuser(features, grid)))

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return connector_parts(self.fuser, self.projector)

    def projectors(self) -> Iterator[nn.Module]:
        yield self.projector

    def diagnose(self, features: Tensor, grid: Grid) -> dict[str, float]:
        """Also what the fuser says of itself."""
        return super().diagnose(features, grid) | self.fuser.diagnose(features, grid)


def build_connector(config: ConnectorConfig) -> LanguageConnector:
    """A freshly initialised connector.

    Raises:
        WorkbenchError: an unknown strategy, option or projector, or no levels for a strategy that reads them.
    """
    if config.strategy in INJECTIONS:
        return _injection(config)
    fuser = build(config.strategy, config.selection, config.dim, config.options)
    projector = fuser.projector(config.projector, config.width, config.grid)
    if isinstance(projector, Projector):
        projector.normalise = config.projector_norm
    return FusedConnector(fuser, projector)


def _injection(config: ConnectorConfig) -> LanguageConnector:
    setting = InjectionSetting(config.selection, config.dim, config.width, config.depth, config.projector)
    injection = build_injection(config.strategy, setting, config.options)
    for projector in injection.projectors():
        projector.normalise = config.projector_norm
    return injection


def seeded_connector(config: ConnectorConfig, seed: int) -> LanguageConnector:
    """A connector whose initialisation is a function of ``seed`` alone; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_connector(config)


@torch.no_grad()
def match_scale(connector: LanguageConnector, features: Tensor, grid: Grid, rms: float) -> None:
    """Scale the last linear map of each projector so that what it gives of ``features`` has root mean square ``rms``.

    A fresh projector gives tokens several times as large as word embeddings, and a frozen language model has never
    seen such; how large depends on the scale of what it reads, and so on layers and strategy.

    Args:
        features: ``[len(uses), N, T, dim]`` of real images.
        rms: best that of the word embeddings.

    Raises:
        WorkbenchError: a projector has no linear map.
    """
    given: dict[nn.Module, list[Tensor]] = {projector: [] for projector in connector.projectors()}

    def note(projector: nn.Module, _: Any, output: Tensor) -> None:
        given[projector].append(output.float().square().mean())  # of several layers where they share a projector

    handles = [projector.register_forward_hook(note) for projector in given]
    training = connector.training
    try:
        connector.eval()(features, grid)
    finally:
        connector.train(training)
        for handle in handles:
            handle.remove()
    for projector, squares in given.items():
        linear = [module for module in projector.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise WorkbenchError(f"{type(projector).__name__} has no linear map whose output could be scaled.")
        now = float(torch.stack(squares).mean().sqrt()) if squares else 0.0
        for parameter in linear[-1].parameters() if now else ():
            parameter.mul_(rms / now)
