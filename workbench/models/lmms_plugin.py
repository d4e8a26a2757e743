"""The class that lmms-eval makes for ``--model fusion_workbench``."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import BENCHMARK_TOKENS
from fusion_workbench.models.lmms import Answering

try:
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise WorkbenchError(
        f"benchmarks need lmms-eval ({error}): pip install 'fusion-workbench[eval]', see docs/evaluation.md."
    ) from None


class FusionWorkbench(Answering, lmms):  # type: ignore[misc]  # lmms-eval is untyped
    """A model folder under lmms-eval.

    Args:
        folder: written by a study or a conversion.
        batch_size: questions answered together; from lmms-eval's ``--batch_size``, where ``auto`` is not built.
        max_batch_size: lmms-eval's for ``auto``; not used.
        device: such as ``cuda:1``; by default this process's GPU (``LOCAL_RANK``), or the CPU.
        max_new_tokens: the longest answer, in tokens, of tasks that name none.

    Raises:
        WorkbenchError: no folder, or no model in it; a batch size that is no number.
    """

    def __init__(
        self,
        folder: str = "",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_new_tokens: int = BENCHMARK_TOKENS,
    ) -> None:
        if not folder:
            raise WorkbenchError("fusion_workbench needs a model folder: --model_args folder=PATH.")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise WorkbenchError(f"--batch_size {batch_size} is not built; give a number, such as 8.")
        self.device = _device(device)
        super().__init__(_load(Path(str(folder)), str(self.device)), int(batch_size), int(max_new_tokens))


def _device(device: str | None) -> Any:
    import torch

    here = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return torch.device(device or here)


def _load(folder: Path, device: str) -> Any:
    return import_module("fusion_workbench.models.loaded").load_model(folder, device=device)
