from dataclasses import dataclass

from fusion_workbench.modules.fusion import Fusion, register_strategy


@dataclass(frozen=True)
class LargestOptions:
    scale: float = 1.0


@register_strategy("largest", options=LargestOptions, uses_levels=True, title="largest of the layers")
class Largest(Fusion):
    def forward(self, features, grid):  # [layers, batch, tokens, dim] → [batch, tokens, dim]
        self.check(features, grid)
        return self.options.scale * features.amax(0)
