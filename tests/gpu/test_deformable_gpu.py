"""Deformable attention on CUDA against the CPU, and the kernels of ``deformops`` against the definition."""

from __future__ import annotations

from importlib.util import find_spec

import published_attention
import pytest
import torch

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import build, deformable
from fusion_workbench.modules.fusion import deformable_backends as backends

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("grid", [(8, 8), (3, 5), (1, 17), (24, 24)], ids=str)
@pytest.mark.parametrize("dense_up_to", [0, 10**6], ids=["sparse", "dense"])
@pytest.mark.parametrize("chunk", [1, 2**26], ids=["in pieces", "at once"])
def test_cuda_equals_cpu(grid: tuple[int, int], dense_up_to: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "DENSE_UP_TO", dense_up_to)
    monkeypatch.setattr(deformable, "DENSE_UP_TO_ON_GPU", dense_up_to)
    monkeypatch.setattr(deformable, "DENSE_FROM_ON_GPU", 0)
    monkeypatch.setattr(deformable, "CHUNK_ON_GPU", chunk)
    torch.manual_seed(0)
    fuser = build("mmfuser", Selection((1, 2, 3), 4), 128).double()
    with torch.no_grad():
        for parameter in fuser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    features = torch.randn(4, 2, grid[0] * grid[1], 128, dtype=torch.float64)
    expected = fuser(features, grid)
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, list(fuser.parameters()), cotangent)
    fuser.cuda()
    actual = fuser(features.cuda(), grid)
    torch.testing.assert_close(actual.cpu(), expected)
    for a, e in zip(torch.autograd.grad(actual, list(fuser.parameters()), cotangent.cuda()), gradients, strict=True):
        torch.testing.assert_close(a.cpu(), e)


def test_bfloat16_autocast_is_near_float32() -> None:
    torch.manual_seed(0)
    fuser = build("mmfuser", Selection((1, 2, 3), 4), 384, {"gate_init": 0.5}).cuda()
    features = torch.randn(4, 8, 256, 384, device="cuda")
    exact = fuser(features, (16, 16))
    with torch.autocast("cuda", torch.bfloat16):
        near = fuser(features, (16, 16))
    near.float().square().mean().backward()
    assert float(((near - exact).norm() / exact.norm()).detach()) < 0.02
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fuser.parameters())


needs_deformops = pytest.mark.skipif(find_spec("deformops") is None, reason="needs deformops")
# images, grid, levels, heads, points, channels of a head, how far samples reach in cells
CASES = [
    (2, (8, 8), 3, 6, 4, 64, 2.0),
    (2, (24, 24), 4, 16, 4, 64, 2.0),  # MMFuser's on CLIP-L/336
    (3, (3, 5), 2, 2, 4, 16, 2.0),
    (2, (1, 17), 1, 3, 2, 8, 2.0),
    (1, (1, 1), 2, 1, 1, 4, 0.5),
    (2, (7, 5), 2, 2, 3, 24, 40.0),  # most lie outside
]


@needs_deformops
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.005)], ids=str
)
def test_deformops_is_the_definition(
    case: tuple[int, tuple[int, int], int, int, int, int, float], dtype: torch.dtype, tolerance: float
) -> None:
    """Output and the gradients of values and samples, as a share of their norm, against float64 on the CPU."""
    images, grid, levels, heads, points, channels, reach = case
    values, sampling, cotangent = published_attention.inputs(0, images, grid, levels, heads, points, channels, reach)
    exact = [values.requires_grad_(), sampling.requires_grad_()]
    expected = backends.in_published_layout(*exact, levels, grid, published_attention.attend)
    near = [values.detach().to("cuda", dtype).requires_grad_(), sampling.detach().float().cuda().requires_grad_()]
    actual = backends.deformops(*near, levels, grid)
    assert actual.dtype == dtype
    pairs = [
        (actual, expected),
        *zip(
            torch.autograd.grad(actual, near, cotangent.to("cuda", dtype)),
            torch.autograd.grad(expected, exact, cotangent),
            strict=True,
        ),
    ]
    for found, wanted in pairs:
        assert float((found.detach().double().cpu() - wanted.detach()).norm()) <= tolerance * float(wanted.norm())


@needs_deformops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_deformops_is_tried_and_the_choice_explained(dtype: torch.dtype, training: bool) -> None:
    backends._tried.clear()
    device, shape = torch.device("cuda"), backends.Shape(4, (24, 24), 4, 16, 4, 64)
    before = torch.cuda.get_rng_state()
    found = backends.resolve(device, dtype, shape, training)
    print(found.reason)
    assert found.own_ms is not None, found.reason  # it was timed, and gives the same numbers
    assert found.deformops_ms is not None
    assert (found.backend == "deformops") == (found.deformops_ms * backends.MARGIN <= found.own_ms)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert backends.resolve(device, dtype, shape, training) is found


def test_without_a_kernel_it_is_this_packages_operator() -> None:
    device, shape = torch.device("cuda"), backends.Shape(1, (2, 2), 1, 1, 1, 4)
    assert backends.resolve(device, torch.float64, shape).backend == "own"
    if find_spec("deformops") is None:
        assert backends.resolve(device, torch.float32, shape).reason == backends.unavailable()
