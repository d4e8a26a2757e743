"""MLflow's address: what it may be, how it is shown, and MLflow's chatter."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from fusion_workbench.core.errors import WorkbenchError

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
HIDDEN = "…"  # stands where a password was

# A scheme, a user and a colon, behind which a password stands; digits up to the end of the host are a port, and none.
_USER = r"(?<=://)([^\s:/?#@'\"]*):(?!\d+(?:[/?#\s'\"),;]|$))"
_LOGIN = re.compile(_USER)
_WITH_BLANKS = re.compile(rf"{_USER}[^\n@]{{0,200}}@")
# A name alone is a token where it is a server's: nobody logs in to one without a password.
_TOKEN = re.compile(r"(?i)\b(https?://)[^\s:/?#@'\"]+@")
_QUERY = re.compile(
    r"(?i)([?&;][\w.-]{0,40}(?:pass(?:word|wd|phrase)?|pwd|token|secret|credential|api_?key|access_?key|odbc_connect)"
    r"[\w.-]{0,40}=)[^&#\s'\"]+"
)


def check_uri(uri: str) -> None:
    """Refuse what MLflow would refuse later, with a long trace. Raises WorkbenchError.

    A database may name its driver (``postgresql+psycopg2://``).
    """
    if lacks_password(uri):
        raise WorkbenchError(
            f"tracking URI '{uri}' was written down without its password; give it anew, such as tracking.uri=ADDRESS "
            "or --uri ADDRESS."
        )
    try:
        scheme = urlsplit(uri).scheme
    except ValueError as error:
        raise WorkbenchError(f"tracking URI '{without_password(uri)}' is no address: {error}.") from None
    if scheme in ("", "file"):
        raise WorkbenchError(
            f"tracking URI '{without_password(uri)}' is a folder, which MLflow no longer takes; use a database, such "
            "as sqlite:///mlflow.db, or the address of a server, such as http://127.0.0.1:5000."
        )
    if scheme.partition("+")[0] not in SCHEMES:
        schemes = ", ".join(SCHEMES)
        raise WorkbenchError(
            f"tracking URI '{without_password(uri)}' cannot be opened: MLflow knows no '{scheme}'; use "
            f"one of {schemes}."
        )


def without_password(text: str) -> str:
    """An address, or words that hold addresses, without passwords: a user's, and those of a query (``token=``).

    Names of users, hosts, ports and paths stay: ``postgresql://me:…@host:5432/db``. Whatever is printed, tracked or
    written to a file goes through here; the address itself stays in memory.
    """
    text = re.sub(r"\S+", _without_login, text)
    text = _WITH_BLANKS.sub(rf"\1:{HIDDEN}@", text)
    text = _TOKEN.sub(rf"\1{HIDDEN}@", text)
    return _QUERY.sub(rf"\1{HIDDEN}", text)


def _without_login(word: re.Match[str]) -> str:
    """A password may hold whatever a driver lets pass, slashes too, so it reaches to the last @ of the word."""
    text = word[0]
    login, end = _LOGIN.search(text) if "://" in text else None, text.rfind("@")
    return f"{text[: login.end()]}{HIDDEN}{text[end:]}" if login and end >= login.end() else text


def lacks_password(uri: str) -> bool:
    """Whether the address is one that :func:`without_password` wrote down."""
    return any(left in uri for left in (f":{HIDDEN}@", f"//{HIDDEN}@", f"={HIDDEN}"))


def quiet_mlflow() -> None:
    """MLflow logs each migration and warns on import; a user of ours can do nothing about either."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # of a run, its server's password and all
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
