"""Contract 4, the store's half: what is read is what the encoder made, or it is not read."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from tiny_source import Counting, TinySource
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.store import shards as disk
from fusion_workbench.datamodules.store.listing import list_stores, lock, remove_store, verify_store
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.modules.encoders.encoder import VisionEncoder

SIZE = 8  # images per shard: train has 22 images in 3 shards, val 9 in 2, test 10 in 2
LAYERS = (0, 1, 3)


@pytest.fixture(scope="module")
def vision(tiny_dinov2: Path) -> VisionEncoder:
    return VisionEncoder(str(tiny_dinov2), image_size=56, precision="float32")


@pytest.fixture
def encoder(vision: VisionEncoder) -> Counting:
    return Counting(vision)


class Said(io.StringIO):
    def __contains__(self, text: object) -> bool:
        return str(text) in self.getvalue()


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def make(tmp_path: Path, encoder: Counting, said: Said) -> Callable[..., FeatureStore]:
    def make(source: TinySource | None = None, dtype: torch.dtype = torch.float32, **changed: object) -> FeatureStore:
        arguments = {
            "encoder": encoder,
            "shard_size": SIZE,
            "console": Console(file=said, width=200),
        } | changed
        return FeatureStore(tmp_path / "store", source=source or TinySource(), dtype=dtype, **arguments)

    return make


def truth(vision: VisionEncoder, split: str, layers: tuple[int, ...] = LAYERS, batch: int = SIZE) -> Tensor:
    """Hidden states straight from the encoder, in the batches in which the store encodes."""
    source = TinySource()
    images = np.stack([source.image(split, i) for i in range(source.size(split))])
    parts = [vision.encode(images[i : i + batch], layers) for i in range(0, len(images), batch)]
    return torch.cat(parts, dim=1)


def everything(store: FeatureStore, split: str, layers: tuple[int, ...] = LAYERS) -> Tensor:
    features = store.features(split, layers)
    return features.rows(torch.arange(len(features)))


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*.safetensors")}


# --- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_store_is_live(make: Callable[..., FeatureStore], vision: VisionEncoder, split: str) -> None:
    store = make()
    stats = store.build(LAYERS)
    assert stats.images == 41
    assert stats.reused == stats.rebuilt == 0
    live = truth(vision, split)
    assert torch.equal(everything(store, split), live)
    features = store.features(split, (3, 0))
    index = torch.tensor([8, 0, 7, 8, 3])  # across shards, twice the same, in no order
    assert torch.equal(features.rows(index), live[[2, 0]][:, index])
    assert features.rows(index).shape == (2, 5, 16, 32)


def test_bf16_is_the_rounded_live(make: Callable[..., FeatureStore], vision: VisionEncoder) -> None:
    store = make(dtype=torch.bfloat16)
    rows = everything(store, "val")
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, truth(vision, "val").bfloat16())


def test_batches_need_not_fit_the_shards(make: Callable[..., FeatureStore], vision: VisionEncoder) -> None:
    store = make()
    store.build(LAYERS, batch_size=3)
    torch.testing.assert_close(everything(store, "train"), truth(vision, "train"))
    assert {images for images, _ in store.encoder.calls} == {3, 2, 1}  # 8 = 3 + 3 + 2, and what is left over


def test_each_image_is_drawn_once_beside_the_encoder(make: Callable[..., FeatureStore]) -> None:
    source = TinySource()
    store = make(source)
    store.build(LAYERS, splits=("train",))
    assert source.drawn == [("train", i) for i in range(22)]
    assert all(name.startswith("images") for name in source.threads)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reads_are_memory_mapped(make: Callable[..., FeatureStore]) -> None:
    store = make()
    features = store.features("train", LAYERS)
    assert len(features) == 22
    mapped = Path("/proc/self/maps").read_text()
    assert all(str(path) in mapped for path in files(store.folder))


def test_the_files_are_plain_safetensors(make: Callable[..., FeatureStore], vision: VisionEncoder) -> None:
    store = make()
    store.build((3,), splits=("val",))
    (path,) = store.folder.glob("val-*/layer_03/00008-00009.safetensors")
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["hidden_states.3"]
        assert torch.equal(file.get_tensor("hidden_states.3"), truth(vision, "val", (3,))[0, SIZE:])
    assert json.loads((store.folder / "key.json").read_text())["encoder"] == "tiny"


def test_rows_out_of_range(make: Callable[..., FeatureStore]) -> None:
    features = make().features("val", (1,))
    for index in (-1, 9):
        with pytest.raises(IndexError):
            features.rows(torch.tensor([0, index]))


# --- what is encoded ----------------------------------------------------------------------------------------


def test_only_what_a_study_needs_and_then_only_what_is_missing(
    make: Callable[..., FeatureStore], encoder: Counting
) -> None:
    store = make()
    store.build((1, 3))
    assert {layers for _, layers in encoder.calls} == {(1, 3)}
    before = files(store.folder)
    assert {path.parent.name for path in before} == {"layer_01", "layer_03"}
    encoder.calls.clear()

    again = make()
    assert again.build((3, 1)).images == 0
    assert again.plan((1, 3)).bytes_needed == 0
    assert encoder.calls == []

    assert again.build((0, 1, 2, 3)).images == 41
    assert {layers for _, layers in encoder.calls} == {(0, 2)}
    assert files(store.folder).items() >= before.items()  # not a file was touched


def test_only_the_shards_that_lack_it(make: Callable[..., FeatureStore], encoder: Counting) -> None:
    store = make()
    store.build((1, 2))
    next(store.folder.glob("train-*/layer_02/00008-00016.safetensors")).unlink()
    encoder.calls.clear()
    stats = store.build((1, 2, 3), splits=("train",))
    assert encoder.calls == [(8, (3,)), (8, (2, 3)), (6, (3,))]
    assert (stats.images, stats.reused, stats.rebuilt) == (22, 5, 1)


def test_the_key(make: Callable[..., FeatureStore], encoder: Counting, vision: VisionEncoder) -> None:
    store = make()
    assert make().key == store.key
    assert make(dtype=torch.bfloat16).key != store.key
    assert make(encoder=Counting(vision, fingerprint="another")).key != store.key
    resized = VisionEncoder(vision.name, image_size=28, precision="float32")
    assert make(encoder=Counting(resized, fingerprint=encoder.fingerprint)).key != store.key


def test_a_changed_split_leaves_the_others(make: Callable[..., FeatureStore], encoder: Counting) -> None:
    make().build(LAYERS)
    encoder.calls.clear()
    changed = make(TinySource(test=12))
    assert [todo.split for todo in changed.plan(LAYERS).passes] == ["test", "test"]
    assert changed.build(LAYERS).images == 12
    assert make(TinySource(seed=1)).build(LAYERS).images == 41


def test_a_split_that_grows_keeps_its_whole_shards(make: Callable[..., FeatureStore], encoder: Counting) -> None:
    class Growing(TinySource):
        def fingerprint(self, split: str) -> str:  # an image does not depend on how many there are
            return f"{self.version} {split}"

    make(Growing(train=22)).build(LAYERS, ("train",))
    encoder.calls.clear()
    larger = make(Growing(train=30))
    assert larger.build(LAYERS, ("train",)).images == 14
    assert encoder.calls == [(8, LAYERS), (6, LAYERS)]
    assert make(Growing(train=22)).build(LAYERS, ("train",)).images == 0
    assert make(Growing(train=16)).build(LAYERS, ("train",)).images == 0
    assert torch.equal(everything(make(Growing(train=22)), "train"), everything(larger, "train")[:, :22])
    (usage,) = list_stores(larger.root)
    assert usage.images == 30


def test_large_shards_hold_fewer_images(make: Callable[..., FeatureStore], encoder: Counting) -> None:
    encoder.dim = 64 * 2**20 // (16 * 4 * 5)  # five images and a little would make 64 MiB
    assert make(shard_size=256).shard_size == 4


# --- what is damaged ----------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def swap(path: Path) -> None:
    path.write_bytes(path.with_name("00000-00008.safetensors").read_bytes())


@pytest.mark.parametrize("damage", [truncate, empty, alter, grow, swap, Path.unlink])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_damaged_shard_is_found_and_rebuilt(
    make: Callable[..., FeatureStore],
    vision: VisionEncoder,
    encoder: Counting,
    said: Said,
    damage: Callable[[Path], None],
    mapped: bool,
) -> None:
    store = make()
    store.build(LAYERS)
    if mapped:  # by the very process that will read it again
        everything(store, "train")
    before = files(store.folder)
    (path,) = store.folder.glob("train-*/layer_01/00008-00016.safetensors")
    damage(path)
    encoder.calls.clear()
    assert everything(store, "train").equal(truth(vision, "train"))
    assert encoder.calls == [(8, (1,))]
    assert "1 damaged shards are encoded again" in said
    assert str(path) in said
    assert {p for p, stamp in files(store.folder).items() if before[p] != stamp} == {path}


def test_damage_in_another_process_is_found_by_bytes(
    make: Callable[..., FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same size, same time: the next process still finds it."""
    store = make()
    store.build(LAYERS, splits=("val",))
    path = next(store.folder.glob("val-*/layer_03/00000-00008.safetensors"))
    times = path.stat()
    alter(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify_store(store.root, store.key) == [path]
    monkeypatch.setattr(disk, "_intact", {})
    assert [shard.path for shard in store.plan(LAYERS, ("val",)).damaged] == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"shards": 3}', b"\xff\xfe"])
