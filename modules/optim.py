"""The one training recipe, of probes and of language models: parameter groups, weight decay, warm-up and schedule.

Both trainers promise that everything but the strategy is equal. So what a published recipe does otherwise is a field of
:class:`Recipe` with a name, such as :data:`MMFUSER_LLAVA`, and never a second way through the code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.names import gate_metric

PARTS = ("fuser", "gates", "projector", "head", "language")  # of a probe: with head; of a language model: with language
Parts = Mapping[str, Sequence[nn.Parameter]]


@dataclass(frozen=True)
class Recipe:
    """AdamW with linear warm-up and half a cosine down to zero, as transformers' Trainer and so LLaVA's has them.

    The first step of a warm-up has rate 0: it moves nothing but AdamW's moments.

    Nothing decays, warms up or is clipped by default: the defaults of a study stand in its configuration
    alone.

    Attributes:
        rates: peak learning rate of each part (:data:`PARTS`).
        weight_decay: of the matrices; gates, norms, biases and whatever else has one dimension never decay.
        warmup: share of the steps in which the rate rises; their number is the ceiling, as in transformers' Trainer.
        gradient_clip: norm that the gradients are clipped to; 0: none. A probe bank clips each probe by itself; a
            language model leaves it to its trainer, as sharded gradients need it.
        betas, eps: AdamW's.
    """

    rates: Mapping[str, float]
    weight_decay: float = 0.0
    warmup: float = 0.0
    gradient_clip: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @classmethod
    def of(cls, lr: float, scales: Mapping[str, float] | None = None, **settings: Any) -> Recipe:
        """One learning rate for all parts, times the ``scales`` of those that are named; ``settings``: other fields."""
        return cls({part: lr * (scales or {}).get(part, 1.0) for part in PARTS}, **settings)

    def rate(self, part: str) -> float:
        """The peak learning rate of a part. Raises WorkbenchError for a part without one."""
        if part not in self.rates:
            raise WorkbenchError(f"no learning rate for the part '{part}'; the recipe has {', '.join(self.rates)}.")
        return self.rates[part]

    def warmup_steps(self, steps: int) -> int:
        """How many of ``steps`` the warm-up takes: ``TrainingArguments.get_warmup_steps`` of transformers."""
        return math.ceil(self.warmup * steps)


# The first stage of MMFuser (arXiv 2410.11829, section IV-A), which is LLaVA-1.5's with a rate of the fuser's own; the
# language model's rate is that of the second stage. Neither decays weights.
MMFUSER_LLAVA = Recipe({"projector": 1e-3, "fuser": 1e-4, "gates": 1e-3, "language": 2e-5}, warmup=0.03)


def parameter_groups(parts: Parts, recipe: Recipe) -> list[dict[str, Any]]:
    """Optimizer groups, in the order of ``parts``: ``PART``, which decays, and ``PART/bare``, which does not.

    Raises:
        WorkbenchError: a part that the recipe has no learning rate for.
    """
    groups = []
    for part, parameters in parts.items():
        trained = [p for p in parameters if p.requires_grad]
        bare = [p for p in trained if part == "gates" or p.ndim < 2]
        decayed = others(trained, bare)
        for name, chosen, decay in ((part, decayed, recipe.weight_decay), (f"{part}/bare", bare, 0.0)):
            if chosen:
                groups.append({"name": name, "params": chosen, "lr": recipe.rate(part), "weight_decay": decay})
    return groups


def make_optimizer(parts: Parts, recipe: Recipe, steps: int, *, fused: bool = True) -> tuple[Optimizer, LambdaLR]:
    """The optimizer of ``parts``, and its schedule over ``steps`` optimizer steps, to be advanced after each.

    The schedule is transformers' ``get_cosine_schedule_with_warmup``.

    Args:
        fused: torch's fused step; False where something else unscales the gradients.

    Raises:
        WorkbenchError: a part that the recipe has no learning rate for.
    """
    from transformers import get_cosine_schedule_with_warmup

    optimizer = AdamW(parameter_groups(parts, recipe), betas=recipe.betas, eps=recipe.eps, fused=fused)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps(steps), steps)


def others(parameters: Iterable[nn.Parameter], taken: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """``parameters`` without those that are ``taken``, in their order."""
    ids = {id(parameter) for parameter in taken}
    return [parameter for parameter in parameters if id(parameter) not in ids]


def named_gates(fuser: nn.Module, gates: Iterable[nn.Parameter]) -> dict[str, nn.Parameter]:
    """The gates by their names in ``fuser``; empty for strategies without."""
    ids = {id(gate) for gate in gates}
    return {name: parameter for name, parameter in fuser.named_parameters() if id(parameter) in ids}


def gate_rms(gates: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """``gate/NAME_rms``: root mean square of each gate, which is how far it has opened."""
    return {gate_metric(name): float(gate.detach().float().square().mean().sqrt()) for name, gate in gates.items()}
