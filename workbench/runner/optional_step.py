"""Steps after training that a study takes once and never ends for: its numbers stand without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.config.study import digest
from fusion_workbench.core import stopping
from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.study.tracking import Tracker

if TYPE_CHECKING:
    from fusion_workbench.study.ledger import Ledger
    from fusion_workbench.study.progress import Display


def log_once(
    name: str,
    inputs: Mapping[str, Any],
    make: Callable[[], Mapping[str, str | bytes | Path]],
    *,
    doing: str,
    what: str,
    tracker: Tracker,
    run_id: str,
    ledger: Ledger,
    display: Display,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Log what ``make`` returns to the parent run ``run_id``; whether it is there now.

    Nothing is done where the ledger knows that the same was logged before. Whatever goes wrong is reported in a line:
    all numbers of the study stand without it.

    Args:
        name: of the fact in the ledger.
        inputs: all that the files depend on; when it changes they are made again.
        make: the artifacts by their path.
        doing: what is shown meanwhile.
        what: is missing where it fails, for the line that says so.
        check: raises WorkbenchError where what would be made is of something else than the study's rows are.
    """
    mark = digest(dict(inputs))
    if ledger.fact(name) == mark:
        return True
    try:
        check()
    except WorkbenchError as error:
        display.say(f"{what} is left as it is: {error}")
        return False
    try:
        with display.step(doing):
            tracker.log_files(run_id, make())
    except (Exception, SystemExit) as error:  # whatever it is, the study is done and its numbers stand
        stopping.check()
        display.say(f"{what} is left out of the report ({type(error).__name__}): {first_line(error)}")
        return False
    ledger.remember(name, mark)
    return True
