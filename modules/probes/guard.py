"""A member of a probe bank kept to itself: what its strategy raises ends its own training, what it sets is set back.

A strategy is code of anybody. Whatever it does, its neighbours train on as they would without it, bitwise on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusion_workbench.core import stopping
from fusion_workbench.core.errors import WorkbenchError, error_words
from fusion_workbench.schema.names import Status

if TYPE_CHECKING:
    from fusion_workbench.modules.tasks import Task

_BUILT_IN = "fusion_workbench."


class MemberFailed(Exception):
    """A member's own code raised.

    Attributes:
        status: what becomes of the member: failed, or out of memory.
        words: what was raised, and where.
    """

    def __init__(self, status: Status, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class TaskFailed(WorkbenchError):
    """A task of another package raised, which it would for every member: the study cannot go on."""


@contextmanager
def of_member(where: str | Callable[[], str], *but: type[Exception]) -> Iterator[None]:
    """What is raised within is the member's own, and so is what it changes of torch.

    Args:
        where: such as ``epoch 1, step 3``; or what says so, where it is known at the end alone.
        but: errors that are not.

    Raises:
        MemberFailed: instead of any other error, a plug-in's ``sys.exit`` included.
        WorkbenchError: the device is lost, to all members; or TaskFailed.
    """
    failure = None
    others: tuple[type[Exception], ...] = (TaskFailed, *but)
    with torch_as_it_was():
        try:
            yield
        except others:
            raise
        except (Exception, SystemExit) as error:
            stopping.check()
            words = f"{error_words(error)} ({where if isinstance(where, str) else where()})"
            if _is_device_lost(error):
                raise WorkbenchError(f"the device cannot go on in this process: {words}") from error
            status = Status.OUT_OF_MEMORY if is_out_of_memory(error) else Status.FAILED
            failure = MemberFailed(status, words)
    if failure is not None:
        raise failure  # outside the block: the error keeps everything that its frames hold


@contextmanager
def of_task(task: Task, where: str, logits: Tensor) -> Iterator[None]:
    """What a task of another package raises on sound ``logits`` is named as its own.

    Raises:
        TaskFailed: instead of its error. What a task of ours raises stays the member's: they do not fail alone.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        ours = type(task).__module__.startswith(_BUILT_IN)
        if ours or is_out_of_memory(error) or not bool(torch.isfinite(logits).all()):
            raise
        raise TaskFailed(
            f"task '{task.name}' ({type(task).__module__}) broke off in {where}: {error_words(error)}; mend it, or "
            "leave it out of tasks."
        ) from error


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """What code of others sets for the whole process is set back at the end of the block."""
    dtype, gradients, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    exact, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.is_grad_enabled() != gradients:
            torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()) != (
            exact,
            warn,
        ):
            torch.use_deterministic_algorithms(exact, warn_only=warn)
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or, as torch says it there, on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _is_device_lost(error: BaseException) -> bool:
    """After an assertion on a CUDA device every later call fails, whoever makes it."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)
