"""What the commands share: their common options, the console, the workspace's MLflow."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusion_workbench.core.text import printable

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
    from rich.console import Console

    shown = sys.stdout.isatty()
    return Console(width=None if shown else 160, soft_wrap=not shown)


def show_deprecations() -> None:
    """Print a deprecated key's warning as one line, without the place in our code that noticed it."""
    from fusion_workbench.config.aliases import DeprecatedKeyWarning

    shown = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DeprecatedKeyWarning):
            typer.echo(f"note: {printable(str(message))}", err=True)
        else:
            shown(message, category, *place, **more)

    warnings.showwarning = tell
