"""What grouping by length saves, and what it does to the steps: `python tests/benchmarks/bench_order.py`.

Lengths are drawn, log-normal, an image adding its tokens to those that show one; the same for every grouping. Positions
computed are those of a batch as wide as its longest row, on its own device. The spread is how far the mean of the words
of a step's examples with images strays from step to step, among the steps of which most show them.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from fusion_workbench.datamodules.order import EpochBatches, EpochOrder, LengthGroupedOrder, ModalityLengthOrder, Order


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--image-tokens", type=int, default=576)
    given = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    words = (torch.randn(given.examples, generator=draw) * 0.8 + 4.8).exp().clamp(4, 1400).long().tolist()
    text_only = (torch.rand(given.examples, generator=draw) < 0.2).tolist()
    lengths = [n + (0 if alone else given.image_tokens) for n, alone in zip(words, text_only, strict=True)]
    together = given.batch_size * given.devices
    orders: dict[str, Order] = {
        "none": EpochOrder(given.examples, 0),
        "length": LengthGroupedOrder(lengths, text_only, together, 0),
        "modality_length": ModalityLengthOrder(words, text_only, given.batch_size, 0, given.devices),
    }
    for name, order in orders.items():
        shares = [EpochBatches(order, given.batch_size, rank, given.devices).batches() for rank in range(given.devices)]
        batches = [batch for share in shares for batch in share]
        computed = sum(len(batch) * max(lengths[n] for n in batch) for batch in batches)
        real = sum(lengths[n] for batch in batches for n in batch)
        steps = [[n for share in shares for n in share[step]] for step in range(len(shares[0]))]
        shown = [[words[n] for n in step if not text_only[n]] for step in steps]
        means = [statistics.mean(own) for own in shown if len(own) > together // 2]
        print(f"| `{name}` | {computed / real:.2f} | {statistics.stdev(means):.1f} |")


if __name__ == "__main__":
    main()
