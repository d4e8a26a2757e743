"""What a metric of answers is, and the registry of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeVar

from fusion_workbench.core.registry import Registry


class AnswerMetric(ABC):
    """Judges an answer in words. Holds no state; every text is taken, whatever its characters.

    Attributes:
        name: under which it is registered, logged and shown.
        source: the paper and the program that define it.
        ratio: two of :meth:`statistics` whose sums' quotient the metric is; None: it is the mean score.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    unit: ClassVar[str] = "share"
    direction: ClassVar[str] = "maximize"
    perfect: ClassVar[float] = 1.0
    ratio: ClassVar[tuple[str, str] | None] = None

    @abstractmethod
    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """How right ``prediction`` is, 0 to 1, where ``answers`` are all right answers; 0 where there are none."""

    def statistics(self, prediction: str, answers: Sequence[str]) -> dict[str, float]:
        """What the metric needs of an example beyond its score; sums over examples suffice."""
        return {}

    def value(self, scores: Sequence[float], statistics: Mapping[str, Sequence[float]]) -> float:
        """The metric of any examples, from their per-example scores alone; nan for none.

        A ratio whose denominator is 0 is 0, as in torchmetrics.
        """
        if not len(scores):
            return float("nan")
        if self.ratio is None:
            return sum(map(float, scores)) / len(scores)
        above, below = (sum(map(float, statistics[name])) for name in self.ratio)
        return above / below if below else 0.0

    def details(self, scores: Sequence[float], statistics: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """What else is usually reported beside the metric, by name."""
        return {}


METRICS: Registry[AnswerMetric] = Registry(
    "answer metric",
    "answer metrics",
    group="fusion_workbench.metrics",
    base=AnswerMetric,
    decorator="@register_metric('a_name')",
    requires=("title", "source"),
    words={"direction": ("maximize", "minimize")},
)
M = TypeVar("M", bound=type[AnswerMetric])


def register_metric(name: str) -> Callable[[M], M]:
    """Class decorator that makes a metric known under ``name``.

    Raises:
        WorkbenchError: the name is taken by another class, or the class is no AnswerMetric or lacks something of one.
    """

    def add(cls: M) -> M:
        METRICS.check(name, cls)
        cls.name = name
        METRICS.add(name, cls(), cls)
        return cls

    return add


def find_metric(name: str, where: str = "") -> AnswerMetric:
    """The metric of this name; ``where`` is what names it, for the message.

    Raises:
        WorkbenchError: there is none.
    """
    return METRICS.find(name, where)
