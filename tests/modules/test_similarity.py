"""Unbiased minibatch CKA: equal to its definition, invariant where it should be, near 0 where nothing is shared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion_workbench.modules.similarity import MinibatchCKA, hsic, sample_tokens


def of(*batches: Tensor) -> Tensor:
    cka = MinibatchCKA(len(batches[0]))
    for batch in batches:
        cka.add(batch)
    return cka.matrix()


def by_definition(x: Tensor, y: Tensor) -> float:
    """The mean over all ordered quadruples of different examples: a U-statistic, Song et al. 2012, eq. 3 and 4."""
    k, m = x @ x.T, y @ y.T
    n, total, count = len(x), 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
                        count += 1
    return total / count


@pytest.mark.parametrize("examples", [4, 5, 7])
def test_hsic_is_the_u_statistic(examples: int) -> None:
    torch.manual_seed(examples)
    features = torch.randn(2, examples, 3, dtype=torch.float64) + 1
    found = hsic(features)
    for a in range(2):
        for b in range(2):
            assert float(found[a, b]) == pytest.approx(by_definition(features[a], features[b]), rel=1e-9)


def test_minibatches_are_summed_before_the_quotient() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 20, 5, dtype=torch.float64)
    sums = hsic(first) + hsic(second)
    expected = sums / (sums.diagonal()[:, None] * sums.diagonal()).sqrt()
    assert torch.allclose(of(first, second), expected, atol=1e-12)


def test_rotation_scale_and_shift_change_nothing() -> None:
    torch.manual_seed(1)
    x = torch.randn(60, 8, dtype=torch.float64) * torch.arange(1, 9)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    other = 5 * torch.randn(60, 8, dtype=torch.float64) + x
    matrix = of(torch.stack([x, 3.7 * x @ turn, x + 100, other]))
    assert torch.allclose(matrix[:3, :3], torch.ones(3, 3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(matrix[3, :3], matrix[3, 0].expand(3), atol=1e-9)
    assert torch.equal(matrix, matrix.T)
    assert 0.2 < float(matrix[3, 0]) < 0.95


def test_what_shares_nothing_is_near_zero_with_many_channels_too() -> None:
    """The biased estimate is near 1 here: 64 examples in 512 channels."""
    torch.manual_seed(2)
    matrix = of(*torch.randn(10, 2, 64, 512))
    assert abs(float(matrix[0, 1])) < 0.03
    x, y = torch.randn(2, 64, 512).double()
    centre = torch.eye(64).double() - 1 / 64
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert float((k * m).sum() / (k.norm() * m.norm())) > 0.5


def test_float32_features_with_a_large_mean_keep_their_digits() -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 100, 16)
    assert torch.allclose(of(x + 1000), of(x), atol=1e-3)


def test_a_constant_layer_is_unknown() -> None:
    matrix = of(torch.stack([torch.randn(30, 4), torch.ones(30, 4)]))
    assert float(matrix[0, 0]) == pytest.approx(1)
    assert matrix[:, 1].isnan().all()


def test_what_does_not_fit_is_refused() -> None:
    cka = MinibatchCKA(2)
    for wrong in (torch.randn(2, 3, 4), torch.randn(3, 10, 4)):
        with pytest.raises(ValueError, match="a minibatch"):
            cka.add(wrong)


def test_tokens_are_the_same_places_in_every_layer() -> None:
    marks = torch.arange(3 * 10.0).view(1, 3, 10, 1).expand(4, 3, 10, 2)
    drawn = sample_tokens(marks, 4, torch.Generator().manual_seed(0))
    assert drawn.shape == (4, 12, 2)
    assert (drawn == drawn[0]).all()
    by_image = drawn[0, :, 0].view(3, 4)
    assert ((by_image // 10).int() == torch.arange(3)[:, None]).all()
    assert len(set(by_image.flatten().tolist())) == 12
    assert torch.equal(drawn, sample_tokens(marks, 4, torch.Generator().manual_seed(0)))
    assert sample_tokens(marks, 10, torch.Generator()).shape == (4, 30, 2)
