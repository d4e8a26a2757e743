"""From the encoder's layers to what the language model is given: fusion and projector as one module."""

from __future__ import annotations

from collections.abc import Mapping
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
        output_rms: of the projected tokens at the start: best that of the word embeddings; 0: as initialised.
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
    if config.output_rms:
        match_scale(projector, fuser.out_dim, config.output_rms)
    return FusedConnector(fuser, projector)


def _injection(config: ConnectorConfig) -> LanguageConnector:
    """A strategy that injects; each of its projectors starts at the same scale."""
    setting = InjectionSetting(config.selection, config.dim, config.width, config.depth, config.projector)
    injection = build_injection(config.strategy, setting, config.options)
    for projector in injection.projectors():
        projector.normalise = config.projector_norm
        if config.output_rms:
            match_scale(projector, projector.in_dim, config.output_rms)
    return injection


def seeded_connector(config: ConnectorConfig, seed: int) -> LanguageConnector:
    """A connector whose initialisation is a function of ``seed`` alone; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_connector(config)


@torch.no_grad()
def match_scale(projector: nn.Module, in_dim: int, rms: float) -> None:
    """Scale the projector's last linear map so that random tokens leave it with root mean square ``rms``.

    A fresh projector gives tokens several times as large as word embeddings, and a frozen language model has never
    seen such.

    Raises:
        WorkbenchError: the projector has no linear map.
    """
    linear = [module for module in projector.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise WorkbenchError(f"{type(projector).__name__} has no linear map whose output could be scaled.")
    tokens = torch.randn(1, 256, in_dim, generator=torch.Generator().manual_seed(0))
    now = projector(tokens).square().mean().sqrt()
    for parameter in linear[-1].parameters():
        parameter.mul_(rms / now)
