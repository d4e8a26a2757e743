"""Building what is too large, or not worth it, for memory: shapes, parameters and FLOPs are there all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def on_meta(make: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """``make(*args, **kwargs)`` with every tensor that it makes on PyTorch's meta device.

    Whatever ``make`` refuses, it refuses here too: so what cannot be built is reported before any work.
    """
    with torch.device("meta"):
        return make(*args, **kwargs)
