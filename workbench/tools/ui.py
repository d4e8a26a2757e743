"""MLflow's own pages, on this machine only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.stopping import Stopped
from fusion_workbench.reports.reading.connect import connect
from fusion_workbench.system.mlflow_database import relocate, sqlite_path
from fusion_workbench.system.mlflow_uri import check_uri, without_password

if TYPE_CHECKING:
    from rich.console import Console

HOST = "127.0.0.1"


def serve(console: Console, uri: str, port: int) -> int:
    """Run ``mlflow server`` until it is stopped; returns its exit status.

    Raises:
        WorkbenchError: the port is in use, or the tracking URI is not a database.
    """
    check_uri(uri)
    if uri.startswith("http"):
        raise WorkbenchError(f"{without_password(uri)} is a server already; open it in a browser.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise WorkbenchError(
                f"port {port} on {HOST} is in use; choose another with --port, such as {port + 1}."
            ) from None
    _put_right(console, uri)
    console.print(f"MLflow at http://{HOST}:{port} (stop with Ctrl-C)", highlight=False)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    # Not as an argument, which every user of the machine can see in the list of processes.
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_BACKEND_STORE_URI": uri}
    with subprocess.Popen(command, env=environment) as server:
        try:
            return server.wait()
        except (KeyboardInterrupt, Stopped) as stop:
            server.terminate()
            if isinstance(stop, Stopped) and stop.number != signal.SIGINT:
                raise
            return 0


def _put_right(console: Console, uri: str) -> None:
    """What a server of MLflow's could not do: wait for tables that are being made, find artifacts that moved."""
    path = sqlite_path(uri)
    if path is None or not path.is_file():
        return
    connect(uri)
    try:
        told = relocate(uri)
    except WorkbenchError as error:  # all but the artifacts can be looked at
        told = f"artifacts cannot be shown: {error}"
    if told:
        console.print(told, highlight=False, markup=False)
