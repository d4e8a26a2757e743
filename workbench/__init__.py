"""A referee for visual-layer fusion: which encoder layers to feed the language model, fused how, and how sure that is.

What stands here is the public face, and all that is promised to stay. Nothing is imported before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fusion_workbench.version import __version__

if TYPE_CHECKING:
    from fusion_workbench.datamodules.datamodule import AblationDataModule
    from fusion_workbench.datamodules.sources.base import register_source
    from fusion_workbench.models.connector import load_connector
    from fusion_workbench.modules.answers.metrics.base import register_metric
    from fusion_workbench.modules.encoders.encoder import VisionEncoder
    from fusion_workbench.modules.encoders.families import register_family
    from fusion_workbench.modules.fusion.base import register_strategy
    from fusion_workbench.modules.language.injection import register_injection
    from fusion_workbench.modules.language.vlm import VisionLanguageModel
    from fusion_workbench.modules.probes.bank import FusionBank
    from fusion_workbench.modules.tasks.base import register_task
    from fusion_workbench.reports.reading.query import read_study

_PLACES = {
    "AblationDataModule": "datamodules.datamodule",
    "FusionBank": "modules.probes.bank",
    "VisionEncoder": "modules.encoders.encoder",
    "VisionLanguageModel": "modules.language.vlm",
    "load_connector": "models.connector",
    "read_study": "reports.reading.query",
    "register_family": "modules.encoders.families",
    "register_injection": "modules.language.injection",
    "register_metric": "modules.answers.metrics.base",
    "register_source": "datamodules.sources.base",
    "register_strategy": "modules.fusion.base",
    "register_task": "modules.tasks.base",
}

__all__ = [
    "AblationDataModule",
    "FusionBank",
    "VisionEncoder",
    "VisionLanguageModel",
    "__version__",
    "load_connector",
    "read_study",
    "register_family",
    "register_injection",
    "register_metric",
    "register_source",
    "register_strategy",
    "register_task",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