def test_a_torn_index_vouches_for_nothing(
    make: Callable[..., FeatureStore], vision: VisionEncoder, content: bytes
) -> None:
    store = make()
    store.build(LAYERS)
    next(store.folder.glob("train-*/index.json")).write_bytes(content)
    assert store.build(LAYERS).images == 22
    assert torch.equal(everything(store, "train"), truth(vision, "train"))


def test_a_shard_is_hashed_once_a_process(make: Callable[..., FeatureStore], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_intact", {})
    store = make()
    store.build((1,), splits=("val",))
    hashed: list[object] = []
    whole = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: hashed.append(a) or whole(*a))
    for _ in range(3):
        make().features("val", (1,))
    assert len(hashed) == 2


# --- what does not fit --------------------------------------------------------------------------------------


def test_the_plan_tells_the_bytes(make: Callable[..., FeatureStore], said: Said) -> None:
    store = make()
    plan = store.plan(LAYERS)
    payload = 41 * 3 * 16 * 32 * 4
    assert payload <= plan.bytes_needed <= payload + 21 * 1024
    assert not store.root.exists()
    stats = store.build(LAYERS)
    assert stats.bytes == sum(path.stat().st_size for path in files(store.folder))
    assert payload <= stats.bytes <= plan.bytes_needed
    assert "41 images to encode, layers 0, 1, 3" in said
    assert "free" in said


