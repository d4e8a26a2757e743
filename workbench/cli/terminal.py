"""What the commands share: their common options, the console, the workspace's MLflow."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fusion_workbench.core.text import printable
from fusion_workbench.system.mlflow_uri import without_password

if TYPE_CHECKING:
    from rich.console import Console

Workspace = Annotated[
    Path,
    typer.Option(
        "--workspace", "-w", envvar="WORKBENCH_WORKSPACE", help="Folder for features, studies, MLflow, reports."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides of the study, such as training.epochs=4 replicates=5.", metavar="[KEY=VALUE]..."),
]
StudyName = Annotated[
    str, typer.Argument(help="A bundled study (see workbench studies) or the path of a YAML file.", metavar="STUDY")
]
Uri = Annotated[str, typer.Option("--uri", help="MLflow tracking URI; default: the workspace's SQLite file.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
AcceptChange = Annotated[
    bool,
    typer.Option(
        "--accept-change",
        help="Go on although something that finished rows depend on has changed (encoder, data, language model, …); "
        "the report says which rows were trained before and after.",
    ),
]
DEFAULT_WORKSPACE = Path("workspace")


def terminal() -> Console:
    """Standard output; a file or a pipe gets whole lines."""
    from fusion_workbench.system.console import WordsConsole

    shown = sys.stdout.isatty()
    return WordsConsole(width=None if shown else 160, soft_wrap=not shown)


def harmless(text: str) -> str:
    """A message as it is printed: without passwords, and without what would move a terminal's cursor or colours."""
    return printable(without_password(text))


class WithoutControls(TyperGroup):
    """The commands; what Typer says of a wrong argument repeats it, and so goes the way of every message."""

    def make_context(self, *args: Any, **settings: Any) -> Any:
        with _told_harmlessly():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        with _told_harmlessly():
            return super().invoke(ctx)


@contextmanager
def _told_harmlessly() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        told: Any = error
        if hasattr(told, "format_message") and isinstance(getattr(told, "message", None), str):
            told.message = harmless(told.message)
        raise


def show_deprecations() -> None:
    """Print a deprecated key's warning as one line, without the place in our code that noticed it.

    Of other warnings, which may repeat words of a file, characters that a terminal obeys are left out.
    """
    from fusion_workbench.config.aliases import DeprecatedKeyWarning

    shown = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DeprecatedKeyWarning):
            typer.echo(f"note: {harmless(str(message))}", err=True)
        else:
            shown(harmless(str(message)), category, *place, **more)

    warnings.showwarning = tell
