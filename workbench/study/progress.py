"""What a person sees while a study runs: a bar with the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from fusion_workbench.schema.names import Phase
from fusion_workbench.system.bars import progress_bar

_EVERY = 30.0  # seconds between plain lines
_PHASES: dict[str, str] = {Phase.SEARCH: "learning rates", Phase.CONFIRM: "fresh replicates"}


class Display:
    """Progress of one command.

    Args:
        console: where to write.
        progress: False for silence but for :meth:`say`.
    """

    def __init__(self, console: Console, progress: bool = True) -> None:
        self.console = console
        self.progress = progress

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A stage without a known length."""
        if self.progress and self.console.is_terminal:
            with self.console.status(text):
                yield
        else:
            yield

    @contextmanager
    def training(
        self, phase: str, total: int, kept: int, unit: str = "variant-epochs"
    ) -> Iterator[Callable[[int], None]]:
        """A bar over ``unit``. Yields the function that moves it."""
        name = _PHASES.get(phase, "replicates")
        if kept:
            self.say(f"{name}: {kept} variant-replicates were finished before and are kept")
        if not total or not self.progress:
            yield lambda count: None
        elif self.console.is_terminal:
            with progress_bar(self.console, name, total, unit=unit) as advance:
                yield advance
        else:
            yield _Plain(self, name, total, unit).advance


class _Plain:
    """A line now and then, for logs."""

    def __init__(self, display: Display, name: str, total: int, unit: str) -> None:
        self.display, self.name, self.total, self.unit = display, name, total, unit
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last >= _EVERY or self.done >= self.total:
            self.last = now
            left = (now - self.start) / self.done * (self.total - self.done)
            self.display.say(f"{self.name}: {self.done}/{self.total} {self.unit}, about {left / 60:.1f} min left")
