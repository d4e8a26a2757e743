"""Tokens that a head reads as weighted sums: projected after the sum where the projector is a linear map.

A sum of projected tokens is the projection of their sum: ``Σ_t a_t (W x_t + b) = W (Σ_t a_t x_t) + b Σ_t a_t``. A head
that reads a few sums of many tokens then needs a few rows of the projection, not one for each token. Logits and
gradients are the same in exact arithmetic; in floating point the last digits differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Unprojected:
    """Tokens ahead of a linear projector.

    Attributes:
        tokens: what the projector's linear map takes, ``[B, T, in_dim]``.
        linear: the map, from ``in_dim`` to ``width`` channels.
    """

    tokens: Tensor
    linear: nn.Linear


def weighted_sums(tokens: Tensor | Unprojected, weights: Tensor) -> Tensor:
    """``weights [B, G, S]`` over the first S tokens of ``[B, T, width]`` → ``[B, G, width]``."""
    count = weights.shape[-1]
    if isinstance(tokens, Tensor):
        return weights.to(tokens.dtype) @ tokens[:, :count]
    sums = F.linear(weights.to(tokens.tokens.dtype) @ tokens.tokens[:, :count], tokens.linear.weight)
    bias: Tensor | None = tokens.linear.bias
    return sums if bias is None else sums + weights.sum(-1, keepdim=True).to(sums.dtype) * bias


def products(tokens: Tensor | Unprojected, vectors: Tensor) -> Tensor:
    """Inner products of ``tokens [B, T, width]`` with ``vectors [K, width]`` → ``[B, T, K]``."""
    if isinstance(tokens, Tensor):
        return tokens @ vectors.T
    bias: Tensor | None = tokens.linear.bias
    return F.linear(tokens.tokens, vectors @ tokens.linear.weight, None if bias is None else vectors @ bias)
