"""MMFuser with the attention of its Table VII: each kind against its equation, and what it reports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import Fusion, build
from fusion_workbench.modules.fusion.attention import GlobalAttention, LinearSRA

LEVELS, DIM, HEADS = (1, 3), 8, 2


def fuser(**options: Any) -> Fusion:
    made = build("mmfuser", Selection(LEVELS, 6), DIM, {"heads": HEADS, **options})
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def features(grid: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(3, batch, grid[0] * grid[1], DIM, generator=torch.Generator().manual_seed(4))


def attend(module: GlobalAttention, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention of one image, head by head in a loop: output ``[Q, D]``, weights ``[H, Q, N]``."""
    q, k, v = module.query_proj(query), module.key_proj(tokens), module.value_proj(tokens)
    size = DIM // HEADS
    weights, gathered = [], []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        weights.append((q[:, part] @ k[:, part].T / size**0.5).softmax(-1))
        gathered.append(weights[-1] @ v[:, part])
    return module.output_proj(torch.cat(gathered, -1)), torch.stack(weights)


def pooled(module: LinearSRA, level: Tensor, grid: tuple[int, int]) -> Tensor:
    """One level ``[T, D]`` to its few places: plain means over windows, then map, norm, GELU."""
    rows, columns = (min(7, side) for side in grid)
    image = level.view(*grid, DIM)
    windows = [
        image[
            i * grid[0] // rows : -(-(i + 1) * grid[0] // rows),
            j * grid[1] // columns : -(-(j + 1) * grid[1] // columns),
        ].mean((0, 1))
        for i in range(rows)
        for j in range(columns)
    ]
    return F.gelu(module.reduction_norm(module.reduction(torch.stack(windows))))


@pytest.mark.parametrize("grid", [(3, 4), (8, 9), (1, 10)], ids=str)
@pytest.mark.parametrize("attention", ["global", "linear_sra"])
def test_the_block_around_another_attention(attention: str, grid: tuple[int, int]) -> None:
    block, x = fuser(attention=attention), features(grid)
    out = block(x, grid)
    shares = torch.zeros(len(LEVELS))

    def read(module: Any, tokens: Tensor) -> Tensor:
        if attention == "global":
            return tokens
        return torch.cat([pooled(module, level, grid) for level in tokens.split(grid[0] * grid[1])])

    for image in range(2):
        query = block.query_norm(x[-1, image])
        levels = torch.cat([block.feat_norm(level[image]) for level in x[:-1]])
        attended, weights = attend(block.cross_attn, query, read(block.cross_attn, levels))
        own = block.norm1(attended)
        refined, _ = attend(block.self_attn, own, read(block.self_attn, own))
        expected = x[-1, image] + block.gamma1 * (attended + block.gamma2 * refined)
        torch.testing.assert_close(out[image], expected, rtol=1e-4, atol=1e-5)
        shares += weights.detach().unflatten(-1, (len(LEVELS), -1)).sum(-1).mean((0, 1)) / 2
    found = block.diagnose(x, grid)
    assert [found[f"attention_share/layer_{k}"] for k in LEVELS] == pytest.approx(shares.tolist(), rel=1e-4)
    assert sum(shares.tolist()) == pytest.approx(1, rel=1e-4)
    assert "sampling_offset_rms_cells" not in found


@pytest.mark.parametrize("attention", ["deformable", "global", "linear_sra"])
def test_each_kind_begins_as_the_identity_and_opens(attention: str) -> None:
    block = build("mmfuser", Selection(LEVELS, 6), DIM, {"heads": HEADS, "attention": attention})
    x = features((3, 4))
    assert torch.equal(block(x, (3, 4)), x[-1])
    block(x, (3, 4)).square().sum().backward()
    assert block.gamma1.grad is not None
    assert block.gamma1.grad.any()


def test_linear_sra_grows_with_the_tokens_and_global_with_their_square() -> None:
    def growth(attention: str) -> float:
        block = build("mmfuser", Selection(LEVELS, 6), 64, {"attention": attention, "self_attention": False})
        with torch.device("meta"):
            return block.to("meta").flops((56, 56)) / block.flops((28, 28))

    assert 3.5 < growth("linear_sra") <= 4
    assert growth("global") > 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "globl"}, r"option 'attention' of strategy 'mmfuser' is 'globl'\. Did you mean 'global'\?"),
        ({"attention": 3}, "is 3; it takes 'deformable' or 'global' or 'linear_sra'"),
        ({"attention": "global", "heads": 3}, "heads=3 does not divide dim=8; these do: 1, 2, 4, 8"),
        ({"attention": "global", "heads": 0}, "heads=0 does not divide dim=8"),
        ({"attention": "global", "points": 2}, "points=2 is of deformable attention; attention=global has none"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        build("mmfuser", Selection(LEVELS, 6), DIM, options)
