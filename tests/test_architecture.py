"""What import-linter does not see: one namespace, and files and folders that stay readable."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("workbench", "modules", "datamodules", "sweeps", "reports")
LONGEST = 400  # lines of a file
FULLEST = 16  # Python files of a folder

FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted(set((ROOT / "tests").rglob("*.py")) - set((ROOT / "tests" / "data").rglob("v*/make.py")))


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imports(file: Path) -> set[str]:
    """Every module that a file names in an import."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


@pytest.mark.parametrize("file", [*FILES, *TESTS], ids=name)
def test_everything_is_imported_under_one_name(file: Path) -> None:
    """The bare name of a folder would import a second copy of every class in it."""
    bare = {module for module in imports(file) if module.partition(".")[0] in FOLDERS}
    assert not bare, f"{name(file)} imports {', '.join(sorted(bare))}; write fusion_workbench.…"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_bare_name_is_refused_while_tests_run(folder: str) -> None:
    with pytest.raises(ImportError, match=r"fusion_workbench"):
        __import__(folder)
    assert folder not in sys.modules


@pytest.mark.parametrize("file", FILES, ids=name)
def test_files_are_short(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{name(file)} has {lines} lines; split it by concept"


def test_folders_are_not_drawers() -> None:
    full = {name(folder): n for folder, n in Counter(file.parent for file in FILES).items() if n > FULLEST}
    assert not full, f"more than {FULLEST} files: {full}; a folder is one room"


def test_the_public_face_is_there_and_light() -> None:
    """Each name leads to what is called so, and none is looked up before it is asked for."""
    program = (
        "import sys, fusion_workbench as face\n"
        "print([m for m in ('torch', 'lightning', 'mlflow', 'numpy') if m in sys.modules])\n"
        "print([n for n in face.__all__ if getattr(getattr(face, n), '__name__', n) != n])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stdout


LIBRARIES = (
    "torch lightning torchmetrics transformers mlflow optuna omegaconf pandas scipy matplotlib yaml jinja2 numpy "
    "pyarrow PIL transformers.modeling_utils torch._dynamo"
)


@pytest.mark.parametrize(
    ("command", "needs"),
    [
        ("--help", ""),  # what is typed most: of what is installed it imports Typer and Rich alone
        ("sweep planted --plan", "torch optuna omegaconf yaml numpy PIL"),  # cells are built on the meta device
        ("strategies", "torch torch._dynamo yaml numpy"),  # torch's meta kernels import it
        ("layers", "torch transformers omegaconf yaml jinja2 numpy PIL"),  # the embedded encoder's config, and no model
        ("layers --families", "omegaconf yaml"),
        ("store list", "omegaconf yaml"),
    ],
)
def test_a_command_imports_what_it_needs_and_no_more(command: str, needs: str, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.argv = ['workbench', *{command.split()}]\n"
        "from fusion_workbench.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print(*[name for name in {LIBRARIES.split()} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=600
    )
    assert set(done.stdout.splitlines()[-1].split()) <= set(needs.split()), done.stderr


def test_the_page_and_the_picture_show_the_contracts() -> None:
    """One table of levels: pyproject.toml's, drawn and printed by one file."""
    script = ROOT / "docs" / "images" / "draw_rooms.py"
    spec = importlib.util.spec_from_file_location("draw_rooms", script)
    assert spec is not None
    assert spec.loader is not None
    drawn = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawn)
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert drawn.table() in page, "run python docs/images/draw_rooms.py"
    assert drawn.page(page) == page, "run python docs/images/draw_rooms.py"
    assert drawn.PICTURE.read_text(encoding="utf-8") == drawn.picture(), "run python docs/images/draw_rooms.py"
