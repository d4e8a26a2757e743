"""The code of an exported connector as an MLflow model. MLflow copies this file and runs it; nothing is pickled."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from workbench.export import load_connector


class ServedConnector(PythonModel):
    """From pictures to the tokens that a model reads."""

    # Hints of ``predict`` would be taken for a schema, which pictures do not fit; without this MLflow asks for them.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        self.connector = load_connector(context.artifacts["connector"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Tokens float32 ``[B, T, width]``.

        Args:
            model_input: a picture or a list of them (paths, PIL images, uint8 arrays ``[H, W, 3]``), or a data frame
                with a column ``image`` of these.
        """
        import torch

        pictures = list(model_input["image"]) if hasattr(model_input, "columns") else model_input
        with torch.inference_mode():
            tokens: np.ndarray[Any, Any] = self.connector(pictures).float().cpu().numpy()
        return tokens


mlflow.models.set_model(ServedConnector())
