"""An encoder whose layers are known: noise, and in two of them each a half of what there is to read.

For studies that test the referee (contract 7): whatever it names as the layers to read must be the planted ones.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.modules.encoders.description import Size
from fusion_workbench.modules.encoders.encoder import VisionEncoder

PREFIX = "planted:"
_SIDE, _PATCH, _WAYS = 8, 4, 3
_DEFAULTS: dict[str, Any] = {"depth": 4, "dim": 16, "signal": (1, 3), "strength": 1.0, "seed": 0}


class PlantedEncoder(VisionEncoder):
    """Hidden states of the images of :class:`datamodules.sources.planted.Planted`, 2 × 2 tokens each.

    A token of layer l is standard normal noise of its image; in the two layers of ``signal`` a vector of length
    ``strength`` is added to every token, one of three in either. The first layer's tells the class's first digit in
    base three, the second's the second: either alone is right one time in three, both together name the class.

    Args:
        name: ``planted:`` and any of ``depth=4,dim=16,signal=1+3,strength=1.0,seed=0``.

    Raises:
        WorkbenchError: a key that is not one of these, a value that is none, or layers that the depth does not have.
    """

    def __init__(self, name: str, *, image_size: int | Sequence[int] = _SIDE) -> None:
        nn.Module.__init__(self)
        if image_size not in (0, _SIDE):
            raise WorkbenchError(f"encoder.image_size is {image_size}; a planted encoder reads images of {_SIDE} px.")
        facts = _parse(name)
        self.name = name
        self.depth, self.dim = int(facts["depth"]), int(facts["dim"])
        self.signal: tuple[int, ...] = facts["signal"]
        self.image_size: Size = _SIDE
        self.patch, self.prefix_tokens = _PATCH, 0
        self.precision, self.revision, self.pinned = "float32", None, True
        self.family_name = "planted"
        self._facts = facts
        generator = torch.Generator().manual_seed(int(facts["seed"]))
        vectors = torch.randn(len(self.signal), _WAYS, self.dim, generator=generator)
        vectors -= vectors.mean(1, keepdim=True)
        self.register_buffer("vectors", facts["strength"] * nn.functional.normalize(vectors, dim=-1))

    @property
    def device(self) -> torch.device:
        return self.get_buffer("vectors").device

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(["planted/1", self._facts], sort_keys=True).encode()).hexdigest()

    def fingerprint_under(self, precision: str) -> str:
        """The same: it computes in float32 alone."""
        return self.fingerprint

    @property
    def weights_fingerprint(self) -> str:
        return self.fingerprint

    @property
    def config_fingerprint(self) -> str:
        return self.fingerprint

    def normalise(self, images: Any) -> Tensor:
        """uint8 ``[B, 8, 8, 3]`` → ``[B, 3, 8, 8]`` as they are: pixels are numbers here."""
        return torch.as_tensor(images).to(self.device).permute(0, 3, 1, 2)

    def hidden_states(self, pixels: Tensor, layers: Sequence[int]) -> Tensor:
        """``[layers, B, 4, dim]``."""
        plain = pixels.to(torch.int64).cpu()
        rows, columns = self.grid()
        noise = torch.stack([self._noise(image, rows * columns) for image in plain], dim=1)
        classes = plain[:, 0, 0, 0] % _WAYS**2  # of an image that is none of theirs, such as a blank one, too
        digits = torch.stack([classes // _WAYS, classes % _WAYS])  # [2, B]
        states = noise.to(self.device)
        for layer, vectors, digit in zip(self.signal, self.get_buffer("vectors"), digits, strict=True):
            states[layer] += vectors[digit.to(self.device)][:, None]
        return states[list(layers)]

    def _noise(self, image: Tensor, tokens: int) -> Tensor:
        """``[depth + 1, tokens, dim]``, the same whenever the image is the same."""
        seed = functools.reduce(lambda number, byte: number * 256 + byte, image[:, 0, 1:3].T.reshape(-1).tolist(), 0)
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.depth + 1, tokens, self.dim, generator=generator)

    def autocast(self) -> nullcontext[None]:
        return nullcontext()

    def encoder_info(self) -> dict[str, Any]:
        rows, columns = self.grid()
        return {
            "encoder": self.name,
            "revision": None,
            "family": self.family_name,
            "depth": self.depth,
            "dim": self.dim,
            "patch": _PATCH,
            "image_size": _SIDE,
            "grid": [rows, columns],
            "tokens": rows * columns,
            "prefix_tokens": 0,
            "final_norm": False,
            "positions": "none",
            "precision": self.precision,
            "parameters": 0,
            "fingerprint": self.fingerprint,
        }


def _parse(name: str) -> dict[str, Any]:
    facts = dict(_DEFAULTS)
    for part in filter(None, name.removeprefix(PREFIX).split(",")):
        key, _, value = part.partition("=")
        if key not in facts:
            raise WorkbenchError(f"encoder.name '{name}': unknown key '{key}'.{nearest(key, facts)}")
        try:
            kind = type(facts[key])
            facts[key] = tuple(int(layer) for layer in value.split("+")) if kind is tuple else kind(value)
        except ValueError:
            like = "+".join(map(str, _DEFAULTS[key])) if key == "signal" else _DEFAULTS[key]
            raise WorkbenchError(f"encoder.name '{name}': {key} is '{value}'; it must be like {like}.") from None
    signal, depth = facts["signal"], facts["depth"]
    if len(set(signal)) != 2 or not all(0 <= layer <= depth for layer in signal):
        raise WorkbenchError(f"encoder.name '{name}': signal must be two layers from 0 to the depth of {depth}.")
    if facts["dim"] < 4 or not facts["strength"] >= 0:
        raise WorkbenchError(f"encoder.name '{name}': dim must be at least 4 and strength at least 0.")
    return facts
