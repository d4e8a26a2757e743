"""What the cells of a study are built into: probes here, multimodal language models in :mod:`study.language_parts`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion_workbench.datamodules.features import Features
    from fusion_workbench.modules.answers.task import AnswerTask
    from fusion_workbench.modules.fusion import Fusion
    from fusion_workbench.modules.language.connector import LanguageConnector
    from fusion_workbench.modules.tasks import Task
    from fusion_workbench.sweeps.space import Cell


class CellModels(ABC):
    """The kind of model that all cells of a study become, and what is measured of it."""

    width: int  # channels of the tokens that leave a projector

    @property
    @abstractmethod
    def measured(self) -> Sequence[Task | AnswerTask]:
        """What probes predict or questions ask: the measures of the report."""

    @property
    def stage_features(self) -> Mapping[str, Features]:
        """Stage of training → the features that it reads; empty where there are no stages."""
        return {}

    @abstractmethod
    def build(self, cell: Cell) -> Fusion | LanguageConnector:
        """What joins the encoder to the rest of the model, fresh; :func:`modules.meta.on_meta` builds it for its
        shapes and checks alone.

        Raises:
            WorkbenchError: the cell cannot be built.
        """


@dataclass(frozen=True)
class ProbeModels(CellModels):
    """Probes of frozen tokens.

    Attributes:
        tasks: what is read off the tokens.
        dim: channels of the encoder.
        grid: of the encoder's tokens.
        projector: its kind.
    """

    tasks: list[Task]
    dim: int
    grid: tuple[int, int]
    projector: str
    width: int

    @property
    def measured(self) -> Sequence[Task | AnswerTask]:
        return self.tasks

    def build(self, cell: Cell) -> Fusion:
        """The cell's fuser; its projector is built beside it, as it too may refuse."""
        from fusion_workbench.modules.fusion import build

        fuser = build(cell.strategy, cell.selection, self.dim, dict(cell.options))
        fuser.projector(self.projector, self.width, self.grid)
        return fuser
