"""Dense Connector (arXiv 2405.13800, section 3.2): three plain ways of handing more layers to the projector.

::

    STI   F = [F_L ; pool(F_1) ; … ; pool(F_M)]     along the tokens: sparse token integration
    SCI   F = [F_1 ; … ; F_M ; F_L]                 along the channels: sparse channel integration
    DCI   F = [mean(G_1) ; … ; mean(G_g) ; F_L]     along the channels, G the levels in g adjacent groups

SCI is :class:`~modules.fusion.concat.Concat` under its second name. The published code puts the query first; an order
of channels is a permutation of the projector's columns, and here the query is last as everywhere.

The published code pools by ``AvgPool1d(8, 8)`` over the flattened tokens (eight neighbours of a row at a time: 72
tokens of 576 for each level), reads hidden_states[7] and [15] for STI and SCI, and for DCI averages all of
hidden_states[0 … 11] and [12 … 23], the query hidden_states[23] among them. It normalises nothing: that is
``layer_norm: none``. Here a strategy reads the layers of its selection alone and the query is no level, so DCI groups
the levels that are given; name every layer below the query to have the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.base import Fusion, Grid, LayerNorm, normalise, register_strategy
from fusion_workbench.modules.fusion.concat import Concat, ConcatOptions

SOURCE = "arXiv 2405.13800, section 3.2"


@dataclass(frozen=True)
class STIOptions:
    """How many tokens of a level become one, and whether each layer is normalised first."""

    stride: int = 8
    layer_norm: LayerNorm = "per_layer"


@register_strategy(
    "sti", options=STIOptions, uses_levels=True, title="sparse token integration", source=f"{SOURCE} (STI)"
)
class STI(Fusion):
    """The query's tokens as they are placed, then each level's tokens, ``stride`` consecutive ones averaged.

    The appended tokens stand for no cell: a head that reads places sees the query alone, one that pools or attends
    over all tokens sees the levels as well. A last run that is cut short by the end of the tokens is averaged over what
    it has.

    Raises:
        WorkbenchError: ``stride`` is below 1.
    """

    def __init__(self, selection: Selection, dim: int, options: STIOptions) -> None:
        super().__init__(selection, dim, options)
        if options.stride < 1:
            raise WorkbenchError(f"sti: stride={options.stride}; one token or more become one.")

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[M + 1, B, T, dim] → [B, T + M·⌈T / stride⌉, dim]``."""
        self.check(features, grid)
        layers = normalise(features, self.options.layer_norm)
        pooled = F.avg_pool1d(layers[:-1].flatten(0, 1).mT, self.options.stride, ceil_mode=True).mT
        return torch.cat((layers[-1], *pooled.chunk(len(layers) - 1)), dim=1)

    def token_map(self, grid: Grid) -> Tensor:
        cells = super().token_map(grid)
        appended = len(self.selection.levels) * -(-len(cells) // self.options.stride)
        return torch.cat((cells, torch.full((appended,), -1)))


register_strategy(
    "sci",
    options=ConcatOptions,
    uses_levels=True,
    title="sparse channel integration (concat by another name)",
    source=f"{SOURCE} (SCI)",
)(Concat)


@dataclass(frozen=True)
class DCIOptions:
    """Into how many groups the levels are parted, and whether each layer is normalised first."""

    groups: int | None = None  # None: two, the paper's; one where there is but one level
    layer_norm: LayerNorm = "per_layer"


@register_strategy(
    "dci", options=DCIOptions, uses_levels=True, title="dense channel integration", source=f"{SOURCE} (DCI)"
)
class DCI(Fusion):
    """The means of adjacent levels beside the query, along the channels.

    Groups are as equal as can be; where the levels do not divide, the deeper groups are the larger.

    Raises:
        WorkbenchError: fewer than one group, or more groups than levels.
    """

    def __init__(self, selection: Selection, dim: int, options: DCIOptions) -> None:
        super().__init__(selection, dim, options)
        levels = len(selection.levels)
        groups = min(2, levels) if options.groups is None else options.groups
        if not 1 <= groups <= levels:
            raise WorkbenchError(f"dci: groups={groups}, and the {levels} levels make 1 to {levels} groups.")
        self.bounds = list(pairwise(levels * group // groups for group in range(groups + 1)))
        self.out_dim = dim * (groups + 1)

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[M + 1, B, T, dim] → [B, T, (groups + 1)·dim]``."""
        self.check(features, grid)
        layers = normalise(features, self.options.layer_norm)
        return torch.cat((*(layers[low:high].mean(0) for low, high in self.bounds), layers[-1]), dim=-1)