def test_what_would_not_fit_is_refused(
    make: Callable[..., FeatureStore], monkeypatch: pytest.MonkeyPatch, encoder: Counting
) -> None:
    store = make()
    needed = store.plan(LAYERS).bytes_needed
    monkeypatch.setattr(disk, "bytes_free", lambda path: needed + 199_999_999)
    with pytest.raises(WorkbenchError) as caught:
        store.build(LAYERS)
    message = str(caught.value)
    assert f"{needed:,} bytes" in message
    assert f"{needed + 199_999_999:,} bytes" in message
    assert str(store.folder) in message
    assert "\n" not in message
    assert encoder.calls == []
    assert not store.folder.exists()
    monkeypatch.setattr(disk, "bytes_free", lambda path: needed + 200_000_000)
    assert store.build(LAYERS).images == 41
    monkeypatch.setattr(disk, "bytes_free", lambda path: 0)
    assert store.build(LAYERS).images == 0  # what is there needs no room


@pytest.mark.parametrize("nth", [3, 6, 8])  # a first file, one in the midst of a pass, an index
def test_a_full_disk_leaves_nothing_half_written(
    make: Callable[..., FeatureStore], vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    store = make()
    synced = 0
    sync = os.fsync

    def full(handle: int) -> None:
        nonlocal synced
        if stat.S_ISREG(os.fstat(handle).st_mode):
            synced += 1
            if synced >= nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkbenchError, match="disk filled up") as caught:
        store.build(LAYERS)
    assert "\n" not in str(caught.value)
    assert str(store.folder) in str(caught.value)
    monkeypatch.setattr(os, "fsync", sync)
    assert not list(store.folder.rglob("*.part"))
    whole = list(store.folder.rglob("*.safetensors"))
    assert len(whole) == (3 if nth > 5 else 0)  # the first pass, and its index, were synced as 2 to 5
    assert store.plan(LAYERS).reused == len(whole)
    store.build(LAYERS)
    assert torch.equal(everything(store, "train"), truth(vision, "train"))


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder that cannot be written; where the tests run as root, they stop being root for a while."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        if root:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)
            os.chmod(name, 0o755)


