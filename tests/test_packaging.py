"""What is installed: every file that git tracks, under one name, beside whatever the user calls modules or reports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("workbench", "modules", "datamodules", "sweeps", "reports")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def tracked() -> list[str]:
    """The files of the checkout that git tracks, and new ones that it does not ignore."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a clean copy: what an editable install does not need is missing in it."""
    copy = tmp_path_factory.mktemp("source")
    for name in tracked():
        if name.partition("/")[0] in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel; what it depends on comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # A path in a .pth file is added as it is: .pth files inside it, an editable install of ours among them, do not run.
    ours = [sysconfig.get_path("purelib"), *(line for line in sys.path if line.endswith("site-packages"))]
    (site / "dependencies.pth").write_text("\n".join(dict.fromkeys(ours)) + "\n")
    return python


def test_the_wheel_holds_what_git_tracks(wheel: Path) -> None:
    expected = set()
    for name in tracked():
        folder, _, rest = name.partition("/")
        if folder in FOLDERS:
            expected.add(f"fusion_workbench/{rest}" if folder == "workbench" else f"fusion_workbench/{name}")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected, "add the folder to [tool.setuptools] packages, the file to package-data, in pyproject.toml"


THEIRS = """
import modules, reports, sweeps, datamodules, workbench
import fusion_workbench, fusion_workbench.modules, fusion_workbench.reports
from fusion_workbench import load_connector, register_strategy

for theirs in (modules, reports, sweeps, datamodules, workbench):
    assert theirs.MINE, theirs
assert "site-packages" in fusion_workbench.__file__, fusion_workbench.__file__
assert fusion_workbench.modules.__file__ != modules.__file__
print(load_connector.__module__, register_strategy.__module__)
"""


def test_a_project_keeps_its_own_names(bare: Path, tmp_path: Path) -> None:
    """Folders called modules/, reports/, … of the user's own, beside the script and first on the import path."""
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "script.py").write_text(THEIRS)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*words: str) -> str:
        done = subprocess.run([bare, *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "fusion_workbench" in run("script.py")
    assert "sweep" in run("-m", "fusion_workbench", "--help")
    assert "quickstart" in run("-m", "fusion_workbench", "studies")
