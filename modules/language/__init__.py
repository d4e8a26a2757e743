"""Vision-language models: decoder, splice, connectors, injection, and the LightningModule that joins them."""

from fusion_workbench.modules.language import deepstack, internal_direct  # noqa: F401  (each registers its injection)
from fusion_workbench.modules.language.injection import INJECTIONS

__all__ = ["INJECTIONS"]
