"""MLflow's address: what it may be, how it is shown, and MLflow's chatter."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

from fusion_workbench.core.errors import WorkbenchError

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


def check_uri(uri: str) -> None:
    """Refuse what MLflow would refuse later, with a long trace. Raises WorkbenchError.

    A database may name its driver (``postgresql+psycopg2://``).
    """
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise WorkbenchError(
            f"tracking URI '{uri}' is a folder, which MLflow no longer takes; use a database, such as "
            "sqlite:///mlflow.db, or the address of a server, such as http://127.0.0.1:5000."
        )
    if scheme.partition("+")[0] not in SCHEMES:
        schemes = ", ".join(SCHEMES)
        raise WorkbenchError(
            f"tracking URI '{without_password(uri)}' cannot be opened: MLflow knows no '{scheme}'; use "
            f"one of {schemes}."
        )


def without_password(uri: str) -> str:
    """The URI without a password."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:…@{host}"))


def quiet_mlflow() -> None:
    """MLflow logs each migration and warns on import; a user of ours can do nothing about either."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints traces of what it raises as well
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for each of its retries
    warnings.filterwarnings("ignore", module="mlflow")


@contextmanager
def impatient() -> Iterator[None]:
    """A server that is not there is reported within seconds, not after MLflow's minutes of retries."""
    before = {key: os.environ.get(key) for key in _PATIENCE}
    for key, value in _PATIENCE.items():
        os.environ.setdefault(key, value)
    try:
        yield
    finally:
        for key, old in before.items():
            if old is None:
                os.environ.pop(key, None)
