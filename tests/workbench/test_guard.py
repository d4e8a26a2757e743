"""Package names that mean two things: every direction, in real processes over real folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.guard import NAMES

ROOT = Path(__file__).resolve().parents[2]
SIBLINGS = NAMES[1:]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workbench as a wheel would lay it down."""
    return copy_to(tmp_path_factory.mktemp("site"))


def copy_to(site: Path) -> Path:
    for name in NAMES:
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "fusion_workbench.py", site)
    return site


def package(folder: Path, name: str, kind: str = "package") -> Path:
    """A package, module or bare folder of the user's own; returns what an error must name."""
    file = folder / f"{name}.py" if kind == "module" else folder / name / "__init__.py"
    if kind == "bare":
        file = folder / name / "net.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("THEIRS = True\n")
    return file


def python(
    *args: str, path: tuple[Path, ...] = (), cwd: Path | None = None, site: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Python with ``path`` as PYTHONPATH; no site-packages (and no editable install) unless ``site``."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    flags = [] if site else ["-S"]
    return subprocess.run(
        [sys.executable, *flags, *args],
        env=env,
        cwd=cwd or "/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *places: Path) -> None:
    """The last line is a ShadowedError that names both places and the way out."""
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0, done.stdout
    assert "ShadowedError" in last, done.stderr
    assert "Rename the other" in last
    for place in places:
        assert str(place) in last


def accepted(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["package", "module"])
@pytest.mark.parametrize("name", SIBLINGS)
def test_theirs_first_never_stands_in_for_ours(ours: Path, tmp_path: Path, name: str, kind: str) -> None:
    theirs = package(tmp_path, name, kind)
    refused(python("-c", "import workbench", path=(tmp_path, ours)), theirs, ours / name)


@pytest.mark.parametrize("kind", ["package", "module"])
@pytest.mark.parametrize("name", NAMES)
def test_ours_first_never_stands_in_for_theirs(ours: Path, tmp_path: Path, name: str, kind: str) -> None:
    theirs = package(tmp_path, name, kind)
    refused(python("-c", f"import {name}", path=(ours, tmp_path)), theirs, ours / name)
    refused(python("-c", "import workbench", path=(ours, tmp_path)), theirs, ours / name)


@pytest.mark.parametrize("kind", ["package", "module"])
@pytest.mark.parametrize("name", SIBLINGS)
def test_their_workbench_cannot_carry_our_siblings(ours: Path, tmp_path: Path, name: str, kind: str) -> None:
    theirs = package(tmp_path, "workbench", kind)
    done = python("-c", f"import {name}", path=(tmp_path, ours))
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert str(theirs) in last
    assert str(ours / name) in last
    assert "rename that one" in last


def test_theirs_imported_before_ours(ours: Path, tmp_path: Path) -> None:
    theirs = package(tmp_path, "reports")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import reports; del sys.path[0]"
    code += "; import workbench"
    refused(python("-c", code, path=(ours,)), theirs, ours / "reports")


def test_theirs_that_came_onto_the_path_later(ours: Path, tmp_path: Path) -> None:
    theirs = package(tmp_path, "modules")
    code = f"import workbench, sys; sys.path.append({str(tmp_path)!r}); import modules"
    refused(python("-c", code, path=(ours,)), theirs, ours / "modules")


def test_every_name_taken_is_named_at_once(ours: Path, tmp_path: Path) -> None:
    both = [package(tmp_path, name) for name in ("modules", "reports")]
    refused(python("-c", "import workbench", path=(ours, tmp_path)), *both)


def test_in_the_current_folder(ours: Path, tmp_path: Path) -> None:
    theirs = package(tmp_path, "reports")
    refused(python("-c", "import workbench", path=(ours,), cwd=tmp_path), theirs)
    done = python("-m", "workbench.cli", path=(ours,), cwd=tmp_path)
    refused(done, theirs)
    assert len(done.stderr.splitlines()) == 1  # no traceback


def test_in_the_folder_of_a_script(ours: Path, tmp_path: Path) -> None:
    theirs = package(tmp_path, "modules", "module")
    script = tmp_path / "train.py"
    script.write_text("import workbench\n")
    refused(python(str(script), path=(ours,)), theirs)


def test_a_script_that_bears_our_name(ours: Path, tmp_path: Path) -> None:
    script = tmp_path / "reports.py"
    script.write_text("import workbench\n")
    refused(python(str(script), path=(ours,)), script)


def test_a_plugin_with_a_package_of_our_name(ours: Path, tmp_path: Path) -> None:
    theirs = package(tmp_path, "modules")
    package(tmp_path, "my_plugin")
    refused(python("-c", "import my_plugin, workbench", path=(ours, tmp_path)), theirs)
    refused(python("-c", "import my_plugin, workbench", path=(tmp_path, ours)), theirs)


def test_a_plugin_without(ours: Path, tmp_path: Path) -> None:
    package(tmp_path, "my_plugin").write_text("import modules, workbench\n")
    accepted(python("-c", "import my_plugin", path=(tmp_path, ours)))
    accepted(python("-c", "import workbench, my_plugin", path=(ours, tmp_path)))


def test_another_distribution_installed_over_ours(tmp_path: Path) -> None:
    site = copy_to(tmp_path)
    theirs = package(site, "reports")
    refused(python("-c", "import workbench", path=(site,)), theirs)


@pytest.mark.parametrize("first", [True, False], ids=["theirs first", "ours first"])
def test_their_editable_install(ours: Path, tmp_path: Path, first: bool) -> None:
    """Some editable installs are finders of their own and put nothing on sys.path."""
    theirs = package(tmp_path, "modules")
    code = f"""
import sys
from importlib.util import spec_from_file_location
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return spec_from_file_location(name, {str(theirs)!r}) if name == "modules" else None
sys.meta_path.{"insert(0, Finder)" if first else "append(Finder)"}
import workbench
"""
    refused(python("-c", code, path=(ours,)), theirs)


def test_a_folder_of_files_does_not_count(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "reports" / "figures").mkdir(parents=True)
    (tmp_path / "reports" / "index.html").touch()
    package(tmp_path, "modules", "bare")
    code = "import workbench, modules, reports, datamodules, sweeps"
    accepted(python("-c", code, path=(tmp_path, ours)))
    accepted(python("-c", code, path=(ours, tmp_path)))


def test_a_folder_with_a_module_that_ours_has_too(ours: Path, tmp_path: Path) -> None:
    package(tmp_path, "workbench", "bare").rename(tmp_path / "workbench" / "layers.py")
    refused(python("-c", "import workbench", path=(tmp_path, ours)), tmp_path / "workbench")


@pytest.mark.parametrize("wanted", ["modules.net", "modules.parts.head"])
def test_a_module_that_only_their_folder_has(ours: Path, tmp_path: Path, wanted: str) -> None:
    theirs = package(tmp_path, "modules", "bare")
    (tmp_path / "modules" / "parts").mkdir()
    done = python("-c", f"import {wanted}", path=(tmp_path, ours))
    refused(done, theirs if wanted == "modules.net" else theirs.parent / "parts", ours / "modules")


def test_a_module_that_nobody_has(ours: Path) -> None:
    done = python("-c", "import modules.nowhere", path=(ours,))
    assert done.stderr.strip().endswith("ModuleNotFoundError: No module named 'modules.nowhere'")


def test_a_folder_that_python_takes_before_our_editable_install(tmp_path: Path) -> None:
    """Bare folders come before an editable install that is a finder; then they would stand in for ours."""
    package(tmp_path, "reports", "bare")
    code = f"""
import sys
from importlib.util import spec_from_file_location
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folder = {str(ROOT)!r} + "/" + name
        if name in {NAMES!r}:
            return spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
sys.meta_path.append(Finder)
import workbench
"""
    refused(python("-c", code, path=(tmp_path,)), tmp_path / "reports", ROOT / "reports")


def test_the_same_folder_by_several_ways(ours: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(ours)
    code = "import workbench, modules, datamodules, sweeps, reports"
    accepted(python("-c", code, path=(ours, link, ours), cwd=ours))
    accepted(python("-c", code, path=(link,), cwd=ours))


def test_the_checkout_and_its_editable_install(tmp_path: Path) -> None:
    code = "import workbench, modules, datamodules, sweeps, reports"
    accepted(python("-c", code, cwd=ROOT, site=True))
    accepted(python("-c", code, cwd=tmp_path, site=True))


def test_two_copies_of_the_workbench(ours: Path, tmp_path: Path) -> None:
    """A whole second copy is shadowed as any package is; half a copy is refused."""
    second = copy_to(tmp_path)
    code = "import workbench, modules, datamodules, sweeps, reports"
    accepted(python("-c", code, path=(ours, second)))
    shutil.rmtree(second / "workbench")
    refused(python("-c", code, path=(second, ours)), second / "modules", ours / "modules")
    done = python("-c", f"import sys, workbench; sys.path.insert(0, {str(second)!r}); import modules", path=(ours,))
    assert "two copies of the workbench are mixed" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [True, False], ids=["theirs first", "ours first"])
def test_the_command_says_it_in_one_line(ours: Path, tmp_path: Path, name: str, first: bool) -> None:
    theirs = package(tmp_path, name)
    script = tmp_path / "bin" / "workbench"
    script.parent.mkdir()
    script.write_text("import sys\nfrom fusion_workbench import main\nsys.exit(main())\n")
    done = python(str(script), path=(tmp_path, ours) if first else (ours, tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: a package name of the workbench is taken twice")
    assert str(theirs) in done.stderr


def test_the_installed_command(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("workbench")
    if not script.exists():
        pytest.skip("the workbench is not installed in this environment")
    theirs = package(tmp_path, "workbench", "module")
    done = python(str(script), "--version", path=(tmp_path,), site=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(theirs) in done.stderr


def test_cost(ours: Path) -> None:
    code = """
import time
from workbench import guard
def once():
    start = time.perf_counter()
    guard.check()
    return time.perf_counter() - start
print(min(once() for _ in range(5)))
"""
    done = python("-c", code, path=(ours,), site=True)
    assert float(done.stdout) < 0.005
