"""Numbers of a study that some machine could work with: from the least that means anything to more than anybody has.

A slip of the keyboard, or a stranger's file, asks for a thousand million replicates; that is said before any work, not
by a process that grows until it is killed. The most are far above what has been seen, so that no study meets them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from fusion_workbench.core.errors import WorkbenchError

MOST_REPLICATES = 10_000
_SIDE = 16_384  # pixels


class Limits(NamedTuple):
    """The numbers that a key may have, both ends included, and why there is an upper end."""

    least: float
    most: float = math.inf
    why: str = ""


_TRAINED = "no machine trains so many"
_HELD = "as many are held in memory at once"
_WIDE = "no such layer fits into memory"
_EPOCHS = "no training takes so many epochs"
_CHOICES = Limits(0, 100_000, "each is a cell to train")
_FINITE = Limits(0, 1e30, "weights would not stay finite")

# Keys as in a study file; [] stands for every entry of a list. Keys that are not there, or null, are passed over.
LIMITS: dict[str, Limits] = {
    "replicates": Limits(1, MOST_REPLICATES, _TRAINED),
    "encoder.batch_size": Limits(1, 65_536, _HELD),
    "search.budget": Limits(1, 1_000_000, _TRAINED),
    "search.keep": Limits(1, 1_000_000, _TRAINED),
    "search.seed": Limits(0, 2**32 - 1, "a seed has 32 bits"),
    "training.epochs": Limits(1, 1_000_000, _EPOCHS),
    "training.batch_size": Limits(1, 1_000_000, _HELD),
    "training.bank_size": Limits(1, 10_000, _HELD),
    "training.devices": Limits(1, 10_000, "no machine has so many"),
    "training.num_workers": Limits(0, 1_000, "each is a process"),
    "training.head_hidden": Limits(1, 1_000_000, _WIDE),
    "training.width": Limits(0, 1_000_000, _WIDE),
    "training.weight_decay": _FINITE,
    "training.warmup": Limits(0),
    "training.gradient_clip": Limits(0, 1e30, "0 leaves gradients as they are"),
    "training.gates_lr_scale": _FINITE,
    "training.fuser_lr_scale": _FINITE,
    "training.projector_lr_scale": _FINITE,
    "training.head_lr_scale": _FINITE,
    "plan.confirm[]": Limits(-math.inf, MOST_REPLICATES, _TRAINED),
    "language_model.max_length": Limits(16, 100_000_000, _HELD),
    "language_model.max_new_tokens": Limits(1, 10_000_000, "no answer is so long"),
    "language_model.eval_batch_size": Limits(1, 1_000_000, _HELD),
    "language_model.checkpoint_every": Limits(0),
    "language_model.log_every": Limits(1, 50, "a loss that is no number would go on for longer"),
    "language_model.val_limit": Limits(0),
    "language_model.lora.rank": Limits(1, 1_000_000, _WIDE),
    "language_model.lora.alpha": Limits(1, 1e12, "weights would not stay finite"),
    "language_model.stages[].epochs": Limits(1, 1_000_000, _EPOCHS),
    "language_model.stages[].accumulate": Limits(1, 1_000_000_000, "no training takes so many steps"),
    "language_model.stages[].batch_size": Limits(0, 1_000_000, _HELD),
    "language_model.stages[].weight_decay": _FINITE,
    "language_model.stages[].warmup": Limits(0),
    "language_model.stages[].lr_scale": _FINITE,
    "language_model.stages[].fuser_lr_scale": _FINITE,
    "language_model.stages[].gates_lr_scale": _FINITE,
    "language_model.stages[].projector_lr_scale": _FINITE,
    "language_model.stages[].language_lr_scale": _FINITE,
}


def check_limits(study: Any, where: str) -> None:
    """Raises WorkbenchError for the first number of a study's configuration that is outside of :data:`LIMITS`."""
    for key, limits in LIMITS.items():
        for name, value in _values(study, key.split("."), ""):
            check_number(name, value, limits, where)
    _check_size(study.encoder.image_size, where)
    for number, strategy in enumerate(study.strategies):
        cells = math.prod(len(values) for values in strategy.choices.values())
        check_number(f"the combinations of strategies[{number}].choices", cells, _CHOICES, where)
    rates = study.search.learning_rates
    if not rates or any(not 0 < rate < math.inf for rate in rates):
        raise WorkbenchError(
            f"{where}: search.learning_rates must name one or more rates above 0 and finite, such as [0.001]."
        )


def check_number(name: str, value: float, limits: Limits, where: str) -> None:
    """Raises WorkbenchError for a number outside of its limits, or that is none."""
    if not value >= limits.least:
        raise WorkbenchError(f"{where}: {name} is {value}; it must be at least {limits.least:g}.")
    if not value <= limits.most:
        raise WorkbenchError(
            f"{where}: {name} is {_short(value)}; it must be at most {_short(limits.most)}: {limits.why}."
        )


def _values(node: Any, path: list[str], above: str) -> Iterator[tuple[str, float]]:
    if not path:
        if node is not None:
            yield above, node
        return
    key, every = path[0].removesuffix("[]"), path[0].endswith("[]")
    held = getattr(node, key, None)
    name = f"{above}.{key}" if above else key
    for number, value in enumerate(held or () if every else [held]):
        yield from _values(value, path[1:], f"{name}[{number}]" if every else name)


def _short(value: float) -> str:
    return f"{int(value):,}" if abs(value) < 1e15 and value == int(value) else f"{value:g}"


def _check_size(size: Any, where: str) -> None:
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if any(isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= _SIDE for side in sides):
        raise WorkbenchError(
            f"{where}: encoder.image_size is {size!r}; it must be pixels, such as 224, or [height, width], such as "
            f"[224, 448], and at most {_SIDE:,}."
        )
