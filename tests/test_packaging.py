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
from places import DATA, ROOT
from unpacking import unpack
from wheels import build_wheel, unpack_wheel

FOLDERS = ("workbench", "modules", "datamodules", "sweeps", "reports")


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
    return build_wheel(copy, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and a plug-in; their needs come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip())
    unpack_wheel(wheel, site)
    sources = tmp_path_factory.mktemp("plugin")
    shutil.copytree(DATA / "plugin", sources, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    unpack_wheel(build_wheel(sources, tmp_path_factory.mktemp("plugin-wheel")), site)
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
import sys
import modules, reports, sweeps, datamodules, workbench
import fusion_workbench, fusion_workbench.modules.fusion, fusion_workbench.reports
from fusion_workbench import load_connector

for theirs in (modules, reports, sweeps, datamodules, workbench):
    assert theirs.MINE, theirs
assert "site-packages" in fusion_workbench.__file__, fusion_workbench.__file__
assert fusion_workbench.modules.__file__ != modules.__file__
print(fusion_workbench.modules.fusion.STRATEGIES.find("largest").cls.__module__)
print(*load_connector(sys.argv[1])([sys.argv[2]]).shape)
"""


def test_a_project_keeps_its_own_names(bare: Path, tmp_path: Path) -> None:
    """Folders called modules/, reports/, … of the user's own stand beside the script, first on the import path.

    An exported connector is loaded there, a plug-in is found, and the command line works.
    """
    kept = unpack("v0_1_0", tmp_path / "kept")
    project = tmp_path / "project"
    for folder in FOLDERS:
        (project / folder).mkdir(parents=True)
        (project / folder / "__init__.py").write_text("MINE = True\n")
    (project / "script.py").write_text(THEIRS)
    env = {**os.environ, "PYTHONPATH": str(project)}

    def run(*words: str | Path) -> str:
        done = subprocess.run([bare, *words], cwd=project, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    export, picture = kept / "workspace" / "exports" / "recommended", kept / "picture.png"
    found, shape = run("script.py", export, picture).splitlines()
    assert found == "my_package.strategy"
    assert [int(size) for size in shape.split()] == [1, 4, 16]
    assert "quickstart" in run("-m", "fusion_workbench", "studies")
    assert "largest" in run("-m", "fusion_workbench", "strategies")
