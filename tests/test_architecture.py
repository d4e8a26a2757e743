"""Imports run one way, and files stay short enough to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from workbench.guard import NAMES

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 400  # lines

# What anybody may import. They import each other at most.
LEAVES = {
    "workbench",
    "workbench.errors",
    "workbench.layers",
    "workbench.version",
    "workbench.config",
    "workbench.analysis_plan",
    "workbench.language_config",
    "workbench.overrides",
    "workbench.tokens",
}
LEAVES |= {"workbench.analysis_plan", "workbench.guard"}  # the latter for the __init__ of each package

# What a package may import of ours besides itself and the leaves; `workbench` may import everything.
ALLOWED: dict[str, set[str]] = {
    "modules": set(),
    "datamodules": {"workbench.assets"},
    "sweeps": set(),
    "reports": set(),
}

# Third parties that would mean a package does another's work.
FOREIGN: dict[str, set[str]] = {
    "modules": {"mlflow", "optuna", "omegaconf"},  # no tracking, no search, no configuration files
    "datamodules": {"mlflow", "optuna"},
    "sweeps": {"torch", "lightning", "transformers", "mlflow"},  # what to train, never how
    "reports": {"torch", "lightning", "transformers", "optuna"},  # what is in MLflow, and nothing else
}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for name in NAMES for file in sorted((ROOT / name).rglob("*.py"))}


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that a file of ours names in an import, wherever in the file, also as a string."""
    return frozenset(_imports(module))


def _imports(module: str) -> Iterator[str]:
    file = FILES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            submodules = [name for alias in node.names if (name := f"{base}.{alias.name}") in FILES]
            yield from submodules or [base]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def reached(module: str) -> dict[str, str]:
    """Every module of ours that importing ``module`` may bring along, with the one that names it."""
    seen: dict[str, str] = {}
    todo = [module]
    while todo:
        here = todo.pop()
        for name in imports(here):
            if name in FILES and name not in seen and name != module:
                seen[name] = here
                todo.append(name)
    return seen


def package(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", [name for name in FILES if package(name) != "workbench"])
def test_imports_run_one_way(module: str) -> None:
    home = package(module)
    allowed = LEAVES | ALLOWED[home]
    wrong = [
        name for name in imports(module) if package(name) in NAMES and package(name) != home and name not in allowed
    ]
    assert not wrong, f"{module} may import {home}, {', '.join(sorted(allowed))}, but imports {', '.join(wrong)}"


@pytest.mark.parametrize("module", [name for name in FILES if package(name) != "workbench"])
def test_nothing_comes_along_by_a_detour(module: str) -> None:
    others = {name for name in NAMES if name not in (package(module), "workbench")}
    wrong = {f"{by} imports {name}" for name, by in reached(module).items() if package(name) in others}
    assert not wrong, f"importing {module} leads elsewhere: {'; '.join(sorted(wrong))}"


@pytest.mark.parametrize("module", sorted(LEAVES - {"workbench"}))
def test_leaves_import_leaves(module: str) -> None:
    wrong = {name for name in imports(module) if package(name) in NAMES} - LEAVES
    assert not wrong, f"{module} is for everybody to import, and imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("home", FOREIGN)
def test_nobody_does_another_s_work(home: str) -> None:
    wrong = {
        f"{module} imports {name}"
        for module in FILES
        if package(module) == home
        for name in imports(module)
        if package(name) in FOREIGN[home]
    }
    assert not wrong, "; ".join(sorted(wrong))


@pytest.mark.parametrize("module", FILES)
def test_files_are_short(module: str) -> None:
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{FILES[module].relative_to(ROOT)} has {lines} lines; split it by concept"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "workbench"])
def test_every_package_claims_its_name(name: str) -> None:
    assert "claim(__name__, __file__)" in FILES[name].read_text(encoding="utf-8")
