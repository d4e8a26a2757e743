"""The code of an exported connector as an MLflow model. MLflow copies this file and runs it; nothing is pickled."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.connector import load_connector


class ServedConnector(PythonModel):
    """From pictures to the tokens that a model reads."""

    # Hints of ``predict`` would be taken for a schema, which pictures do not fit; without this MLflow asks for them.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        self.connector = load_connector(context.artifacts["connector"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Tokens float32 ``[B, T, width]``.

        Args:
            model_input: a picture or a list of them (paths, PIL images, uint8 arrays ``[H, W, 3]``, or text
                ``data:image/…;base64,…`` that holds the file), or a data frame with a column ``image`` of these.
        """
        import torch

        given = model_input["image"] if hasattr(model_input, "columns") else model_input
        several = isinstance(given, list | tuple) or getattr(given, "ndim", 0) in (1, 4)
        pictures = [_picture(one) for one in (given if several else [given])]
        with torch.inference_mode():
            tokens: np.ndarray[Any, Any] = self.connector(pictures).float().cpu().numpy()
        return tokens


def _picture(given: Any) -> Any:
    """What JSON makes of a picture, turned back: the text of a file, and integers of 64 bits."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(given, str) and given.startswith("data:"):
        try:
            return Image.open(io.BytesIO(base64.b64decode(given.partition(",")[2], validate=True)))
        except (binascii.Error, UnidentifiedImageError):
            raise WorkbenchError(f"'{given[:30]}…' holds no picture in base64.") from None
    if isinstance(given, str):
        return str(given)  # of an array of text each is numpy's own kind of str
    array = np.asarray(given)
    if array.dtype.kind in "iu" and array.dtype != np.uint8 and array.size and 0 <= array.min() <= array.max() <= 255:
        return array.astype(np.uint8)
    return given


mlflow.models.set_model(ServedConnector())
