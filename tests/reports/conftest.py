"""One small study that the tests of the report share."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_study import MIDDLE, Synthetic, copy_database

SMALL = {
    "singles": (3, 5, 10, 11, 12),
    "selections": (((3, 6, 9), 12), MIDDLE),
    "examples": 80,
    "epochs": 3,
}


@pytest.fixture(scope="session")
def small_uri(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow with one small finished study, ``synthetic``: 11 cells, 5 replicates. Read only."""
    uri = copy_database(mlflow_template, tmp_path_factory.mktemp("small"))
    Synthetic(**SMALL).write(uri)  # type: ignore[arg-type]
    return uri
