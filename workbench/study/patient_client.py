"""MLflow's client for the process that writes a study: each call is whole before a stop, and what fails is one line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.stopping import uninterrupted
from fusion_workbench.system.outages import is_lock, is_outage, outage_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# Of MLflow's own error codes, those that say that it is out of order. The others answer a question, such as whether
# there is such a run, and are left to whoever asked.
_OUT_OF_ORDER = (
    *("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "BAD_REQUEST", "REQUEST_LIMIT_EXCEEDED"),
    *("UNAUTHENTICATED", "PERMISSION_DENIED"),
)
_TRIES = 3  # of a call to an SQLite file that another process holds; each waits some twenty seconds by itself


class PatientClient:
    """An :class:`MlflowClient` by another name: every attribute of it, every call guarded.

    A stop (:mod:`core.stopping`) within a call to a database waits for its end: an open transaction would lock the
    database against whoever closes the runs. Calls to a server have none, and may take minutes.

    Args:
        client: MLflow's.
        uri: of the tracking store, for messages.

    Attributes:
        gone: the last call found no server, after all of MLflow's own retries.
    """

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._uri = client, uri
        self._served = uri.startswith(("http", "databricks"))
        self.gone = False

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._client, name)
        if not callable(member):
            return member
        return lambda *args, **options: self._call(member, args, options)

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Raises Outage where MLflow is out of order, and whatever else ``function`` raises."""
        for attempt in range(1, _TRIES + 1):
            try:
                with nullcontext() if self._served else uninterrupted():
                    result = function(*args, **options)
            except Exception as error:
                if not is_outage(error) or getattr(error, "error_code", "INTERNAL_ERROR") not in _OUT_OF_ORDER:
                    raise
                if attempt < _TRIES and is_lock(error):
                    continue
                self.gone = self._served
                raise outage_of(error, self._uri) from error
            else:
                self.gone = False
                return result
        raise AssertionError  # the last try returns or raises
