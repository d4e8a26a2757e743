"""``python -m fusion_workbench``: the command line."""

from fusion_workbench.cli.main import main

main()