def test_no_permission(make: Callable[..., FeatureStore], locked_folder: Path) -> None:
    for root in (locked_folder, locked_folder / "store"):
        store = make()
        store.root, store.folder = root, root / store.key
        with pytest.raises(WorkbenchError, match=r"cannot be written \(Permission denied\)"):
            store.build(LAYERS)


def test_a_file_in_the_way(make: Callable[..., FeatureStore]) -> None:
    store = make()
    store.root.write_text("not a folder")
    with pytest.raises(WorkbenchError, match="cannot be written"):
        store.build(LAYERS)


# --- mistakes -----------------------------------------------------------------------------------------------


def test_mistakes_are_told(make: Callable[..., FeatureStore], encoder: Counting) -> None:
    with pytest.raises(WorkbenchError, match="layer 4 does not exist; the encoder has 0 to 3"):
        make().build((1, 4))
    with pytest.raises(WorkbenchError, match="bfloat16 or float32, not float16"):
        make(dtype=torch.float16)
    encoder.image_size = 28  # while the source makes images of 56 px
    with pytest.raises(WorkbenchError, match="56 × 56 px"):
        make().build(LAYERS)


def test_what_the_source_cannot_draw_ends_the_build(make: Callable[..., FeatureStore]) -> None:
    class Broken(TinySource):
        def image(self, split: str, index: int) -> np.ndarray:
            if index == 12:
                raise WorkbenchError("image 12 is corrupt")
            return super().image(split, index)

    store = make(Broken())
    with pytest.raises(WorkbenchError, match="image 12 is corrupt"):
        store.build(LAYERS, batch_size=4)
    assert store.plan(LAYERS).reused == 3  # the first shard of each layer is kept
    with lock(store.root, store.key).acquire(timeout=0):
        pass


# --- what is shown ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("progress", [False, True])
def test_progress(make: Callable[..., FeatureStore], said: Said, terminal: bool, progress: bool) -> None:
    store = make(console=Console(file=said, force_terminal=terminal, width=120))
    store.build(LAYERS, progress=progress)
    assert ("images/s" in said) == (terminal and progress)
    assert ("41/41" in said) == (terminal and progress)
    assert ("images to encode" in said) == progress


# --- looking after ------------------------------------------------------------------------------------------


def test_list_verify_remove(make: Callable[..., FeatureStore]) -> None:
    store = make()
    assert list_stores(store.root) == []
    assert store.usage() is None
    store.build((1, 3))
    make(TinySource(test=3), dtype=torch.bfloat16).build((2,), splits=("test",))
    first, second = list_stores(store.root)
    assert first == store.usage()
    assert (first.key, first.encoder, first.source, first.dtype) == (store.key, "tiny", "tiny/1", "float32")
    assert first.layers == (1, 3)
    assert {split.split: split.images for split in first.splits} == {"train": 22, "val": 9, "test": 10}
    assert first.images == 41
    assert first.bytes == sum(path.stat().st_size for path in files(store.folder))
    assert (second.layers, second.images, second.dtype) == ((2,), 3, "bfloat16")

    assert store.verify() == []
    path = next(store.folder.glob("test-*/layer_03/00008-00010.safetensors"))
    truncate(path)
    assert store.verify() == [path]

    with pytest.raises(WorkbenchError, match="there is no store 'nonsense'"):
        remove_store(store.root, "nonsense")
    with lock(store.root, store.key), pytest.raises(WorkbenchError, match="another process"):
        remove_store(store.root, store.key)
    store.remove()
    assert [known.key for known in list_stores(store.root)] == [second.key]
    assert store.build((1,)).images == 41


def test_remove_while_read(make: Callable[..., FeatureStore], vision: VisionEncoder) -> None:
    features = make().features("val", LAYERS)
    make().remove()
    assert torch.equal(features.rows(torch.arange(9)), truth(vision, "val"))
