"""A trained connector: frozen encoder, fuser and projector in one module, from images to tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.fusion import Fusion

Images = np.ndarray[Any, np.dtype[np.uint8]]


class VisualConnector(nn.Module):
    """``images → encoder → the layers that the fuser uses → fuser → projector → tokens [B, T, width]``.

    Gradients reach fuser and projector, never the encoder.

    Args:
        encoder: frozen.
        fuser: from ``[layers, B, cells, dim]`` to ``[B, T, out_dim]``.
        projector: to ``[B, T, width]``.
        width: channels of a token.
        opened: turns what :meth:`forward` is given into uint8 ``[B, H, W, 3]`` of the encoder's size.

    Attributes:
        layers: those of the encoder that are read, in the fuser's order.
        grid: rows and columns of the encoder's tokens.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        fuser: Fusion,
        projector: nn.Module,
        width: int,
        opened: Callable[[Any], Images],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.fuser = fuser
        self.projector = projector
        self.width = width
        self.layers = fuser.uses
        self.grid = encoder.grid()
        self._opened = opened

    @property
    def token_map(self) -> Tensor:
        """The cell of :attr:`grid` that each token stands for, int64 ``[T]``; -1 for one of no cell."""
        return self.fuser.token_map(self.grid)

    def forward(self, images: Any) -> Tensor:
        """Tokens ``[B, T, width]`` of a picture or a list of them: paths, PIL images or uint8 arrays ``[H, W, 3]``.

        Raises:
            WorkbenchError: one of them is not a picture.
        """
        return self.from_features(self.encoder.encode(self._opened(images), self.layers))

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """The same from the encoder's input ``[B, 3, H, W]``, normalised as its preprocessor does."""
        with torch.inference_mode():
            features = self.encoder.hidden_states(pixels, self.layers)
        return self.from_features(features)

    def from_features(self, features: Tensor) -> Tensor:
        """The same from hidden states ``[layers, B, cells, dim]`` of :attr:`layers`, in their order."""
        if features.is_inference() and torch.is_grad_enabled():
            features = features.clone()  # autograd may not keep a tensor that was made in inference mode
        like = next(self.projector.parameters())
        tokens: Tensor = self.projector(self.fuser(features.to(like.device, like.dtype), self.grid))
        return tokens
