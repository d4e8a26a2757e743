"""The bar that shows how far a command is; nothing where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def progress_bar(
    console: Console, name: str, total: int, *, shown: bool = True, done: int = 0, unit: str = "", keep: bool = True
) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` things. Yields the function that moves it on by so many.

    Args:
        name: what is being done.
        shown: False for nothing at all, as where ``console`` is no terminal.
        done: how many were there from before.
        unit: what is counted.
        keep: the bar stays when all is done.
    """
    if not (shown and total and console.is_terminal):
        yield lambda count: None
        return
    from rich import progress as rich

    columns = (
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn(unit, markup=False),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console, transient=not keep) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda count: bar.advance(task, count)
