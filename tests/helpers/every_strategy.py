"""Every strategy that is tried: each by its defaults, and again for each option that changes what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fusion_workbench.modules.fusion import STRATEGIES

VARIATIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "average": ({"layer_norm": "none"},),
    "sum": ({"layer_norm": "none"},),
    "weighted": ({"layer_norm": "none"},),
    "gated": ({"layer_norm": "none"},),
    "concat": ({"layer_norm": "none"},),
    "sti": ({"stride": 3}, {"layer_norm": "none"}),
    "dci": ({"groups": 1}, {"layer_norm": "none"}),
    "fpn": ({"output": "sum"}, {"channels": 12}, {"layer_norm": "none"}),
    "mmfuser": (
        {"heads": 4, "points": 2},
        {"self_attention": False},
        {"gate_init": 1.0},
        {"attention": "global", "heads": 4},
        {"attention": "global", "self_attention": False},
        {"attention": "linear_sra", "heads": 4},
        {"attention": "linear_sra", "self_attention": False},
    ),
    "matched": ({"budget": "flops"}, {"like": "concat"}, {"like": "mmfuser", "like_options": "attention=global"}),
}


def every_strategy() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and options; the options suit any dim that is a multiple of 4 and any levels."""
    for name in sorted(STRATEGIES):
        yield name, {}
        for options in VARIATIONS.get(name, ()):
            yield name, options
