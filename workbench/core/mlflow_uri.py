"""MLflow's address: what it may be, how it is shown, and MLflow's chatter."""

from __future__ import annotations

import logging
import os
import warnings
from urllib.parse import urlsplit, urlunsplit

from fusion_workbench.core.errors import WorkbenchError

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
    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="mlflow")
