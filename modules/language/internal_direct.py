"""Internal direct fusion (Lin et al., CVPR 2025, arXiv 2503.06063; code: EIT-NLP/Layer_Select_Fuse_for_MLLM).

::

    h_b[visual] ← h_b[visual] + P_l(F_l)       at one decoder block b for each level l

h_b are the hidden states that enter decoder block b (from 0), ``visual`` the places of the image's tokens, P_l the
level's own projector; the input sequence holds P(F_L) of the query. No cross-attention, no gate, no zero start: those
are the paper's internal *modular* fusion.

From the paper and its code: a projector for each level beside the query's; plain addition, in the prefill alone; a
level goes to the block of the same relative depth, ``b = int(l · L / D − 1)`` for L decoder blocks and an encoder of D
(24 in the paper: levels 3 and 18 of CLIP-L go to blocks 2 and 17 of a decoder of 24). That is ``encoder_depth: 24``.
Where it has twelve levels or more, the first twelve meet the first twelve blocks and the last twelve the last;
``blocks`` can say so.

Our reading: the published code asks a wrong setting whether to add (its authors call that a typo: issue 1 of the
repository), so what is above is what it is meant to do. Ours besides: without ``encoder_depth`` the levels are spread
evenly over the decoder's inside, ``b_i = ⌊(i + 1) · L / (M + 1)⌋``, which needs to know nothing of the encoder; and the
parameterless normalisation before every projector.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.fusion.base import Grid
from fusion_workbench.modules.language.injection import Injection, InjectionSetting, check_blocks, register_injection
from fusion_workbench.modules.language.visual import VisualInput


@dataclass(frozen=True)
class InternalDirectOptions:
    """Where the levels are added; at most one of the two is named."""

    blocks: str = ""  # decoder blocks from 0, shallowest level first, such as "2, 17"
    encoder_depth: int | None = None  # blocks of the encoder: each level at the same share of the decoder's depth


@register_injection(
    "internal_direct",
    options=InternalDirectOptions,
    title="levels added along the decoder",
    source="arXiv 2503.06063, internal direct",
)
class InternalDirect(Injection):
    """The equation of the head of this file.

    Raises:
        WorkbenchError: blocks that the decoder does not have, two levels at one block, or both options named.
    """

    def __init__(self, setting: InjectionSetting, options: InternalDirectOptions) -> None:
        super().__init__(setting, options)
        self._blocks = _blocks(setting, options)
        remedy = "Name other blocks, such as blocks: '1, 3', or select fewer levels."
        check_blocks("internal_direct", self._blocks, setting, remedy)
        self.projector = self.new_projector()  # of the query
        self.levels = nn.ModuleList(self.new_projector() for _ in self._blocks)

    def blocks(self) -> tuple[int, ...]:
        return tuple(sorted(self._blocks))

    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        """``[M + 1, N, T, dim]`` → tokens and M additions, ``[N, T, width]`` each."""
        self.check(features, grid)
        added = zip(self._blocks, self.levels, features[:-1], strict=True)
        return VisualInput(self.projector(features[-1]), {block: project(level) for block, project, level in added})


def _blocks(setting: InjectionSetting, options: InternalDirectOptions) -> tuple[int, ...]:
    """A decoder block for each level, in the levels' order."""
    levels, depth = setting.selection.levels, setting.depth
    if options.blocks and options.encoder_depth is not None:
        raise WorkbenchError("internal_direct: blocks and encoder_depth both say where to add; name one of them.")
    if options.blocks:
        try:
            return tuple(int(block) for block in options.blocks.split(","))
        except ValueError:
            raise WorkbenchError(
                f"internal_direct: blocks is '{options.blocks}'; write the numbers of decoder blocks, such as '2, 17'."
            ) from None
    if options.encoder_depth is not None:
        if options.encoder_depth < max(levels):
            raise WorkbenchError(
                f"internal_direct: encoder_depth={options.encoder_depth}, and the selection names level {max(levels)}; "
                "name the number of the encoder's blocks."
            )
        return tuple(max(0, level * depth // options.encoder_depth - 1) for level in levels)
    return tuple((i + 1) * depth // (len(levels) + 1) for i in range(len(levels)))
