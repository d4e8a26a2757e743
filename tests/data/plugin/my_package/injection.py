from dataclasses import dataclass

from fusion_workbench.modules.language.injection import Injection, register_injection
from fusion_workbench.modules.language.visual import VisualInput


@dataclass(frozen=True)
class LastBlockOptions:
    scale: float = 1.0


@register_injection("last_block", options=LastBlockOptions, title="levels added at the last block")
class LastBlock(Injection):
    def __init__(self, setting, options):
        super().__init__(setting, options)
        self.query, self.level = self.new_projector(), self.new_projector()

    def blocks(self):
        return (self.setting.depth - 1,)

    def forward(self, features, grid):  # [layers, images, tokens, dim]
        self.check(features, grid)
        added = self.options.scale * self.level(features[:-1].sum(0))
        return VisualInput(self.query(features[-1]), {self.setting.depth - 1: added})
