"""Encoding into the feature store against a bare transformers forward: `python tests/benchmarks/bench_encoding.py`.

Same encoder, precision, batch size and images; the two take turns, and the ratio is of the medians. The store draws the
scenes, encodes, converts and writes shards; the bare forward gets a batch that lies ready. A third turn encodes the
middle layer alone, for what it saves that deeper blocks do not run. The encoder is the embedded one, or one of a
published size whose weights are random: time does not depend on their values. It runs on CUDA where there is one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion_workbench.config.study import EncoderConfig
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.study.encoder_store import load_encoder

RANDOM: dict[str, dict[str, Any]] = {  # of CLIPVisionConfig
    "clip-l-336": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    | {"image_size": 336, "patch_size": 14, "projection_dim": 768},
    "clip-tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    | {"image_size": 56, "patch_size": 14, "projection_dim": 32},
}


class Noise:
    """Images that cost nothing to draw."""

    version = "noise"

    def __init__(self, images: int, size: int) -> None:
        self._images, self._size = images, size
        self._drawn = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)

    def size(self, split: str) -> int:
        return self._images

    def fingerprint(self, split: str) -> str:
        return f"{split}-{self._images}-{self._size}"

    def image(self, split: str, index: int) -> np.ndarray[Any, Any]:
        return self._drawn[index % len(self._drawn)]


def random_encoder(name: str, folder: Path) -> VisionEncoder:
    """A CLIP tower of the size ``name``, with weights as transformers initialises them."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**RANDOM[name])).save_pretrained(folder)
    processor = {"image_processor_type": "CLIPImageProcessor", "do_rescale": True, "rescale_factor": 1 / 255}
    processor |= {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return load_encoder(EncoderConfig(str(folder), image_size=0))  # the size it is built for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--encoder", choices=["embedded", *RANDOM], default="embedded")
    parser.add_argument("--source", choices=["finescenes", "noise"], default="finescenes")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 6, 9, 12])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="append the result to this file as a line")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.encoder == "embedded":
            encoder = load_encoder(EncoderConfig())
        else:
            encoder = random_encoder(chosen.encoder, Path(folder))
        measure(encoder, chosen)


def measure(encoder: VisionEncoder, chosen: argparse.Namespace) -> None:
    size = encoder.image_size
    assert isinstance(size, int)
    source: Any = Noise(chosen.images, size)
    if chosen.source == "finescenes":
        source = build_source("finescenes", {"train": chosen.images, "size": size})
    drawn = np.stack([source.image("train", i) for i in range(chosen.batch_size)])
    batch = encoder.normalise(torch.as_tensor(drawn))
    bare, store, half = [], [], []
    for _ in range(chosen.rounds + 1):
        start = _now(encoder)
        for _ in range(chosen.images // chosen.batch_size):
            with torch.inference_mode(), encoder.autocast():
                encoder.model(pixel_values=batch)
        bare.append(chosen.images / (_now(encoder) - start))
        start = _now(encoder)
        for _ in range(chosen.images // chosen.batch_size):
            with torch.inference_mode():
                encoder.hidden_states(batch, [encoder.depth // 2])
        half.append(chosen.images / (_now(encoder) - start))
        with tempfile.TemporaryDirectory() as folder:
            stats = FeatureStore(Path(folder), encoder, source).build(
                chosen.layers, splits=("train",), batch_size=chosen.batch_size, progress=False
            )
        store.append(stats.images / stats.seconds)
    found = {
        name: statistics.median(rates[1:])  # the first round warms up
        for name, rates in (("store", store), ("bare", bare), ("middle layer alone", half))
    }
    cuda = encoder.device.type == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    print(
        f"{chosen.encoder}, {size} px, {encoder.precision}, batch {chosen.batch_size}, {where}, layers {chosen.layers}"
    )
    one, other, middle = found.values()
    print(f"store of {chosen.source} {one:.1f} images/s, bare forward {other:.1f} images/s, ratio {one / other:.2f}")
    print(f"layer {encoder.depth // 2} alone {middle:.1f} images/s, {middle / other:.2f} times the bare forward")
    if chosen.json:
        facts = {"encoder": chosen.encoder, "source": chosen.source, "size": size, "precision": encoder.precision}
        facts |= {"batch_size": chosen.batch_size, "layers": chosen.layers, "images_per_second": found}
        with chosen.json.open("a") as file:
            file.write(json.dumps({"benchmark": "encoding", "where": where} | facts) + "\n")


def _now(encoder: VisionEncoder) -> float:
    """The time, once the encoder's device has done what it was given."""
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
