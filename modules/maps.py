"""Token maps as pictures: the three main directions of the tokens as red, green and blue.

The principal components are fitted over all images of one map together, so that a colour means the same in each of
them. Between maps (two layers, or before and after fusion) colours mean nothing to each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PERCENTILES = (1.0, 99.0)  # of each component, which become black and full colour; what lies beyond is clipped
LEAST_REACH = 0.01  # of shares: what differs less is not stretched to full contrast
_OVERSAMPLED = 16  # directions followed to find three; with the iterations below exact to what a colour can show
_ITERATIONS = 8


@dataclass(frozen=True)
class ColourMaps:
    """``colours`` uint8 ``[B, T, 3]``; ``explained`` the share of the tokens' variance that each channel shows."""

    colours: Tensor
    explained: tuple[float, float, float]


@torch.no_grad()
def pca_rgb(tokens: Tensor) -> ColourMaps:
    """Colours of tokens ``[B, T, C]``, the first component red, the second green, the third blue.

    Every token is first normalised without parameters, as the projector does, so that colours show what is read and a
    few tokens of large norm do not take a component for themselves. A component's sign is such that its third moment is
    positive: the rarer side is the bright one. Each component is scaled by its own :data:`PERCENTILES`. A component
    that has no spread (constant tokens, fewer than three channels) is mid-grey.
    """
    images, cells, channels = tokens.shape
    flat = F.layer_norm(tokens.detach().double().cpu(), (channels,)).flatten(0, 1)
    centred = flat - flat.mean(0)
    total = float(centred.square().sum())
    shown = torch.zeros(len(flat), 3, dtype=torch.float64)
    explained = [0.0, 0.0, 0.0]
    if total > 1e-9 * flat.numel():
        with torch.random.fork_rng(devices=[]):  # the start of the iteration is drawn
            torch.manual_seed(0)
            rank = min(_OVERSAMPLED, *centred.shape)
            left, strength, _ = torch.svd_lowrank(centred, q=rank, niter=_ITERATIONS)
        for k in range(min(3, rank)):
            explained[k] = float(strength[k].square() / total)
            shown[:, k] = left[:, k] * strength[k] if explained[k] > 1e-9 else 0.0
    shown = shown * torch.where(shown.pow(3).sum(0) < 0, -1.0, 1.0)
    scaled = torch.stack([_to_unit_interval(component) for component in shown.unbind(1)], dim=1)
    colours = (scaled * 255).round().to(torch.uint8).view(images, cells, 3)
    return ColourMaps(colours, (explained[0], explained[1], explained[2]))


@dataclass(frozen=True)
class ShareMaps:
    """Of M levels ``shades`` uint8 ``[M, B, T]``: black is ``mean - reach``, white ``mean + reach`` of each."""

    shades: Tensor
    means: tuple[float, ...]
    reach: float


@torch.no_grad()
def share_maps(regions: Tensor, percentile: float = PERCENTILES[1]) -> ShareMaps:
    """Where each level is drawn on, from shares ``[B, T, M]``, as shades around the level's mean over all tokens.

    The contrast is one for all levels, so that a level that is drawn on everywhere alike stays grey: of the levels'
    distances from their means the largest ``percentile``, and at least :data:`LEAST_REACH`.
    """
    shares = regions.detach().double().cpu().movedim(-1, 0)  # [M, B, T]
    means = shares.mean((1, 2), keepdim=True)
    away = (shares - means).abs().flatten(1)
    reach = max(LEAST_REACH, float(torch.quantile(away, percentile / 100, dim=1).max()))
    shades = (0.5 + (shares - means) / (2 * reach)).clamp(0, 1)
    return ShareMaps((shades * 255).round().to(torch.uint8), tuple(means.flatten().tolist()), reach)


def on_grid(tokens: Tensor, token_map: Tensor, cells: int) -> Tensor:
    """A strategy's output tokens ``[B, T_out, C]`` on the grid's cells, ``[B, cells, C]``.

    ``token_map`` ``[T_out]`` names the cell of each token, -1 for none. Where several tokens stand for a cell, their
    mean; a cell that no token stands for is zero.
    """
    on_a_cell = token_map >= 0
    place: Tensor = token_map[on_a_cell]
    summed = tokens.new_zeros(tokens.shape[0], cells, tokens.shape[2]).index_add_(1, place, tokens[:, on_a_cell])
    count = torch.bincount(place, minlength=cells).clamp_min(1).to(tokens.dtype)
    mean: Tensor = torch.div(summed, count[:, None])
    return mean


def _to_unit_interval(component: Tensor) -> Tensor:
    """To [0, 1] by :data:`PERCENTILES`; a half where there is no spread."""
    ends = torch.tensor(PERCENTILES, dtype=component.dtype) / 100
    low, high = torch.quantile(component, ends).tolist()
    if high - low < 1e-12:
        low, high = float(component.min()), float(component.max())  # a single odd token is still seen
    if high - low < 1e-12:
        return torch.full_like(component, 0.5)
    share: Tensor = (component - low) / (high - low)
    return share.clamp(0, 1)
