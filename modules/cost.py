"""What a module costs, exactly: parameters and forward floating-point operations.

Counted are the operations that grow with tokens × channels: matrix products, convolutions, attention, and weighted
gathers (deformable sampling), a multiplication and an addition each, so FLOPs = 2 · MACs. Not counted, as in the
field's usual figures, are biases, norms, softmax, activations and other element-wise work (below 1 % for MMFuser at
dim 1024). Published figures may leave out more: MMFuser's 4.79 GMACs at 576 tokens are its linear maps alone, and the
sampling adds 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


def _weighted_gather(table: Sequence[int], indices: Sequence[int], *_: Any, out_val: Any = None, **__: Any) -> int:
    """Every row that is read is multiplied by its weight and added.

    Deformable attention reads 4 corners × points × levels for each query and head, so this is the algorithm's own
    count, whether a corner lies on the grid or not.
    """
    return 2 * math.prod(indices) * table[1]


FORMULAE: dict[Any, Callable[..., int]] = {
    aten._embedding_bag_forward_only: _weighted_gather,
    aten._embedding_bag: _weighted_gather,
}
"""Formulae beyond those of torch, by operator; a kernel of one's own is registered here."""


def parameters(module: nn.Module) -> int:
    """Parameters of a module, shared ones once, frozen ones too."""
    return sum(parameter.numel() for parameter in module.parameters())


def flops(function: Callable[..., Any], *inputs: Tensor) -> int:
    """Forward FLOPs of ``function(*inputs)``, a module or any callable; see the head of this file for what counts.

    Attention kernels are run in their plain form, so that nothing is hidden in a fused operator.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False, custom_mapping=FORMULAE) as count,
        ):
            function(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(count.get_total_flops())
