"""Encoding into the feature store against a bare transformers forward, and that against the device's limit.

The bare forward gets a batch that lies ready, in the encoder's own precision. The store draws images, encodes, converts
and writes shards.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fusion_workbench.bench.ceilings import product
from fusion_workbench.bench.record import Figure, Kind
from fusion_workbench.bench.studies import encoder_of, random_encoder
from fusion_workbench.bench.turns import Meter, Ratio, Setting, clock, in_turn
from fusion_workbench.config.study import EncoderConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.modules import cost
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.study.encoder_store import load_encoder

BARE = "bare transformers forward"
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the depth: the layers that are encoded


class Noise:
    """A source whose images cost nothing to draw: eight of them again and again."""

    version = "noise"

    def __init__(self, images: int, size: int) -> None:
        self._images, self._size = images, size
        self._drawn = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)

    def size(self, split: str) -> int:
        return self._images

    def fingerprint(self, split: str) -> str:
        return f"{split}-{self._images}-{self._size}"

    def image(self, split: str, index: int) -> np.ndarray[Any, Any]:
        drawn: np.ndarray[Any, Any] = self._drawn[index % len(self._drawn)]
        return drawn


def store_meter(encoder: VisionEncoder, source: Any, layers: list[int], batch: int, folder: Path) -> Meter:
    """Seconds of an image, from its drawing to its shards on the disk; each turn builds a store anew."""

    def turn() -> float:
        store = FeatureStore(folder, encoder, source)
        stats = store.build(layers, splits=("train",), batch_size=batch, progress=False)
        store.remove()
        return stats.seconds / stats.images

    return turn


def measure(setting: Setting) -> Iterator[Figure]:
    """The embedded encoder; on CUDA one of CLIP-L's size as well, whose weights are random."""
    embedded = "embedded encoder" if not setting.tiny else "tiny encoder"
    try:
        encoder = encoder_of(setting)
    except WorkbenchError as error:
        yield Figure(embedded, BARE, missing=str(error))
    else:
        yield from _of(encoder, embedded, setting)
    if setting.device == "cuda" and not setting.tiny:
        name = random_encoder("clip-l-336", setting.scratch / "clip-l-336")
        yield from _of(load_encoder(EncoderConfig(name, image_size=0), progress=False), "CLIP-L/336's size", setting)


def _of(encoder: VisionEncoder, name: str, setting: Setting) -> Iterator[Figure]:
    size, device = encoder.image_size, setting.device
    assert isinstance(size, int)
    images, batch = (8, 4) if setting.tiny else (256, 64)
    layers = sorted({max(1, round(share * encoder.depth)) for share in SHARES})
    noise = Noise(images, size)
    pixels = encoder.normalise(torch.as_tensor(np.stack([noise.image("train", i) for i in range(batch)])))

    def bare() -> None:
        with torch.inference_mode(), encoder.autocast():
            encoder.model(pixel_values=pixels)

    def states(read: list[int]) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                encoder.hidden_states(pixels, read)

        return run

    bf16 = encoder.precision == "bf16"
    multiply, multiplied = product(device, torch.bfloat16 if bf16 else torch.float32)
    per_image = {
        "bare": _each(clock(bare, device, setting.least), batch),
        "all": _each(clock(states(layers), device, setting.least), batch),
        "half": _each(clock(states([max(1, encoder.depth // 2)]), device, setting.least), batch),
        "store": store_meter(encoder, noise, layers, batch, setting.scratch / "encoded"),
        "limit": clock(multiply, device, setting.least),
    }
    seconds = in_turn(per_image, setting.repeats)
    flops = cost.flops(lambda x: encoder.hidden_states(x, [encoder.depth]), pixels) / batch
    facts = {
        "size": size,
        "precision": encoder.precision,
        "batch": batch,
        "images": images,
        "layers": layers,
        "flops_an_image": flops,
        "images_a_second": {who: 1 / Ratio.of(s).median for who, s in seconds.items() if who != "limit"},
    }
    about = f"{name}, {size} px, {encoder.precision}, {batch} images a batch"
    share = Ratio.paired(seconds["limit"], seconds["bare"], flops / multiplied)
    yield Figure(f"{BARE}, {name}", f"matrix product, {encoder.precision}", Kind.LIMIT, share, note=about, facts=facts)
    for who, what in (
        ("all", f"hidden states of layers {layers}"),
        ("half", f"layer {max(1, encoder.depth // 2)} alone: deeper blocks do not run"),
        ("store", "feature store, from images that cost nothing to draw to shards on the disk"),
    ):
        faster = Ratio.paired(seconds["bare"], seconds[who])
        yield Figure(f"{what}, {name}", BARE, Kind.SPEED, faster, note=about, facts=facts)
    yield from _drawing(encoder, per_image["bare"], size, setting, about)


def _drawing(encoder: VisionEncoder, bare: Meter, size: int, setting: Setting, about: str) -> Iterator[Figure]:
    """Drawing a scene, and decoding it from PNG and JPEG, beside encoding it."""
    count = 4 if setting.tiny else 32
    try:
        scenes = build_source("finescenes", {"train": count, "size": size})
        drawn = [scenes.image("train", number) for number in range(count)]
    except WorkbenchError as error:
        yield Figure("drawing a scene", BARE, Kind.TIME, missing=str(error))
        return

    def draw() -> None:
        for number in range(count):
            scenes.image("train", number)

    meters: dict[str, Meter] = {"bare": bare, "drawing a scene": _each(clock(draw, "cpu", setting.least), count)}
    for kind in ("PNG", "JPEG"):
        files = [io.BytesIO() for _ in drawn]
        for image, file in zip(drawn, files, strict=True):
            Image.fromarray(image).save(file, kind)
        meters[f"decoding it from {kind}"] = _each(clock(_decoder(files), "cpu", setting.least), count)
    seconds = in_turn(meters, setting.repeats)
    for name in list(meters)[1:]:
        ratio = Ratio.paired(seconds[name], seconds["bare"])
        facts = {"seconds_an_image": {who: Ratio.of(s).median for who, s in seconds.items()}}
        note = f"an image each; less is better; {about}"
        yield Figure(f"{name}, {size} px", BARE, Kind.TIME, ratio, note=note, facts=facts)


def _decoder(files: list[io.BytesIO]) -> Callable[[], None]:
    def decode() -> None:
        for file in files:
            with contextlib.closing(Image.open(io.BytesIO(file.getvalue()))) as image:
                np.asarray(image.convert("RGB"))

    return decode


def _each(meter: Meter, count: int) -> Meter:
    """Seconds of one of ``count`` things that a meter takes at once."""
    return lambda: meter() / count
