"""The frozen vision encoder: a transformers vision model, read at exactly the layers that are asked for.

Families differ in three facts (which class holds the vision tower, how many prefix tokens stand before the patches,
whether a final norm follows the last block). They are the rows of :data:`FAMILIES`; nothing else in this file knows a
family's name.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError, nearest


@dataclass(frozen=True)
class Family:
    """What sets one family of vision encoders apart."""

    model_class: str  # in transformers
    prefix_tokens: Callable[[Any], int]  # from the vision config: CLS, registers
    final_norm: bool  # last_hidden_state = norm(hidden_states[-1])
    interpolate: bool  # position table interpolated on request (DINOv2 does it unasked)


FAMILIES: dict[str, Family] = {
    "dinov2": Family("Dinov2Model", lambda config: 1, final_norm=True, interpolate=False),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersModel", lambda config: 1 + config.num_register_tokens, final_norm=True, interpolate=False
    ),
    "clip": Family("CLIPVisionModel", lambda config: 1, final_norm=False, interpolate=True),
    "clip_vision_model": Family("CLIPVisionModel", lambda config: 1, final_norm=False, interpolate=True),
    "siglip": Family("SiglipVisionModel", lambda config: 0, final_norm=True, interpolate=True),
    "siglip_vision_model": Family("SiglipVisionModel", lambda config: 0, final_norm=True, interpolate=True),
    "vit": Family("ViTModel", lambda config: 1, final_norm=True, interpolate=True),
}


class VisionEncoder(nn.Module):
    """A frozen vision transformer from a folder or the Hugging Face hub.

    Args:
        name: a transformers folder, or a hub name such as ``openai/clip-vit-large-patch14-336``.
        revision: commit or tag of a hub name.
        image_size: pixels of the square input, a multiple of the patch size; 0 for the size it was trained at.
        precision: ``float32``, ``bf16`` (autocast), or ``auto``: bf16 where the hardware gains from it.

    Raises:
        WorkbenchError: no such model, an unknown family, or an image size the encoder cannot take.
    """

    def __init__(
        self, name: str, *, image_size: int, revision: str | None = None, precision: str = "auto", device: str = "cpu"
    ) -> None:
        super().__init__()
        config = _read_config(name, revision)
        family = _family(config, name)
        self.name = name
        self.revision: str | None = getattr(config, "_commit_hash", None) or revision
        self.config = getattr(config, "vision_config", config)
        self.family_name: str = config.model_type
        self.family = family
        self.depth: int = self.config.num_hidden_layers
        self.dim: int = self.config.hidden_size
        self.patch: int = self.config.patch_size
        self.image_size = image_size = image_size or self.config.image_size
        self.prefix_tokens = family.prefix_tokens(self.config)
        if image_size % self.patch or image_size < self.patch:
            raise WorkbenchError(
                f"encoder.image_size is {image_size}; {name} has patches of {self.patch} px, so it must be a multiple "
                f"of {self.patch}, such as {max(self.patch, round(image_size / self.patch) * self.patch)}."
            )
        self.mean, self.std = _normalisation(name, revision)
        self.precision = resolve_precision(precision, device)
        self.model = _load(name, revision, family).eval().requires_grad_(False).to(device)

    def train(self, mode: bool = True) -> VisionEncoder:
        """Stays in eval mode: the encoder is frozen, whatever Lightning asks of the modules around it."""
        return super().train(False)

    def grid(self, size: int | None = None) -> tuple[int, int]:
        """Rows and columns of the patch grid of a square image of ``size`` pixels."""
        side = (size or self.image_size) // self.patch
        return side, side

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over weights, config, preprocessing and precision: everything that a hidden state depends on."""
        sha = hashlib.sha256()
        facts = {
            "config": {
                k: v for k, v in self.config.to_dict().items() if not k.startswith("_") and k != "transformers_version"
            },
            "mean": self.mean,
            "std": self.std,
            "image_size": self.image_size,
            "precision": self.precision,
        }
        sha.update(json.dumps(facts, sort_keys=True, default=str).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            sha.update(key.encode())
            sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def normalise(self, images: np.ndarray[Any, Any] | Tensor) -> Tensor:
        """uint8 images ``[B, H, W, 3]`` to the encoder's input ``[B, 3, H, W]``, float32, on its device."""
        pixels = torch.as_tensor(images).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        scale, shift = self._scale_shift()
        return pixels.mul_(scale.to(self.device)).add_(shift.to(self.device))

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one encoder a process
    def _scale_shift(self) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor(self.mean).view(1, 3, 1, 1), torch.tensor(self.std).view(1, 3, 1, 1)
        return 1 / (255 * std), -mean / std

    @torch.inference_mode()
    def encode(self, images: np.ndarray[Any, Any] | Tensor, layers: Sequence[int]) -> Tensor:
        """Hidden states of ``layers`` for uint8 images ``[B, H, W, 3]`` → ``[layers, B, tokens, dim]``.

        Patch tokens only: prefix tokens are split off by the config's count. Under bf16 autocast the residual stream
        keeps the dtype that transformers gives it.
        """
        return self.hidden_states(self.normalise(images), layers)

    def hidden_states(self, pixels: Tensor, layers: Sequence[int]) -> Tensor:
        """The same from normalised pixels ``[B, 3, H, W]``."""
        extra = {"interpolate_pos_encoding": True} if self.family.interpolate else {}
        with self.autocast():
            output = self.model(pixel_values=pixels, output_hidden_states=True, **extra)
        states = output.hidden_states
        if len(states) != self.depth + 1:
            raise WorkbenchError(
                f"{self.name} returned {len(states)} hidden states; {self.depth + 1} were expected (embeddings and "
                f"{self.depth} blocks). Its family '{self.family_name}' is not read correctly."
            )
        return torch.stack([states[layer][:, self.prefix_tokens :] for layer in layers])

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the encoder runs in."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def passport(self) -> dict[str, Any]:
        """What a study needs to know of its encoder; shown by ``workbench layers`` and kept with every study."""
        grid = self.grid()
        return {
            "encoder": self.name,
            "revision": self.revision,
            "family": self.family_name,
            "depth": self.depth,
            "dim": self.dim,
            "patch": self.patch,
            "image_size": self.image_size,
            "grid": list(grid),
            "tokens": grid[0] * grid[1],
            "prefix_tokens": self.prefix_tokens,
            "final_norm": self.family.final_norm,
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
    if platform.system() != "Linux":
        return False
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def _read_config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise WorkbenchError(f"encoder folder {name} holds no config.json; it must be a transformers model folder.")
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise WorkbenchError(
            f"encoder '{name}' is neither a transformers folder nor a model that can be had from the hub: {first}"
        ) from None


def _family(config: Any, name: str) -> Family:
    kind = config.model_type
    if kind not in FAMILIES:
        raise WorkbenchError(
            f"encoder '{name}' is of the family '{kind}', which is not known.{nearest(kind, FAMILIES)}"
        )
    return FAMILIES[kind]


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
        first = str(error).strip().splitlines()[0]
        raise WorkbenchError(f"encoder '{name}' could not be loaded from safetensors weights: {first}") from None
    finally:
        chatter.set_verbosity(level)
        chatter.enable_progress_bar()
    assert isinstance(model, nn.Module)
    return model


def _normalisation(name: str, revision: str | None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels, from the model's preprocessor_config.json."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        processor, _ = BaseImageProcessor.get_image_processor_dict(name, revision=revision)
        return [float(v) for v in processor["image_mean"]], [float(v) for v in processor["image_std"]]
    except (OSError, KeyError, TypeError) as error:
        raise WorkbenchError(
            f"encoder '{name}' has no preprocessor_config.json with image_mean and image_std, so its input scale is "
            f"unknown ({type(error).__name__})."
        ) from None
