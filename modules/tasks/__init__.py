"""Tasks: what is read off the fused tokens. A head, a loss, a score for each example, a metric."""

from fusion_workbench.modules.tasks import count, digit, locate, read, segment  # noqa: F401  (each registers its task)
from fusion_workbench.modules.tasks.base import TASKS, Batch, Task, build_task, register_task
from fusion_workbench.modules.tasks.count import Count
from fusion_workbench.modules.tasks.digit import Digit
from fusion_workbench.modules.tasks.locate import Locate
from fusion_workbench.modules.tasks.read import Read
from fusion_workbench.modules.tasks.segment import Segment

__all__ = [
    "TASKS",
    "Batch",
    "Count",
    "Digit",
    "Locate",
    "Read",
    "Segment",
    "Task",
    "build_task",
    "register_task",
]
