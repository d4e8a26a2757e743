"""The command line, also as ``python -m fusion_workbench``. It can be stopped before it has imported itself."""

from fusion_workbench.core import stopping


def main() -> None:
    """The console script."""
    with stopping.leaving_at_once():
        from fusion_workbench.cli.endings import run
    run(_commands)


def _commands() -> None:
    from fusion_workbench.cli.main import app

    app()


if __name__ == "__main__":
    main()
