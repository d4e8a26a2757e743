"""What a task is, and the registry of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.registry import Registry

if TYPE_CHECKING:
    from torchmetrics import Metric

Batch = Mapping[str, Tensor]
Array = np.ndarray[Any, Any]
Targets = Mapping[str, Array]


class Task(ABC):
    """One task. Tasks hold no parameters: :meth:`head` makes the module that does.

    Args:
        classes: how many classes the source names for it; 0 where it has none.
        targets: the source's training targets, from which the chance level is taken.

    Attributes:
        needs: the targets that it reads.
        metric_name, direction, unit: of the primary metric; ``unit`` is ``share`` (of 1) or ``count``.
        perfect: the primary metric of a model that is always right.
        ratio: two of :meth:`statistics` whose sums' quotient the primary metric is; None: it is a mean over items.
        chance: the primary metric, on the training images, of the best prediction without the image.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    metric_name: ClassVar[str] = "accuracy"
    direction: ClassVar[str] = "maximize"
    unit: ClassVar[str] = "share"
    perfect: ClassVar[float] = 1.0
    ratio: ClassVar[tuple[str, str] | None] = None
    chance: float

    def __init__(self, classes: int = 0, targets: Targets | None = None) -> None:
        self.classes = classes
        self.chance = self.chance_baseline(targets or {})

    def chance_baseline(self, targets: Targets, scored: Targets | None = None) -> float:
        """The metric of the best prediction without images, fitted to ``targets``, scored on ``scored`` or the same.

        Equally likely classes, unless a task knows better.
        """
        return 1 / self.classes

    @abstractmethod
    def head(self, width: int, hidden: int) -> nn.Module:
        """A module ``(tokens [B, T, width], batch, grid) → logits``."""

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar."""

    @abstractmethod
    def scores(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """For each example its score (the mean over its items, in the metric's unit) and its items, ``[B]`` both."""

    def statistics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What the primary metric needs of each example beyond score and items, ``[B]`` each; sums suffice."""
        return {}

    def value(self, scores: Tensor, items: Tensor, statistics: Mapping[str, Tensor]) -> float:
        """The primary metric of any examples, from their scores alone: so it can be resampled. nan for no items."""
        return float((scores.double() * items).sum() / items.sum())

    @abstractmethod
    def metric(self) -> Metric:
        """A fresh primary metric. Imports torchmetrics itself: a plan of a study needs its tasks and no metric."""

    @abstractmethod
    def update(self, metric: Metric, logits: Tensor, batch: Batch) -> None:
        """Add a batch to the primary metric."""

    def chance_normalised(self, value: float) -> float:
        """Where ``value`` of the primary metric lies between chance (0) and perfect (1)."""
        span = self.perfect - self.chance
        return (value - self.chance) / span if span else 0.0


TASKS: Registry[type[Task]] = Registry(
    "task",
    "tasks",
    group="fusion_workbench.tasks",
    base=Task,
    decorator="@register_task('a_name')",
    requires=("title", "needs"),
    words={"direction": ("maximize", "minimize")},
)
T = TypeVar("T", bound=type[Task])


def register_task(name: str) -> Callable[[T], T]:
    """Class decorator that makes a task known under ``name``.

    Raises:
        WorkbenchError: the name is taken by another class, or the class is no Task or lacks something of one, or
            defines ``guess``, the name of ``chance_baseline`` in 0.1.
    """

    def add(cls: T) -> T:
        if hasattr(cls, "guess"):  # it would be ignored in silence
            raise WorkbenchError(f"task '{name}': {cls.__name__}.guess is now called chance_baseline; rename it.")
        TASKS.add(name, cls, cls)
        cls.name = name
        return cls

    return add


def build_task(name: str, classes: Mapping[str, list[str]], targets: Targets) -> Task:
    """A task for a source with these classes and training targets.

    Raises:
        WorkbenchError: an unknown task, or one that the source gives no targets for.
    """
    kind = TASKS.find(name)
    missing = [target for target in kind.needs if target not in targets]
    if missing:
        served = sorted(task for task, cls in TASKS.items() if all(target in targets for target in cls.needs))
        raise WorkbenchError(
            f"task '{name}' needs the targets {', '.join(missing)}, which this source does not give; it serves "
            f"{', '.join(served) or 'no task that is known'}."
        )
    return kind(len(classes.get(name, ())), targets)
