"""Whatever kills the building of a feature store, and whoever builds beside: no shard is lost or made twice.

The file is its own script: ``python test_store_kill.py kill FOLDER`` imports once and forks a builder for each
moment at which one can be killed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.store.store import FeatureStore

LAYERS = (0, 2, 5)
SIZES = {"train": 10, "val": 4}
PASSES = 4  # of 4, 4 and 2 images, and of 4
FILES = 1 + PASSES * (len(LAYERS) + 1)  # the key, and for every pass a shard a layer and the index

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks builders")


class Source:
    version = "squares/1"

    def fingerprint(self, split: str) -> str:
        return hashlib.sha256(f"{self.version} {split}".encode()).hexdigest()

    def size(self, split: str) -> int:
        return SIZES[split]

    def image(self, split: str, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.full((8, 8, 3), 10 * len(split) + index, dtype=np.uint8)


class Encoder:
    """Four tokens of sixteen numbers that tell image and layer."""

    depth, dim, image_size, fingerprint = 6, 16, 8, "toy"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.images = 0

    def grid(self, size: int | None = None) -> tuple[int, int]:
        return 2, 2

    def encode(self, images: np.ndarray[Any, Any] | Tensor, layers: Sequence[int]) -> Tensor:
        time.sleep(self.seconds)
        self.images += len(images)
        level = torch.as_tensor(images)[:, 0, 0, 0].float()
        ramp = torch.arange(64.0).view(4, 16)
        return torch.stack([level[:, None, None] * (layer + 1) + ramp for layer in layers])


def store(folder: Path, seconds: float = 0.0, console: Console | None = None) -> FeatureStore:
    source: Any = Source()
    return FeatureStore(folder, Encoder(seconds), source, torch.float32, 4, console or Console(quiet=True))


def assert_whole(folder: Path) -> None:
    """Every feature is there and right, and nothing else lies about."""
    made = store(folder)
    assert made.build(LAYERS, tuple(SIZES)).images == 0
    for split, size in SIZES.items():
        images = np.stack([Source().image(split, i) for i in range(size)])
        rows = made.features(split, LAYERS).rows(torch.arange(size))
        assert torch.equal(rows, Encoder().encode(images, LAYERS))
    assert made.verify() == []
    assert not [*folder.rglob("*.part"), *folder.rglob(".tmp*")]
    assert len([path for path in made.folder.rglob("*") if path.is_file()]) == FILES - PASSES + len(SIZES)


def run(scenario: str, folder: Path) -> None:
    command = [sys.executable, __file__, scenario, str(folder)]
    subprocess.run(command, check=True, timeout=3600, env=os.environ | {"OMP_NUM_THREADS": "1"})


# --- killed -------------------------------------------------------------------------------------------------


MOMENTS = [(moment, nth) for moment in ("write", "before", "after") for nth in range(1, FILES + 1)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    run("kill", folder)
    return folder


def test_there_is_a_moment_for_every_file(killed: Path) -> None:
    assert {path.name for path in killed.iterdir()} == {f"{moment}-{nth}" for moment, nth in MOMENTS}


@pytest.mark.parametrize("moment", ["write", "before", "after"])
def test_killed_anywhere_and_built_again(killed: Path, moment: str) -> None:
    for nth in range(1, FILES + 1):
        folder = killed / f"{moment}-{nth}"
        # The key comes first; of every four files after it, the last is the index: then the others count.
        synced = nth if moment == "after" else nth - 1
        done = max(0, synced - 1) // (len(LAYERS) + 1)
        before = store(folder)
        reused = before.plan(LAYERS, tuple(SIZES)).reused
        assert reused == done * len(LAYERS), f"{moment} {nth}"
        kept = {path: path.stat().st_ino for path in before.folder.rglob("*.safetensors")}
        stats = before.build(LAYERS, tuple(SIZES))
        assert stats.images == before.encoder.images == sum((4, 4, 2, 4)[done:]), f"{moment} {nth}"
        assert stats.rebuilt == 0
        same = [path for path, inode in kept.items() if path.stat().st_ino == inode]
        assert len(same) == reused
        assert_whole(folder)


def _kill_everywhere(folder: Path) -> None:
    for moment, nth in MOMENTS:
        pid = _fork(lambda m=moment, n=nth: _build_and_die(folder / f"{m}-{n}", m, n))
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL, (moment, nth)


def _build_and_die(folder: Path, moment: str, nth: int) -> None:
    numbers = itertools.count(1)  # several threads write: each takes its own
    replace = os.replace

    def deadly(source: Path, target: Path) -> None:
        number = next(numbers)
        if number == nth and moment == "write":
            os.truncate(source, source.stat().st_size // 2)  # as if killed halfway through the writing
        if number == nth and moment != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if number == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly  # type: ignore[assignment]
    store(folder).build(LAYERS, tuple(SIZES))


# --- two at once --------------------------------------------------------------------------------------------


def test_two_builders_make_one_store(tmp_path: Path) -> None:
    run("two", tmp_path)
    told = [json.loads((tmp_path / name).read_text()) for name in ("first", "second")]
    assert sorted(one["images"] for one in told) == [0, 14]
    assert sorted(one["waited"] for one in told) == [False, True]
    assert_whole(tmp_path / "store")


def test_who_waits_goes_on_where_the_other_was_killed(tmp_path: Path) -> None:
    run("heir", tmp_path)
    told = json.loads((tmp_path / "heir").read_text())
    assert told["waited"]
    assert 0 < told["images"] < 14
    assert_whole(tmp_path / "store")


def _two(folder: Path) -> None:
    for pid in [_fork(lambda n=name: _build_and_tell(folder, n)) for name in ("first", "second")]:
        assert os.waitpid(pid, 0)[1] == 0


def _heir(folder: Path) -> None:
    first = _fork(lambda: _build_and_tell(folder, "killed"))
    while not list((folder / "store").rglob("index.json")):
        time.sleep(0.01)
    heir = _fork(lambda: _build_and_tell(folder, "heir"))
    while not (folder / "heir.said").exists():
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    assert os.waitpid(first, 0)[1] == signal.SIGKILL
    assert os.waitpid(heir, 0)[1] == 0


def _build_and_tell(folder: Path, name: str) -> None:
    class Said(io.StringIO):
        def write(self, text: str) -> int:
            (folder / f"{name}.said").touch()
            return super().write(text)

    said = Said()
    mine = store(folder / "store", 0.3, Console(file=said, width=300))
    stats = mine.build(LAYERS, tuple(SIZES), progress=False)
    waited = "another process is building" in said.getvalue()
    (folder / name).write_text(json.dumps({"images": stats.images, "waited": waited}))


# --- cut short by the system --------------------------------------------------------------------------------


def test_a_write_that_the_system_cuts_short(tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the kernel takes half a shard and refuses the rest."""
    run("short", tmp_path)
    told = json.loads((tmp_path / "told").read_text())
    assert os.strerror(errno.EFBIG) in told["error"]
    assert "cannot be written" in told["error"]
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert store(tmp_path / "store").build(LAYERS, tuple(SIZES)).images == 14
    assert_whole(tmp_path / "store")


def _short(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))  # the key fits, a shard of 1 kB does not
    try:
        store(folder / "store").build(LAYERS, tuple(SIZES))
    except WorkbenchError as error:
        (folder / "told").write_text(json.dumps({"error": str(error)}))


def _fork(action: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        action()
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


SCENARIOS = {"kill": _kill_everywhere, "two": _two, "heir": _heir, "short": _short}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](Path(sys.argv[2]))
