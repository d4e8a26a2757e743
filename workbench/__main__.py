"""The command line, also as ``python -m fusion_workbench``. It can be stopped from here on, before it imports itself."""

from fusion_workbench.cli.endings import run


def main() -> None:
    """The console script."""
    run(_commands)


def _commands() -> None:
    from fusion_workbench.cli.main import app

    app()


if __name__ == "__main__":
    main()
