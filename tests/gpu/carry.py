"""Build the folder that ``tests/gpu/run.sh --carry`` takes to a machine with a GPU and no network.

::

    python tests/gpu/carry.py --out carry                    wheels for Python 3.12 on x86-64 Linux, and the assets
    python tests/gpu/carry.py --out carry --have frozen.txt  without what ``pip freeze`` names there

In it: ``wheels/``, what this project needs beyond :data:`ASSUMED` (or beyond ``--have``), in the versions that are
installed here, and ``deformops``; ``mlflow`` as ``mlflow-skinny`` with what its database needs, far smaller,
without its web page. ``assets.tar.xz``: the embedded encoder in bfloat16, photographs, digits and typefaces. Together
with the files that git tracks they have to fit into ``--limit`` MiB.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
# What a machine for training is taken to have, with all that these require.
ASSUMED = ("torch", "lightning", "transformers", "torchmetrics", "peft", "pandas", "pyarrow", "scipy", "matplotlib")
ASSUMED += ("pillow", "onnx", "rich", "typer", "jinja2", "psutil", "filelock", "requests", "cloudpickle", "protobuf")
ASSUMED += ("scikit-learn", "pytest", "pytest-xdist", "hypothesis", "setuptools")
INSTEAD = {"mlflow": ("mlflow-skinny", "sqlalchemy", "alembic", "cryptography")}
UNUSED = {"gitpython", "uvicorn"}  # mlflow-skinny works without them, as GIT_PYTHON_REFRESH=quiet wants it
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 26, 27, 28, 31, 34)]
PLATFORMS += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
WEIGHTS = "model.safetensors"
ASSETS = ("photographs", "digits", "typefaces")
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--python", default="3.12", help="version over there")
    parser.add_argument("--have", type=Path, help="what `pip freeze` prints over there, instead of the usual packages")
    parser.add_argument("--limit", type=float, default=64, help="MiB of this folder and the tracked files (64)")
    chosen = parser.parse_args()
    if chosen.out.exists():
        sys.exit(f"{chosen.out} is there already; name another folder with --out, or remove it.")
    have = closure(ASSUMED, set()) if chosen.have is None else frozen(chosen.have)
    wheels = [exact(name) for name in sorted(closure(needed(), have | UNUSED))]
    if chosen.python in ("3.12", "3.13"):
        wheels.append("deformops>=3.0")
    with tempfile.TemporaryDirectory(dir=chosen.out.absolute().parent) as scratch:
        folder = Path(scratch) / "carry"
        (folder / "wheels").mkdir(parents=True)
        download(wheels, chosen.python, folder / "wheels")
        pack(folder / "assets.tar.xz")
        weigh(folder, chosen.limit)
        folder.rename(chosen.out)
    print(f"{chosen.out}: {len(wheels)} wheels for Python {chosen.python}, and the assets")


def needed() -> list[str]:
    """What this project declares, with :data:`INSTEAD` where another will do."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [canonicalize_name(Requirement(text).name) for text in project["dependencies"]]
    return [other for name in names for other in INSTEAD.get(name, (name,))]


def closure(names: list[str] | tuple[str, ...], without: set[str]) -> set[str]:
    """The distributions and all that they require, by what is installed here, without some and what only they need."""
    found: set[str] = set()
    todo = [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found or name in without:
            continue
        found.add(name)
        try:
            texts = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for need in map(Requirement, texts):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                todo.append(canonicalize_name(need.name))
    return found


def frozen(file: Path) -> set[str]:
    """The names in what ``pip freeze`` or ``pip list`` printed."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(match[0]) for line in lines if (match := re.match(r"[A-Za-z0-9][\w.-]*", line.strip()))}


def exact(name: str) -> str:
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return name


def download(wheels: list[str], python: str, into: Path) -> None:
    """Wheels alone, no source distribution: nothing can be built over there."""
    words = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", "-d", str(into)]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *words, *platforms, *wheels]
    if subprocess.run(command, check=False).returncode:
        sys.exit("pip could not get all wheels; its message is above. Nothing was written.")


def pack(archive: Path) -> None:
    """``encoder/`` in bfloat16, half its size, and ``assets/`` as they lie in the cache."""
    import torch
    from safetensors.torch import load_file, save_file

    from fusion_workbench.assets.home import ensure

    folders = ensure("encoder", *ASSETS)
    encoder = archive.parent / "encoder"
    encoder.mkdir()
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folders["encoder"] / WEIGHTS).items()}
    save_file(weights, encoder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folders["encoder"] / "config.json").read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    (encoder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    shutil.copy(folders["encoder"] / "preprocessor_config.json", encoder)
    with tarfile.open(archive, "w:xz", preset=1) as tar:
        tar.add(encoder, "encoder")
        for name in ASSETS:
            tar.add(folders[name], f"assets/{name}")
    shutil.rmtree(encoder)


def weigh(folder: Path, limit: float) -> None:
    """Print the sizes; end with an error where they are too large together."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False).stdout
    tracked = sum((ROOT / name).stat().st_size for name in listed.decode().split("\0") if (ROOT / name).is_file())
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    whole = sum(sizes.values()) + tracked
    largest = sorted(sizes, key=lambda name: -sizes[name])[:4]
    words = ", ".join(f"{name} {sizes[name] / MIB:.1f}" for name in largest)
    print(
        f"{sum(sizes.values()) / MIB:.1f} MiB, {whole / MIB:.1f} with the {tracked / MIB:.1f} of tracked files: {words}"
    )
    if whole > limit * MIB:
        sys.exit(
            f"{whole / MIB:.1f} MiB are more than the {limit:g} that --limit allows. Name what is over there with "
            "--have FILE (pip freeze), or raise --limit. Nothing was written."
        )


if __name__ == "__main__":
    main()
