"""Tasks: what is read off the fused tokens. A head, a loss, an outcome for each example, a metric."""

from modules.tasks import count, digit, locate, read, segment  # noqa: F401  (each registers its task)
from modules.tasks.base import TASKS, Batch, Task, build_task, register_task
from modules.tasks.count import Count
from modules.tasks.digit import Digit
from modules.tasks.locate import Locate
from modules.tasks.read import Read
from modules.tasks.segment import Segment

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
