"""From fused tokens to the width that reads them: what LLaVA calls the projector."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError, nearest


def linear(in_dim: int, width: int) -> nn.Module:
    """One linear map (LLaVA, arXiv 2304.08485, eq. 1)."""
    return nn.Linear(in_dim, width)


def mlp2x_gelu(in_dim: int, width: int) -> nn.Module:
    """Two linear maps with a GELU between (LLaVA-1.5, arXiv 2310.03744, section 3.2)."""
    return mlp(in_dim, width, width)


def mlp(in_dim: int, hidden: int, width: int) -> nn.Module:
    """The same with a middle of its own width."""
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, width))


PROJECTORS: dict[str, Callable[[int, int], nn.Module]] = {"linear": linear, "mlp2x_gelu": mlp2x_gelu}


class Projector(nn.Module):
    """``[B, T, in_dim] → [B, T, width]``.

    The tokens are first normalised, without parameters: the hidden states of one encoder differ in scale by an order
    of magnitude from layer to layer, and a shared learning rate would otherwise favour some layers over others.

    Args:
        kind: one of :data:`PROJECTORS`.
        hidden: where given, the map is an MLP with a middle so wide, instead of the kind's own (the matched control).
        normalise: False: the tokens are mapped as they are, which is LLaVA's own projector; for weights that were
            trained so.

    Raises:
        WorkbenchError: ``kind`` is not one of :data:`PROJECTORS`.
    """

    def __init__(self, kind: str, in_dim: int, width: int, hidden: int | None = None, normalise: bool = True) -> None:
        super().__init__()
        if kind not in PROJECTORS:
            raise WorkbenchError(f"training.projector is '{kind}'.{nearest(kind, PROJECTORS)}")
        self.in_dim = in_dim
        self.normalise = normalise
        self.map = PROJECTORS[kind](in_dim, width) if hidden is None else mlp(in_dim, hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mapped: Tensor = self.map(self.normalised(tokens))
        return mapped

    def normalised(self, tokens: Tensor) -> Tensor:
        """What the map takes: ``[B, T, in_dim]``, each token with mean 0 and variance 1."""
        return F.layer_norm(tokens, (self.in_dim,), eps=1e-6) if self.normalise else tokens
