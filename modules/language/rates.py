"""Learning rates of the parts of a visual language model, and how they rise and fall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Rates:
    """AdamW with linear warm-up and cosine decay to zero.

    The defaults are the first stage of MMFuser (arXiv 2410.11829, section IV-A), which are LLaVA-1.5's with a rate of
    the fuser's own; 2e-5 is that of the second stage. Gates, norms and biases never decay.
    """

    projector: float = 1e-3
    fuser: float = 1e-4
    gates: float = 1e-3
    language: float = 2e-5
    weight_decay: float = 0.0
    warmup: float = 0.03  # share of the steps
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def of(self, part: str) -> float:
        """The peak rate of a part: ``fuser``, ``gates``, ``projector`` or ``language``."""
        return float({"projector": self.projector, "fuser": self.fuser, "gates": self.gates}.get(part, self.language))


def parameter_groups(parts: Mapping[str, Sequence[nn.Parameter]], rates: Rates) -> list[dict[str, Any]]:
    """Optimizer groups: each part's matrices with decay, and its vectors and the gates without."""
    groups = []
    for part, parameters in parts.items():
        trained = [p for p in parameters if p.requires_grad]
        bare = [p for p in trained if p.ndim < 2 or part == "gates"]
        bare_ids = {id(p) for p in bare}
        decayed = [p for p in trained if id(p) not in bare_ids]
        for name, chosen, decay in ((part, decayed, rates.weight_decay), (f"{part}/bare", bare, 0.0)):
            if chosen:
                groups.append({"name": name, "params": chosen, "lr": rates.of(part), "weight_decay": decay})
    return groups


def cosine(step: int, steps: int, warmup: float) -> float:
    """The share of the peak rate at ``step``, from 0: linear up over the warm-up, then a half cosine to zero."""
    rising = max(1, math.ceil(warmup * steps)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
