"""The causal language model: any of transformers', by name or folder, frozen, with LoRA, or trained in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.modules.encoders.encoder import resolve_precision
from fusion_workbench.modules.language.injector import Injector
from fusion_workbench.system.pretrained import load_pretrained
from fusion_workbench.system.pretrained_config import check_described, check_sizes, read_pretrained_config

Trains = Literal["frozen", "lora", "full"]


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank updates ``W + alpha / rank · B A`` of the linear maps (LoRA, arXiv 2106.09685, eq. 3).

    ``targets`` are names of linear layers within a block, such as ``q_proj``; none: all of them. The defaults of a
    study stand in its configuration (``language_model.lora``) alone.
    """

    rank: int
    alpha: int
    dropout: float
    targets: tuple[str, ...] = ()


class Decoder(nn.Module):
    """A causal language model that reads embeddings.

    Right after the start it is frozen. Where it computes in bf16, the linear maps that are not trained are also kept
    in bf16, so that they need not be converted for every batch; norms and the residual stream stay in float32, and so
    does whatever is trained.

    Args:
        model: a transformers model for causal language modelling.
        tokenizer: its tokenizer.
        precision: ``float32``, ``bf16`` (autocast), or ``auto``: bf16 where the hardware gains from it.

    Attributes:
        trains: ``frozen``, ``lora`` or ``full``.
        layers: the decoder blocks, in their order.
        width: channels of a token.
        depth: number of blocks.
        injector: what adds to the hidden states of its blocks; one, whoever shares the decoder.
        ends: ids that end an answer besides the model's own; those of the chat template by which it is trained, whose
            end token (``<|im_end|>``) a base model's tokenizer need not know as one.
    """

    def __init__(self, model: Any, tokenizer: Any, precision: str = "float32", name: str = "") -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or str(getattr(model.config, "name_or_path", "")) or type(model).__name__
        self.config: Any = model.config.get_text_config()
        self.width: int = self.config.hidden_size
        self.depth: int = self.config.num_hidden_layers
        self.precision = resolve_precision(precision, str(next(model.parameters()).device))
        self.trains: Trains = "frozen"
        self.ends: tuple[int, ...] = ()
        self.checkpointing = False
        self._tuner: list[Any] = []  # peft's LoraModel; in a list, so that it is no submodule
        self._compiled: list[Any] = []  # torch's compiled form of the same model, likewise
        self._positions: Tensor | None = None
        self.model.get_output_embeddings().register_forward_pre_hook(self._only_positions)
        self.injector = Injector(self.layers)  # a model without blocks is refused here
        self.freeze()

    @classmethod
    def load(
        cls,
        name: str,
        revision: str | None = None,
        *,
        attention: str = "sdpa",
        precision: str = "auto",
        device: str = "cpu",
    ) -> Decoder:
        """The model and tokenizer of a folder or a hub name, from safetensors.

        What computes in bf16 is read in the type that its files are in, and moved to the device in the types that are
        kept: neither the host nor the device ever holds 16-bit weights in float32.

        Args:
            attention: an implementation of transformers: ``sdpa``, ``eager``, ``flash_attention_2`` …

        Raises:
            WorkbenchError: there is no such model or tokenizer, or the attention is not to be had.
        """
        from transformers import AutoModelForCausalLM

        what = f"language model '{name}'"
        config, tokenizer = read_language(name, revision, what, "could not be loaded")
        if Path(name).is_dir():
            make: Any = AutoModelForCausalLM
            check_described(Path(name), make.from_config, config, what)
        precision = resolve_precision(precision, device)
        model = load_pretrained(
            AutoModelForCausalLM,
            name,
            what,
            revision=revision,
            trust_remote_code=False,
            attn_implementation=attention,
            dtype="auto" if precision == "bf16" else torch.float32,
        )
        return cls(model, tokenizer, precision, name).to(device)

    # --- what it is made of -------------------------------------------------------------------------------------

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder blocks: the outermost module list that is as long as the model is deep.

        Raises:
            WorkbenchError: there is none.
        """
        for module in self.model.modules():  # outer before inner
            if isinstance(module, nn.ModuleList) and len(module) == self.depth:
                return module
        raise WorkbenchError(f"language model '{self.name}' has no list of {self.depth} decoder blocks.")

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end an answer: the tokenizer's, those of the generation config, and :attr:`ends`."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        listed = named if isinstance(named, list) else [named]
        return sorted({int(i) for i in [self.tokenizer.eos_token_id, *listed, *self.ends] if i is not None})

    @property
    def pad_id(self) -> int:
        """What pads generated rows; where the tokenizer names none, what ends them."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else (self.stop_ids or [0])[0]

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings ``int64 [...] → float32 [..., width]``."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded.float()

    @torch.no_grad()
    def embedding_rms(self) -> float:
        """Root mean square of the word embeddings: the scale of what the first block reads."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return float(weight.float().square().mean().sqrt())

    # --- what is trained ----------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Nothing is trained."""
        self.trains = "frozen"
        self.model.requires_grad_(False)
        self._store(torch.bfloat16 if self.precision == "bf16" else torch.float32)

    def train_fully(self) -> None:
        """Everything is trained; weights in float32."""
        self._without_lora("train_fully")
        self.trains = "full"
        self._store(torch.float32)
        self.model.requires_grad_(True)

    def add_lora(self, options: LoraOptions) -> None:
        """Low-rank updates are trained, in float32, and nothing else.

        Raises:
            WorkbenchError: peft is missing, there are updates already, or a target is not in the model.
        """
        try:
            from peft import LoraConfig
            from peft.tuners.lora import LoraModel
        except ImportError:
            raise WorkbenchError(
                "training the language model with LoRA needs peft: pip install 'fusion-workbench[peft]'"
            ) from None
        self._without_lora("add_lora")
        self.freeze()
        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=self._targets(options.targets),
            fan_in_fan_out=any(_is_conv1d(module) for module in self.layers.modules()),
        )
        self._tuner = [LoraModel(self.model, config, "default")]
        for parameter in self.lora_parameters():
            parameter.data = parameter.data.float()
        self.trains = "lora"

    def merge_lora(self) -> None:
        """Add the updates to the weights and let go of them; the model is frozen afterwards."""
        if not self._tuner:
            raise WorkbenchError("there is no LoRA to merge: the language model has none.")
        self._store(torch.float32)  # the sum is rounded once, not twice
        self._tuner.pop().merge_and_unload()
        self.freeze()

    @property
    def lora_config(self) -> Any:
        """peft's config of the updates. Raises WorkbenchError where there are none."""
        if not self._tuner:
            raise WorkbenchError("the language model has no LoRA.")
        return self._tuner[0].peft_config["default"]

    def lora_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if ".lora_" in name]

    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def checkpoint_gradients(self) -> None:
        """Run each block again in the backward pass instead of keeping its activations (arXiv 1604.06174)."""
        how = {"use_reentrant": False}  # the reentrant form loses gradients of inputs that are given by name
        if hasattr(self.model, "activation_checkpointing_enable"):  # the name from transformers 5.23 on
            self.model.activation_checkpointing_enable(how)
        else:
            self.model.gradient_checkpointing_enable(how)
        self.checkpointing = True
        self.train(self.training)

    def compile(self, *, backend: str = "inductor") -> None:
        """Let :meth:`forward` run through ``torch.compile``; generation stays as it is."""
        self._compiled = [torch.compile(self.model, dynamic=True, backend=backend)]

    def train(self, mode: bool = True) -> Decoder:
        """A frozen model stays in eval mode: its dropout would be noise that nothing learns from."""
        super().train(mode and self.trains != "frozen")
        if self.checkpointing:
            for block in self.layers:
                block.training = mode  # of the block alone: transformers checkpoints only what is in training mode
        self.training = mode
        return self

    # --- running ------------------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where the decoder computes in it."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token.

        Args:
            inputs_embeds: ``[B, S, width]``.
            attention_mask: bool ``[B, S]``; False: padding.
            position_ids: int64 ``[B, S]``.
            positions: int64 ``[P]`` into the flattened ``[B·S]``: only there are logits computed. The vocabulary is
                wide, and few of the tokens are answers.

        Returns:
            float32 ``[B, S, vocabulary]``, or ``[P, vocabulary]``.
        """
        model = self._compiled[0] if self._compiled else self.model
        self._positions = positions
        try:
            with self.autocast():
                output = model(
                    inputs_embeds=inputs_embeds,
                    attention_mask=attention_mask.long(),
                    position_ids=position_ids,
                    use_cache=False,
                )
        finally:
            self._positions = None
        logits: Tensor = output.logits
        return logits.float()

    def _only_positions(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._positions is None:
            return None
        return (inputs[0].flatten(0, 1).index_select(0, self._positions),)

    # --- inside -------------------------------------------------------------------------------------------------

    def _store(self, dtype: torch.dtype) -> None:
        """Keep the frozen linear maps in ``dtype``, and all else in float32; a tied output map takes the embedding
        along.
        """
        maps = {p for module in self._linear_maps() for p in module.parameters(recurse=False)}
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype if parameter in maps else torch.float32)

    def _linear_maps(self) -> Iterator[nn.Module]:
        yield self.model.get_output_embeddings()
        yield from (m for m in self.layers.modules() if isinstance(m, nn.Linear) or _is_conv1d(m))

    def _targets(self, named: Sequence[str]) -> list[str]:
        """Full names of the linear maps of the blocks that the last parts of their names pick."""
        inside = {id(module) for module in self.layers.modules()}
        names = [
            name
            for name, module in self.model.named_modules()
            if id(module) in inside and (isinstance(module, nn.Linear) or _is_conv1d(module))
        ]
        names_of_maps = sorted({name.rpartition(".")[2] for name in names})
        for target in named:
            if target not in names_of_maps:
                raise WorkbenchError(f"LoRA target '{target}' is not in the language model's blocks: {names_of_maps}.")
        return [name for name in names if not named or name.rpartition(".")[2] in named]

    def _without_lora(self, what: str) -> None:
        if self._tuner:
            raise WorkbenchError(f"the language model has LoRA updates already; merge them before {what}.")


def read_language(name: str, revision: str | None, what: str, unknown: str) -> tuple[Any, Any]:
    """Config and tokenizer of a folder or hub name, which say what the weights will be.

    Args:
        what, unknown: as in :func:`system.pretrained_config.read_pretrained_config`.

    Raises:
        WorkbenchError: there is no such model or tokenizer, or the config is broken.
    """
    from transformers import AutoTokenizer

    config = read_pretrained_config(name, revision, what, unknown)
    check_sizes(config.get_text_config(), what, ("num_hidden_layers", "hidden_size"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        raise WorkbenchError(f"{what} {unknown}: its tokenizer: {first_line(error)}") from None
    return config, tokenizer


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear map, whose weight is stored transposed."""
    return type(module).__name__ == "Conv1D"
