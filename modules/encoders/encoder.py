"""The frozen vision encoder: a transformers vision model, read at exactly the layers that are requested.

What sets families of encoders apart is in :mod:`modules.encoders.families`; nothing in this file knows a family's name.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.core.hardware import bf16_flags, cpu_flags
from fusion_workbench.modules.encoders.families import Family, family_of, read, square

Size = int | tuple[int, int]  # pixels: the side of a square, or height and width


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
        config = _read_config(name, revision)
        family = family_of(config, name)
        self.name = name
        self.revision = _commit(name, revision)
        self.pinned = revision is not None or Path(name).is_dir()
        self.config = getattr(config, "vision_config", config)
        self.family_name: str = config.model_type
        self.family = family
        if family.audio:
            raise WorkbenchError(
                f"encoder '{name}' is of the family '{self.family_name}', whose tokens are moments of sound. Its "
                "hidden states can be read and fused "
                "(fusion_workbench.modules.encoders.families.read), but there is no source of sound yet."
            )
        self.depth: int = self.config.num_hidden_layers
        self.dim: int = self.config.hidden_size
        self.patch: int = square(self.config.patch_size)
        self.image_size: Size = _size(image_size, self.config, self.patch, name)
        self.prefix_tokens = family.prefix_tokens(self.config)
        self._written = written_config(name, revision)
        self.mean, self.std = _normalisation(name, revision)
        self.precision = resolve_precision(precision, device)
        self.model = _load(name, revision, family).eval().requires_grad_(False).to(device)

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
        inputs: dict[str, Any] = dict(self.family.inputs(pixels, self.patch))
        if self.family.interpolate:
            inputs["interpolate_pos_encoding"] = True
        with self.autocast():
            states = read(self.model, self.family, inputs, layers, self.prefix_tokens)
        rows, columns = pixels.shape[2] // self.patch, pixels.shape[3] // self.patch
        if states.shape[2] != rows * columns:
            raise WorkbenchError(
                f"{self.name} gave {states.shape[2]} tokens beyond {self.prefix_tokens} prefix tokens for a grid of "
                f"{rows} × {columns}; its family '{self.family_name}' is not read correctly."
            )
        return states

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the encoder runs in."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def encoder_info(self) -> dict[str, Any]:
        """What a study needs to know of its encoder; shown by ``workbench layers`` and kept with every study."""
        grid = self.grid()
        return {
            "encoder": self.name,
            "revision": self.revision,
            "family": self.family_name,
            "depth": self.depth,
            "dim": self.dim,
            "patch": self.patch,
            "image_size": self.image_size if isinstance(self.image_size, int) else list(self.image_size),
            "grid": list(grid),
            "tokens": grid[0] * grid[1],
            "prefix_tokens": self.prefix_tokens,
            "final_norm": self.family.final_norm,
            "positions": self.family.positions,
            "precision": self.precision,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "fingerprint": self.fingerprint,
        }


def height_width(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def _size(requested: int | Sequence[int], config: Any, patch: int, name: str) -> Size:
    """The size to encode at, an int for squares. Raises WorkbenchError for one that is no multiple of the patch."""
    if isinstance(requested, int):
        sides = [requested or _trained_size(config, patch)] * 2
    else:
        sides = [int(side) for side in requested]
    if len(sides) != 2 or any(side % patch or side < patch for side in sides):
        right = [max(patch, round(side / patch) * patch) for side in sides]
        example = right[0] if len(set(right)) == 1 else right
        raise WorkbenchError(
            f"encoder.image_size is {requested}; {name} has patches of {patch} px, so it must be a multiple of "
            f"{patch}, such as {example}, or [height, width] of such."
        )
    return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])


def _trained_size(config: Any, patch: int) -> int:
    """The side of the square that a model was trained at; where it only names a number of patches, their square."""
    size = getattr(config, "image_size", None)
    return square(size) if size else math.isqrt(config.num_patches) * patch


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


def _read_config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise WorkbenchError(f"encoder folder {name} holds no config.json; it must be a transformers model folder.")
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = first_line(error)
        raise WorkbenchError(
            f"encoder '{name}' is neither a transformers folder nor a model that can be had from the hub: {first}"
        ) from None


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


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that a hub name was resolved to; None for a folder."""
    from transformers.utils.hub import cached_file

    if Path(name).is_dir():
        return None
    file = cached_file(name, "config.json", revision=revision)
    return Path(str(file)).parent.name  # …/snapshots/COMMIT/config.json


def _load(name: str, revision: str | None, family: Family) -> nn.Module:
    import transformers

    model_class = getattr(transformers, family.model_class)
    chatter: Any = transformers.logging
    level = chatter.get_verbosity()
    chatter.set_verbosity_error()  # a vision tower of a two-tower model leaves the text tower unused
    chatter.disable_progress_bar()
    try:
        model = model_class.from_pretrained(name, revision=revision, use_safetensors=True, dtype=torch.float32)
    except Exception as error:
        first = first_line(error)
        raise WorkbenchError(f"encoder '{name}' could not be loaded from safetensors weights: {first}") from None
    finally:
        chatter.set_verbosity(level)
        chatter.enable_progress_bar()
    assert isinstance(model, nn.Module)
    return model


def _normalisation(name: str, revision: str | None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixels in [0, 1], from the model's preprocessor_config.json.

    A model that rescales otherwise than by 1/255, or does not normalise, is put into the same two numbers.
    """
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        processor, _ = BaseImageProcessor.get_image_processor_dict(name, revision=revision)
        mean, std = [0.0] * 3, [1.0] * 3
        if processor.get("do_normalize", True):
            mean, std = [[float(v) for v in processor[key]] for key in ("image_mean", "image_std")]
    except (OSError, KeyError, TypeError) as error:
        raise WorkbenchError(
            f"encoder '{name}' has no preprocessor_config.json with image_mean and image_std, so its input scale is "
            f"unknown ({type(error).__name__})."
        ) from None
    factor = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    scale = 255 * factor  # (255 · x · factor - mean) / std = (x - mean / scale) / (std / scale)
    if not math.isclose(scale, 1.0, rel_tol=1e-9):
        mean, std = [v / scale for v in mean], [v / scale for v in std]
    return mean, std
