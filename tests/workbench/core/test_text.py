"""Words as parts of names, errors as one line, MLflow's addresses."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.core.text import slug
from fusion_workbench.system.bars import progress_bar
from fusion_workbench.system.mlflow_uri import check_uri


@pytest.mark.parametrize(
    ("text", "plain"),
    [("My study, 2! Ä", "my-study-2-a"), ("concat [1,2]→3", "concat-1-2-3"), ("v1.2", "v1-2"), ("層", "x"), (3, "3")],
)
def test_a_slug_is_safe(text: object, plain: str) -> None:
    assert slug(text) == plain


def test_a_slug_keeps_what_it_is_told() -> None:
    assert slug("My v1.2 ✓", keep=".", lower=False) == "My-v1.2"


def test_an_error_in_one_line() -> None:
    assert first_line(ValueError("\none\ntwo")) == "one"
    assert first_line(ValueError("  \n")) == first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("uri", ["sqlite:///a.db", "postgresql+psycopg2://u@h/d", "http://h:1", "databricks://p"])
def test_an_address_of_mlflow(uri: str) -> None:
    check_uri(uri)


def test_an_address_of_something_else_hides_its_password() -> None:
    with pytest.raises(WorkbenchError, match=r"'ftp://me:…@h' cannot be opened: MLflow knows no 'ftp'"):
        check_uri("ftp://me:secret@h")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_seen_in_a_terminal_alone(terminal: bool) -> None:
    out = io.StringIO()
    with progress_bar(
        Console(file=out, force_terminal=terminal, width=80), "things", 2, done=1, unit="of them"
    ) as advance:
        advance(1)
    assert ("2/2" in out.getvalue()) == ("things" in out.getvalue()) == terminal
