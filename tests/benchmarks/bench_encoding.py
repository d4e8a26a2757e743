"""Encoding into the feature store against a bare transformers forward: `python tests/benchmarks/bench_encoding.py`.

Same encoder, precision, batch size and images; the two take turns, and the ratio is of the medians. The store draws the
scenes, encodes, converts and writes shards; the bare forward gets a batch that lies ready. A third turn encodes the
middle layer alone, for what it saves that deeper blocks do not run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fusion_workbench.config.study import EncoderConfig
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.study.encoder_store import load_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 6, 9, 12])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    encoder = load_encoder(EncoderConfig())
    source = build_source("finescenes", {"train": chosen.images})
    batch = encoder.normalise(
        torch.stack([torch.as_tensor(source.image("train", i)) for i in range(chosen.batch_size)])
    )
    bare, store, half = [], [], []
    for _ in range(chosen.rounds + 1):
        start = time.perf_counter()
        for _ in range(chosen.images // chosen.batch_size):
            with torch.inference_mode(), encoder.autocast():
                encoder.model(pixel_values=batch)
        bare.append(chosen.images / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in range(chosen.images // chosen.batch_size):
            with torch.inference_mode():
                encoder.hidden_states(batch, [encoder.depth // 2])
        half.append(chosen.images / (time.perf_counter() - start))
        with tempfile.TemporaryDirectory() as folder:
            stats = FeatureStore(Path(folder), encoder, source).build(
                chosen.layers, splits=("train",), batch_size=chosen.batch_size, progress=False
            )
        store.append(stats.images / stats.seconds)
    one, other = statistics.median(store[1:]), statistics.median(bare[1:])  # the first round warms up
    print(f"{encoder.precision}, batch {chosen.batch_size}, {torch.get_num_threads()} threads, layers {chosen.layers}")
    print(f"store {one:.1f} images/s, bare forward {other:.1f} images/s, ratio {one / other:.2f}")
    middle = statistics.median(half[1:])
    print(f"layer {encoder.depth // 2} alone {middle:.1f} images/s, {middle / other:.2f} times the bare forward")


if __name__ == "__main__":
    main()
