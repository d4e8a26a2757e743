"""What a tracking server, a database or their drivers raise, in one line: what, where, and that nothing is lost."""

from __future__ import annotations

import re

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.system.mlflow_uri import without_password

_STORES = ("mlflow", "sqlalchemy", "alembic", "requests", "urllib3", "boto3", "botocore", "azure", "google")
_DRIVERS = ("sqlite3", "psycopg", "psycopg2", "pymysql", "MySQLdb", "mysql", "pyodbc")
_LIBRARIES = frozenset(_STORES + _DRIVERS)
_LONGEST = 200  # letters of a reason
GOES_ON = "nothing is lost: the same command goes on where it was"


class Outage(WorkbenchError):
    """Where a study is tracked cannot be reached or refuses: nothing that the study itself did."""


def is_outage(error: BaseException) -> bool:
    """Whether ``error`` is of a tracking server, a database or a driver."""
    return any(cls.__module__.partition(".")[0] in _LIBRARIES for cls in type(error).__mro__)


def is_lock(error: BaseException) -> bool:
    """Whether another process holds an SQLite file; it may let go of it."""
    return "database is locked" in str(error)


def outage_reason(error: BaseException) -> str:
    """Why, in a few words: without what libraries wrap around it, and without a password."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("(raised as a result")]
    text = re.sub(r"^(?:\([\w.]+\) )+", "", lines[0] if lines else first_line(error))
    if "HTTPConnectionPool" in text or "HTTPSConnectionPool" in text or "Max retries" in text:
        found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
        if found:
            text = found[1].strip().lower()
        else:
            text = "no answer in time" if "timed out" in text.lower() else "no answer"
    text = without_password(text).rstrip(".")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def outage_of(error: BaseException, uri: str) -> Outage:
    """The one line for ``error`` of the MLflow at ``uri``."""
    return Outage(f"MLflow at {without_password(uri)} failed: {outage_reason(error)}; {GOES_ON}.")
