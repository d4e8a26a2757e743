"""Token maps as pictures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion_workbench.modules.maps import LEAST_REACH, on_grid, pca_rgb, share_maps


def tokens(images: int, cells: int, channels: int, seed: int, rank: int = 5) -> Tensor:
    """Tokens with a few strong, skewed directions and a little noise."""
    g = torch.Generator().manual_seed(seed)
    strength = torch.tensor([4.0 / 2**k for k in range(rank)])
    hidden = (torch.rand(images, cells, rank, generator=g) ** 3 - 0.25) * strength
    noise = 0.01 * torch.randn(images, cells, channels, generator=g)
    return hidden @ torch.randn(rank, channels, generator=g) + noise + 1


def test_components_are_those_of_an_exact_decomposition() -> None:
    x = tokens(5, 49, 24, seed=0)
    found = pca_rgb(x)
    flat = F.layer_norm(x.double(), (24,)).flatten(0, 1)
    centred = flat - flat.mean(0)
    left, strength, _ = torch.linalg.svd(centred, full_matrices=False)
    share = strength.square() / strength.square().sum()
    assert found.explained == pytest.approx(share[:3].tolist(), abs=1e-6)
    assert found.colours.shape == (5, 49, 3)
    assert found.colours.dtype == torch.uint8
    for k in range(3):
        component = left[:, k] * torch.where(left[:, k].pow(3).sum() < 0, -1, 1)
        low, high = torch.quantile(component, torch.tensor([0.01, 0.99], dtype=torch.float64))
        expected = ((component - low) / (high - low)).clamp(0, 1) * 255
        assert (found.colours.flatten(0, 1)[:, k] - expected).abs().max() <= 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 50))
def test_colours_belong_to_tokens_not_to_their_frame(seed: int, scale: float) -> None:
    """Another order of images or channels, another scale: the same token has the same colour."""
    x = tokens(4, 16, 12, seed)
    plain = pca_rgb(x).colours.int()
    order, channels = torch.randperm(4), torch.randperm(12)
    moved = pca_rgb(scale * x[order][..., channels]).colours.int()
    assert (moved - plain[order]).abs().max() <= 2  # of 255: each is rounded, and a quantile may move a little


def test_the_same_tokens_have_the_same_colours_and_the_callers_randomness_stays() -> None:
    x = tokens(3, 16, 8, seed=1)
    before = torch.get_rng_state()
    assert torch.equal(pca_rgb(x).colours, pca_rgb(x.clone()).colours)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_rarer_side_is_bright() -> None:
    x = torch.zeros(1, 100, 6)
    x[..., 0] = 1
    x[0, :4, 1] = 5  # four odd tokens of a hundred
    red = pca_rgb(x).colours[0, :, 0]
    assert red[:4].tolist() == [255] * 4
    assert red[4:].tolist() == [0] * 96


@pytest.mark.parametrize("x", [torch.ones(2, 9, 5), torch.zeros(1, 1, 4), torch.full((3, 4, 1), 7.0)])
def test_without_spread_it_is_grey(x: Tensor) -> None:
    found = pca_rgb(x)
    assert set(found.colours.flatten().tolist()) == {128}
    assert found.explained == (0.0, 0.0, 0.0)


def test_a_few_huge_tokens_do_not_take_the_colours() -> None:
    x = tokens(4, 64, 32, seed=3)
    loud = x.clone()
    loud[0, :2] *= 1000  # of large norm, as DINOv2's artefacts are
    assert (pca_rgb(loud).colours.int() - pca_rgb(x).colours.int()).abs().max() <= 1


def test_tokens_find_their_cells() -> None:
    x = torch.arange(10.0).view(1, 5, 2)
    placed = on_grid(x, torch.tensor([2, 0, 2, -1, 3]), cells=4)
    assert placed.tolist() == [[[2.0, 3.0], [0.0, 0.0], [2.0, 3.0], [8.0, 9.0]]]
    same = on_grid(x[:, :4], torch.arange(4), cells=4)
    assert torch.equal(same, x[:, :4])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), levels=st.integers(1, 4))
def test_shades_of_shares_say_the_shares(seed: int, levels: int) -> None:
    regions = torch.randn(3, 20, levels, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)
    found = share_maps(regions, percentile=100)
    assert found.shades.shape == (levels, 3, 20)
    assert sum(found.means) == pytest.approx(1, abs=1e-5)
    for level, mean in enumerate(found.means):
        read = mean + (found.shades[level].double() / 255 - 0.5) * 2 * found.reach
        assert (read - regions[..., level].double()).abs().max() <= found.reach / 255 + 1e-6


def test_a_level_that_is_drawn_on_everywhere_alike_stays_grey() -> None:
    even, draw = torch.full((2, 9, 2), 0.5), torch.Generator().manual_seed(3)
    found = share_maps(even + 0.0001 * torch.randn(2, 9, 2, generator=draw))
    assert found.reach == LEAST_REACH
    assert (found.shades.int() - 128).abs().max() <= 8
    lively = torch.stack([even[..., 0], torch.rand(2, 9, generator=draw)], dim=-1)
    shades = share_maps(lively).shades
    assert shades[0].unique().tolist() == [128]
    assert shades[1].max() > 240
