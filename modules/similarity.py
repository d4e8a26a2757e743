"""How alike the layers of an encoder are: linear CKA in its unbiased minibatch form.

CKA (Kornblith et al., arXiv 1905.00414) compares two layers by the Gram matrices of the same examples in both. Its
usual estimate needs all examples at once and is biased upwards where channels are many. Here each term is HSIC₁, the
unbiased estimate of Song et al. (JMLR 13, 2012, eq. 5), summed over minibatches before the quotient is taken (Nguyen et
al., ICLR 2021, arXiv 2010.15327, eq. 2 and 3)::

    HSIC₁(K, L) = [ tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1 / ((n-1)(n-2)) − 2/(n-2) · 1ᵀK̃L̃1 ] / (n(n-3))
    CKA         = Σ HSIC₁(K_i, L_i) / ( √Σ HSIC₁(K_i, K_i) · √Σ HSIC₁(L_i, L_i) )

with K = XXᵀ, L = YYᵀ for the n examples of minibatch i, and K̃ a K whose diagonal is zero. 1 means the same up to a
rotation and a scale, 0 nothing in common that a linear map could use.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST = 4  # examples of a minibatch, for n - 3 to be positive


class MinibatchCKA:
    """Sums of HSIC₁ over minibatches, for every pair of layers.

    Attributes:
        examples: how many were added.
        batches: in how many minibatches.
    """

    def __init__(self, layers: int) -> None:
        self._sums = torch.zeros(layers, layers, dtype=torch.float64)
        self.examples = 0
        self.batches = 0

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """One minibatch ``[layers, n, dim]`` of the same n ≥ 4 examples; for the CPU, n² numbers per layer.

        Raises:
            ValueError: fewer examples, or another number of layers.
        """
        layers, examples, _ = features.shape
        if examples < FEWEST or layers != len(self._sums):
            raise ValueError(f"a minibatch [{len(self._sums)}, at least {FEWEST}, dim], not {list(features.shape)}")
        self._sums += hsic(features)
        self.examples += examples
        self.batches += 1

    def matrix(self) -> Tensor:
        """``[layers, layers]``, symmetric with 1 on the diagonal; nan for a layer whose examples are all alike."""
        strength = self._sums.diagonal()
        root = torch.where(strength > 0, strength, torch.nan).sqrt()
        cka = self._sums / torch.outer(root, root)
        return (cka + cka.T) / 2


def hsic(features: Tensor) -> Tensor:
    """HSIC₁ of every pair of layers, float64 ``[layers, layers]``, from ``[layers, n, dim]``."""
    x = features.double()
    x = x - x.mean(1, keepdim=True)  # HSIC₁ does not change, and keeps its digits
    n = x.shape[1]
    gram = x @ x.mT  # [layers, n, n]
    gram.diagonal(dim1=1, dim2=2).zero_()
    rows = gram.sum(2)  # K̃1
    total = rows.sum(1)  # 1ᵀK̃1
    flat = gram.flatten(1)
    trace = flat @ flat.T
    unbiased = trace + torch.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows @ rows.T)
    return unbiased / (n * (n - 3))


def sample_tokens(features: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Of ``[layers, B, T, dim]`` up to ``most`` tokens per image, drawn without repeats: ``[layers, B · most, dim]``.

    The same places are taken in every layer; each image has its own.
    """
    _, images, tokens, dim = features.shape
    if tokens <= most:
        return features.flatten(1, 2)
    places = torch.rand(images, tokens, generator=generator).argsort(1)[:, :most]
    index = places[None, :, :, None].expand(len(features), -1, -1, dim).to(features.device)
    return features.gather(2, index).flatten(1, 2)
