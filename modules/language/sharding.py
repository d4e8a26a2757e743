"""Sharding the visual language model over devices (fully sharded data parallel, per parameter: torch's FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

if TYPE_CHECKING:
    from lightning import LightningModule
    from torch.distributed.device_mesh import DeviceMesh


def shard(
    model: LightningModule, blocks: Iterable[nn.Module], mesh: DeviceMesh, computes: torch.dtype | None = None
) -> None:
    """Let every device of ``mesh`` keep its share of each parameter, its gradient and its optimiser state.

    A decoder block is gathered while it runs and scattered again. Everything else is gathered for the whole of a
    training step, as one unit: the embeddings, which are read outside the decoder's own forward and may be the output
    map as well, the final norm and the connector, which a batch of text alone passes by on one device and not on
    another. What is trained must be of one type, float32; what is frozen may be of any.

    Args:
        model: changed in place; its parameters become ``DTensor``. Only :meth:`training_step` can be called then.
        blocks: the decoder's.
        mesh: of one dimension.
        computes: in which a block's weights are gathered, half as many bytes as float32 for bf16. Shares, gradients
            and the residual stream stay as they are; None: so do the weights.
    """
    policy = MixedPrecisionPolicy()
    if computes is not None:
        # Autocast has the linear maps compute in it anyway; what is not gathered in it is float32 throughout.
        policy = MixedPrecisionPolicy(param_dtype=computes, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "training_step")
    if mesh.device_type == "cpu":  # gloo has sums and no means
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
