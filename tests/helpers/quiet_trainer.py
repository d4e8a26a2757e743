"""Lightning's trainer as tests use it."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L


def trainer(**options: Any) -> L.Trainer:
    """A quiet one on the CPU, that keeps nothing."""
    warnings.filterwarnings("ignore", module="lightning")
    quiet = {"devices": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0}
    return L.Trainer(**{"accelerator": "cpu"} | quiet | options)
