"""The vision-language model: connector and decoder as one LightningModule, in the manner of LLaVA."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.fusion.base import Grid
from fusion_workbench.modules.language import generation
from fusion_workbench.modules.language.connector import LanguageConnector
from fusion_workbench.modules.language.decoder import Decoder
from fusion_workbench.modules.language.sharding import shard
from fusion_workbench.modules.language.splice import Side, Spliced, splice
from fusion_workbench.modules.language.visual import VisualInput
from fusion_workbench.modules.optim import MMFUSER_LLAVA, Recipe, make_optimizer

Batch = Mapping[str, Tensor]


class VisionLanguageModel(L.LightningModule):
    """Features → connector → image tokens among the words → decoder.

    A batch holds ``input_ids`` int64 ``[B, L]`` (``IMAGE_ID`` where an image stands), ``labels`` int64 ``[B, L]``
    (-100 where nothing is learned), ``attention_mask`` bool ``[B, L]`` and ``features [layers, N, T, dim]`` of its N
    images in the order of their words.

    Args:
        connector: trained.
        decoder: frozen, with LoRA or in full, as it is handed in.
        grid: rows and columns of the encoder's tokens.
        recipe: how the parts are trained; by default as MMFuser's first stage.
        layers: what the first axis of the features holds; by default the layers that the connector uses.

    Raises:
        WorkbenchError: the connector uses a layer that is not among ``layers``.
    """

    def __init__(
        self,
        connector: LanguageConnector,
        decoder: Decoder,
        grid: Grid,
        recipe: Recipe = MMFUSER_LLAVA,
        *,
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.add_module("adapter", connector)  # its name in the state dict, as in checkpoints of 0.1
        self.decoder = decoder
        self.grid = grid
        self.recipe = recipe
        held = tuple(connector.uses if layers is None else layers)
        if missing := [layer for layer in connector.uses if layer not in held]:
            raise WorkbenchError(f"the connector reads layers {missing}, and the features hold {list(held)}.")
        self._rows = [held.index(layer) for layer in connector.uses]
        self.strict_loading = False  # checkpoints hold what is trained; on_load_checkpoint checks that
        self.ended = False  # what is trained to its end needs no optimiser in its checkpoint
        self._random: Tensor | None = None
        self._cuda_random: Tensor | None = None

    @property
    def connector(self) -> LanguageConnector:
        """What is trained between encoder and decoder."""
        module = self.get_submodule("adapter")
        assert isinstance(module, LanguageConnector)
        return module

    # --- forward ------------------------------------------------------------------------------------------------

    def visual(self, features: Tensor) -> VisualInput:
        """What the decoder is given of the images: ``features [layers, N, T, dim]``; N may be 0."""
        if features.shape[1] == 0:
            return VisualInput(torch.zeros(0, 1, self.decoder.width, device=self.decoder.device))
        given: VisualInput = self.connector(self.read(features), self.grid)
        return given

    def read(self, features: Tensor) -> Tensor:
        """What the connector reads of ``features [layers, N, T, dim]``, in its order, on its device, in its dtype."""
        like = next(self.connector.parameters())
        chosen = features if self._rows == list(range(len(features))) else features[self._rows]
        if chosen.is_inference() and torch.is_grad_enabled():
            chosen = chosen.clone()  # autograd may not keep a tensor that was made in inference mode
        return chosen.to(like.device, like.dtype)

    def spliced(self, batch: Batch, side: Side = "right") -> Spliced:
        """The batch as the decoder reads it; what it injects is set until the next call or :meth:`clear_injected`."""
        given = self.visual(batch["features"])
        spliced = splice(
            batch["input_ids"],
            batch["attention_mask"],
            batch.get("labels"),
            given.tokens,
            self.decoder.embed,
            side=side,
        )
        if batch["features"].shape[1] == 0 and self.device_mesh is not None and torch.is_grad_enabled():
            # Else the backward pass of text alone would skip frozen blocks that other devices gather together.
            spliced = replace(spliced, inputs_embeds=spliced.inputs_embeds + self._zero_loss())
        packed = {block: spliced.pack(values) for block, values in given.injected.items()}
        self.decoder.injector.set(packed, spliced.visual)
        return spliced

    def clear_injected(self) -> None:
        """Nothing is injected any more: a decoder may be shared by several models."""
        self.decoder.injector.clear()

    def forward(self, batch: Batch) -> tuple[Tensor, Spliced]:
        """Logits ``[B, S, vocabulary]`` and what they are of."""
        spliced = self.spliced(batch)
        return self.decoder(spliced.inputs_embeds, spliced.attention_mask, spliced.position_ids), spliced

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every answer token ``[P]``, and the row it is of, int64 ``[P]``."""
        spliced = self.spliced(batch)
        positions, targets = spliced.positions()
        logits = self.decoder(spliced.inputs_embeds, spliced.attention_mask, spliced.position_ids, positions)
        if not torch.is_grad_enabled():
            self.clear_injected()  # else after the backward pass, in which checkpointed blocks run again
        losses = F.cross_entropy(logits, targets, reduction="none")
        return losses, positions // spliced.labels.shape[1]

    def loss_per_example(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of each row's answer tokens, ``[B]``; 0 for a row without any."""
        losses, rows = self.token_losses(batch)
        sums = losses.new_zeros(len(batch["input_ids"])).index_add(0, rows, losses)
        return sums / torch.bincount(rows, minlength=len(sums)).clamp_min(1)

    # --- training -----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Sharded over the devices where Lightning's strategy has a mesh of them."""
        if self.device_mesh is not None:
            computes = torch.bfloat16 if str(self.trainer.precision) == "bf16-mixed" else None
            shard(self, self.decoder.layers, self.device_mesh["data_parallel"], computes)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy over the answer tokens of the batch.

        With accumulated batches or several processes the step follows the mean of their means, as LLaVA's does: a
        token of a batch with few answers then counts for more.
        """
        losses, _ = self.token_losses(batch)
        loss = losses.sum() / max(1, losses.numel())
        if batch["features"].shape[1] == 0:  # text alone: other processes wait for gradients of every parameter
            loss = loss + self._zero_loss()
        return loss

    def _zero_loss(self) -> Tensor | float:
        """0, with a gradient for every trained parameter of the connector."""
        return sum(p.sum() for p in self.connector.parameters() if p.requires_grad) * 0.0

    def on_after_backward(self) -> None:
        self.clear_injected()

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters as ``fuser``, ``gates``, ``projector`` and ``language``."""
        return self.connector.parts() | {"language": self.decoder.trained()}

    def configure_optimizers(self) -> Any:
        mixed = "mixed" in str(self.trainer.precision)  # Lightning will not clip what a fused step may unscale
        optimizer, schedule = make_optimizer(self.parts(), self.recipe, self._steps(), fused=not mixed)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps(self) -> int:
        """Optimizer steps of the whole training."""
        steps = int(self.trainer.estimated_stepping_batches)
        if self.trainer.ckpt_path is not None:
            # To estimate them Lightning has opened the loader, and would not give it the state it is resumed with.
            self.trainer.fit_loop._combined_loader = None
        return steps

    # --- answers ------------------------------------------------------------------------------------------------

    def generate(self, batch: Batch, max_new_tokens: int) -> list[str]:
        """Greedy answers to the prompts of a batch: ``input_ids``, ``attention_mask`` and ``features``."""
        with torch.no_grad():
            try:
                return generation.generate(self.decoder, self.spliced(_prompt(batch), "left"), max_new_tokens)
            finally:
                self.clear_injected()

    def stream(self, batch: Batch, max_new_tokens: int) -> Iterator[str]:
        """The same of one prompt, piece by piece."""
        with torch.no_grad():
            spliced = self.spliced(_prompt(batch), "left")
        try:
            yield from generation.stream(self.decoder, spliced, max_new_tokens)
        finally:
            self.clear_injected()

    # --- checkpoints --------------------------------------------------------------------------------------------

    def trained_names(self) -> set[str]:
        """Names in the state dict of what is trained: the connector, and of the decoder what has gradients."""
        held = self.decoder.named_parameters(remove_duplicate=False)  # a tied map has two names
        learned = {f"decoder.{name}" for name, p in held if p.requires_grad}
        return learned | {f"adapter.{name}" for name in self.connector.state_dict()}

    def check_names(self, held: Iterable[str]) -> None:
        """Raises WorkbenchError where a checkpoint holds other weights than are trained: too few, or too many."""
        expected = self.trained_names()
        if wrong := sorted(set(held) ^ expected):
            state = "does not hold" if wrong[0] in expected else "holds"
            raise WorkbenchError(
                f"the checkpoint is of another model or another way of training it: it {state} {wrong[0]} "
                f"({len(wrong)} names differ)."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is frozen comes from its own files; dropout goes on where it was."""
        names = self.trained_names()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in names}
        if self.ended:
            checkpoint["optimizer_states"] = []
        checkpoint["random_state"] = torch.get_rng_state()
        if self.device.type == "cuda":  # where dropout is drawn on the device
            checkpoint["cuda_random_state"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises WorkbenchError for a checkpoint of another model."""
        # Where the model is sharded its strategy has loaded the weights, and taken them out, before.
        self.check_names(checkpoint.get("state_dict", self.trained_names()))
        self._random = checkpoint.get("random_state")
        self._cuda_random = checkpoint.get("cuda_random_state")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._random is not None:
            torch.set_rng_state(self._random.cpu())
            self._random = None
        if self._cuda_random is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._cuda_random.cpu(), self.device)
        self._cuda_random = None


def _prompt(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "features")}
