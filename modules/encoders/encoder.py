"""The frozen vision encoder: a transformers vision model, read at exactly the layers that are requested.

What sets families of encoders apart is in :mod:`modules.encoders.families`; nothing in this file knows a family's name.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.encoders.description import Size, describe, height_width
from fusion_workbench.modules.encoders.families import read
from fusion_workbench.modules.encoders.loading import load_weights, read_config, read_scale
from fusion_workbench.system.hardware import bf16_flags, cpu_flags


class VisionEncoder(nn.Module):
    """A frozen vision transformer from a folder or the Hugging Face hub.

    Args:
        name: a transformers folder, or a hub name such as ``openai/clip-vit-large-patch14-336``.
        revision: commit or tag of a hub name.
        image_size: pixels of the input, multiples of the patch size: a side, or height and width; 0 for the size it was
            trained at.
        precision: ``float32``, ``bf16`` (autocast), or ``auto``: bf16 where the hardware gains from it.

    Attributes:
        image_size: an int for squares, else height and width.
        revision: the commit that a hub name was resolved to; None for folders.

    Raises:
        WorkbenchError: no such model, an unknown family, or an image size the encoder cannot take.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int | Sequence[int],
        revision: str | None = None,
        precision: str = "auto",
        device: str = "cpu",
    ) -> None:
        super().__init__()
        config = read_config(name, revision)
        described = describe(name, config, image_size, revision)
        self.name = name
        self.description = described
        self.revision = described.revision
        self.pinned = revision is not None or Path(name).is_dir()
        self.config, self.family, self.family_name = described.config, described.family, described.family_name
        self.depth, self.dim, self.patch = described.depth, described.dim, described.patch
        self.image_size: Size = described.image_size
        self.prefix_tokens = described.prefix_tokens
        self._written = written_config(name, revision)
        self.mean, self.std = read_scale(name, revision)
        self.precision = resolve_precision(precision, device)
        model = load_weights(name, revision, described.family, config, self._all_states)
        self.model = model.eval().requires_grad_(False).to(device)

    def train(self, mode: bool = True) -> VisionEncoder:
        """Stays in eval mode: the encoder is frozen, whatever Lightning asks of the modules around it."""
        return super().train(False)

    def grid(self, size: Size | None = None) -> tuple[int, int]:
        """Rows and columns of the patch grid of an image of ``size`` pixels."""
        height, width = height_width(size or self.image_size)
        return height // self.patch, width // self.patch

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over weights, config, preprocessing and precision: everything that a hidden state depends on."""
        return self.fingerprint_under(self.precision)

    def fingerprint_under(self, precision: str) -> str:
        """:attr:`fingerprint` as it is under another precision, such as that of a machine that it ran on before."""
        sha = hashlib.sha256()
        facts = {
            "config": {
                k: v for k, v in self.config.to_dict().items() if not k.startswith("_") and k != "transformers_version"
            },
            "mean": self.mean,
            "std": self.std,
            "image_size": self.image_size,
            "precision": precision,
        }
        sha.update(json.dumps(facts, sort_keys=True, default=str).encode())
        _add_weights(sha, self.model)
        return sha.hexdigest()

    @functools.cached_property
    def weights_fingerprint(self) -> str:
        """sha256 over every weight as it was loaded."""
        sha = hashlib.sha256()
        _add_weights(sha, self.model)
        return sha.hexdigest()

    @functools.cached_property
    def config_fingerprint(self) -> str:
        """sha256 over the config as it is written, not as a version of transformers completes it, and preprocessing."""
        facts = {"config": self._written, "mean": self.mean, "std": self.std, "image_size": self.image_size}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def normalise(self, images: np.ndarray[Any, Any] | Tensor) -> Tensor:
        """uint8 images ``[B, H, W, 3]`` to the encoder's input ``[B, 3, H, W]``, float32, on its device."""
        pixels = torch.as_tensor(images).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(self.device) for values in (self.mean, self.std))
        return pixels.mul_(1 / (255 * std)).add_(-mean / std)

    @torch.inference_mode()
    def encode(self, images: np.ndarray[Any, Any] | Tensor, layers: Sequence[int]) -> Tensor:
        """Hidden states of ``layers`` for uint8 images ``[B, H, W, 3]`` → ``[layers, B, tokens, dim]``.

        Patch tokens only: prefix tokens are split off by the config's count. Blocks deeper than the deepest layer that
        is requested do not run. Under bf16 autocast the residual stream keeps the dtype that transformers gives it.
        """
        return self.hidden_states(self.normalise(images), layers)

    def hidden_states(self, pixels: Tensor, layers: Sequence[int]) -> Tensor:
        """The same from normalised pixels ``[B, 3, H, W]``."""
        with self.autocast():
            states = read(self.model, self.family, self._inputs(pixels), layers, self.prefix_tokens)
        rows, columns = pixels.shape[2] // self.patch, pixels.shape[3] // self.patch
        if states.shape[2] != rows * columns:
            raise WorkbenchError(
                f"{self.name} gave {states.shape[2]} tokens beyond {self.prefix_tokens} prefix tokens for a grid of "
                f"{rows} × {columns}; its family '{self.family_name}' is not read correctly."
            )
        return states

    def _all_states(self, model: nn.Module) -> Tensor:
        """Everything that is ever read of ``model``: all hidden states of an image, as :meth:`hidden_states` reads."""
        pixels = torch.zeros(1, 3, *height_width(self.image_size))
        return read(model, self.family, self._inputs(pixels), range(self.depth + 1), self.prefix_tokens)

    def _inputs(self, pixels: Tensor) -> dict[str, Any]:
        inputs: dict[str, Any] = dict(self.family.inputs(pixels, self.patch))
        return inputs | ({"interpolate_pos_encoding": True} if self.family.interpolate else {})

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the encoder runs in."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def encoder_info(self) -> dict[str, Any]:
        """What a study needs to know of its encoder; shown by ``workbench layers`` and kept with every study."""
        return {
            **self.description.info(),
            "encoder": self.name,
            "precision": self.precision,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "fingerprint": self.fingerprint,
        }


def resolve_precision(precision: str, device: str) -> str:
    """``auto`` to ``bf16`` where the hardware multiplies bf16 natively, to ``float32`` elsewhere."""
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if cpu_has_bf16() else "float32"


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether this CPU has bf16 dot products (AVX512_BF16, AMX or Arm's BF16), read from the kernel's flags."""
    return bool(bf16_flags(cpu_flags()))


def written_config(name: str, revision: str | None) -> dict[str, Any]:
    """What ``config.json`` says of a vision encoder, but for the version of transformers that wrote it."""
    from transformers import PretrainedConfig

    plain, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    plain = plain.get("vision_config") or plain
    return {k: v for k, v in plain.items() if not k.startswith("_") and k != "transformers_version"}


def _add_weights(sha: Any, model: nn.Module) -> None:
    """Hash every tensor of ``model`` by its name and bytes."""
    for key, tensor in sorted(model.state_dict().items()):
        sha.update(key.encode())
        sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
