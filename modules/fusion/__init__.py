"""Fusion strategies: from the selected layers' tokens to one token sequence. One file per kind; users add their own."""

from fusion_workbench.modules.fusion import (  # noqa: F401  (each registers its strategies)
    average,
    concat,
    deep_only,
    dense_connector,
    fpn,
    gated,
    matched,
    mmfuser,
    weighted,
)
from fusion_workbench.modules.fusion.base import (
    STRATEGIES,
    Fusion,
    StrategySpec,
    build,
    canonical_options,
    register_strategy,
)

__all__ = ["STRATEGIES", "Fusion", "StrategySpec", "build", "canonical_options", "register_strategy"]
