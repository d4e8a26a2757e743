"""The hall: command line, configuration, experiment runner, tracking, ledger."""

from workbench.guard import check
from workbench.version import __version__

check()

__all__ = ["__version__"]
