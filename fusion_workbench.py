"""The console script's way in, under a name that is nobody else's.

``workbench`` may mean something else on the user's import path, and then ``from workbench.cli import main``
could say nothing sensible. So our own ``workbench`` is loaded by its place, its guard looks around, and what
it finds is said in one line.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def main() -> int:
    """Run the command line. Exit status 2, and one line on stderr, where package names are taken twice."""
    home = Path(__file__).resolve().parent / "workbench"
    spec = spec_from_file_location("workbench", home / "__init__.py", submodule_search_locations=[str(home)])
    assert spec is not None
    assert spec.loader is not None
    package = module_from_spec(spec)
    sys.modules["workbench"] = package
    try:
        spec.loader.exec_module(package)
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from workbench.cli import main as run

    run()
    return 0
