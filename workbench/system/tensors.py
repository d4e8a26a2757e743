"""Tensors that were read from files: whether there is a number in every place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError

if TYPE_CHECKING:
    from torch import Tensor, nn


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinities. One pass, and no copy of its size."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    if tensor.dtype.itemsize == 1:  # float8 has no order of its own
        tensor = tensor.float()
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))  # a NaN anywhere is both ends


def broken_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that are no weights of a module: with NaN, or in a parameter's place with infinities.

    A buffer may hold infinities: a mask does.
    """
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return [
        name
        for name, tensor in tensors.items()
        if not is_finite(tensor) and (name in parameters or bool(tensor.isnan().any()))
    ]


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises WorkbenchError that names the first tensor with NaN or infinities. ``what``: where they are from."""
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        raise WorkbenchError(not_finite(what, bad[0], len(bad), len(tensors)))


def not_finite(what: str, first: str, count: int, total: int) -> str:
    """The error of weights that are no numbers."""
    more = f" ({count} of {total} do)" if count > 1 else ""
    return (
        f"{what}: {first} holds NaN or infinite values{more}, so every number made with it would mean nothing; the "
        "file is damaged, or of a training that diverged."
    )
