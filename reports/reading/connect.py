"""Opening MLflow to read, with every way it can fail said in one line."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.names import RunKind, Tag
from fusion_workbench.system.mlflow_database import opening, sqlite_path
from fusion_workbench.system.mlflow_uri import check_uri, impatient, quiet_mlflow, without_password
from fusion_workbench.system.outages import outage_reason

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient


def connect(uri: str) -> MlflowClient:
    """A client that was seen to answer. Reading never makes a database.

    Raises:
        WorkbenchError: the URI is of no kind that MLflow takes, or nothing answers there.
    """
    check_uri(uri)
    quiet_mlflow()
    try:
        with opening(uri):
            _check_file(uri)
            from mlflow.tracking import MlflowClient

            client = MlflowClient(tracking_uri=uri)
            with impatient():
                client.search_experiments(max_results=1)
    except WorkbenchError:
        raise
    except Exception as error:  # drivers, file systems and servers raise their own
        told = f"MLflow at {uri} cannot be opened: {outage_reason(error)}."
        raise WorkbenchError(without_password(told)) from None
    return client


def find_study(client: MlflowClient, uri: str, study: str, experiment: str | None) -> MlflowRun:
    """The latest parent run of that name or id, or the very one whose MLflow run id ``study`` is.

    A study that is run under two names has one id.

    Raises:
        WorkbenchError: there is none; the message names those there are.
    """
    experiments = {e.experiment_id: e.name for e in client.search_experiments()}
    if experiment is not None:
        if experiment not in experiments.values():
            known = ", ".join(sorted(experiments.values())) or "none"
            raise WorkbenchError(f"MLflow at {without_password(uri)} has no experiment '{experiment}'. Known: {known}.")
        experiments = {key: name for key, name in experiments.items() if name == experiment}
    parents = list(search_runs(client, list(experiments), f"tags.`{Tag.KIND}` = '{RunKind.STUDY}'"))
    found = [run for run in parents if run.info.run_id == study]
    found = found or [run for run in parents if study in (_tag(run, Tag.STUDY_ID), _tag(run, Tag.STUDY))]
    if not found:
        where = f"MLflow at {without_password(uri)}" + (f", experiment '{experiment}'" if experiment else "")
        names = sorted({_tag(run, Tag.STUDY) for run in parents})
        there = (
            f"There are: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}." if names else "It holds none yet."
        )
        raise WorkbenchError(f"no study '{study}' in {where}. {there}")
    return max(found, key=lambda run: int(run.info.start_time or 0))


def children(client: MlflowClient, parent: MlflowRun) -> list[MlflowRun]:
    """Every child run, oldest first."""
    where = f"tags.`{Tag.PARENT}` = '{parent.info.run_id}'"
    return sorted(
        search_runs(client, [parent.info.experiment_id], where), key=lambda run: int(run.info.start_time or 0)
    )


def search_runs(client: MlflowClient, experiments: list[str], where: str) -> Iterator[MlflowRun]:
    """Every run that fits, page by page."""
    token: str | None = None
    while experiments:
        page = client.search_runs(experiments, where, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _tag(run: MlflowRun, name: str) -> str:
    return str(run.data.tags.get(name, ""))


def _check_file(uri: str) -> None:
    """What MLflow would answer with a long trace or a new empty database."""
    path = sqlite_path(uri)
    if path is None:
        return
    if not path.is_file():
        raise WorkbenchError(f"MLflow at {uri} cannot be opened: there is no file {path}.")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        raise WorkbenchError(f"MLflow at {uri} cannot be opened: {path} is no SQLite database ({error}).") from None
    if not {"runs", "experiments"} <= tables:
        raise WorkbenchError(f"MLflow at {uri} cannot be opened: {path} is a database, but not one of MLflow's.")
