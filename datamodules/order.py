"""The order of training: a permutation of the examples that depends on seed and epoch, cut into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch

from fusion_workbench.core.errors import WorkbenchError

T = TypeVar("T")


class Order(Protocol):
    """A permutation of the examples for each epoch."""

    seed: int

    def __len__(self) -> int: ...

    def of(self, epoch: int) -> list[int]:
        """All examples, each once."""


class EpochOrder:
    """A permutation of the examples that depends on seed and epoch and on nothing else."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return self.size

    def of(self, epoch: int) -> list[int]:
        return _shuffled(range(self.size), _generator(f"{self.seed}|{epoch}"))


class LengthGroupedOrder:
    """A permutation in which the examples of a batch are about equally long, so that little of it is padding.

    Megabatches are drawn at random and sorted by length, as by ``group_by_length`` of transformers' Trainer; the
    batches cut from them come in random order. Examples with and without images stay apart, but for one batch per epoch
    at most, made of what is left of both. What fills no batch comes last, and is drawn at random too, so no
    length is favoured when it is dropped. LLaVA's grouping is another: :class:`ModalityLengthOrder`.

    Args:
        lengths: of the examples, in positions.
        text_only: which of them show no image.
        batch_size: of all processes together.
        seed: of the order.
        megabatch: batches sorted together. More: less padding, less chance in who meets whom.
    """

    def __init__(
        self, lengths: Sequence[int], text_only: Sequence[bool], batch_size: int, seed: int, megabatch: int = 32
    ) -> None:
        self.lengths = lengths
        self.kinds = [[n for n, alone in enumerate(text_only) if bool(alone) is kind] for kind in (False, True)]
        self.batch_size = batch_size
        self.seed = seed
        self.megabatch = megabatch

    def __len__(self) -> int:
        return len(self.lengths)

    def of(self, epoch: int) -> list[int]:
        generator = _generator(f"{self.seed}|{epoch}|length")
        batches: list[list[int]] = []
        left: list[int] = []
        for kind in self.kinds:
            shuffled = _shuffled(kind, generator)
            in_batches = len(shuffled) - len(shuffled) % self.batch_size
            left += shuffled[in_batches:]
            for mega in _chunks(shuffled[:in_batches], self.megabatch * self.batch_size):
                batches += _chunks(sorted(mega, key=lambda n: -self.lengths[n]), self.batch_size)
        left = _shuffled(left, generator)
        if len(left) >= self.batch_size:
            batches.append(left[: self.batch_size])
            left = left[self.batch_size :]
        places = _shuffled(range(len(batches)), generator)
        return [n for place in places for n in batches[place]] + left


class ModalityLengthOrder:
    """A permutation in which a step's examples all show images, or none does, and its batches are about equally long.

    LLaVA's ``group_by_modality_length`` (llava/train/llava_trainer.py): the examples of a step, of all devices and all
    accumulated batches together, are drawn at random among those with images or those without. They are sorted by
    length only to be shared out: each, the longest first, goes to the batch that holds the fewest words so far. Steps
    come in random order; what is left of both kinds, together, comes last. Where all are of one kind nothing is drawn
    a second time. So, unlike with :class:`LengthGroupedOrder`, whom an example meets does not depend on its length.

    The random numbers are drawn as LLaVA draws them, from a generator of the epoch's own and not from torch's global
    one, whose state there depends on all that came before.

    Args:
        lengths: of the examples; LLaVA counts words.
        text_only: which of them show no image.
        batch_size: of a device.
        seed: of the order.
        devices: that train together.
        accumulate: batches of a device in a step.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        text_only: Sequence[bool],
        batch_size: int,
        seed: int,
        devices: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.lengths = lengths
        self.kinds = [[n for n, alone in enumerate(text_only) if bool(alone) is kind] for kind in (False, True)]
        self.batch_size, self.devices, self.accumulate = batch_size, devices, accumulate
        self.seed = seed

    def __len__(self) -> int:
        return len(self.lengths)

    def of(self, epoch: int) -> list[int]:
        """All examples; of each ``batch_size × devices`` in turn, device d's are every ``devices``-th from d."""
        generator = _generator(f"{self.seed}|{epoch}|modality_length")
        steps, *more = [self._steps(kind, generator) for kind in self.kinds if kind] or [[]]
        if more:
            (texts,) = more
            left = sorted(steps[-1] + texts[-1])
            steps = [*_shuffled([*steps[:-1], *texts[:-1]], generator), left]
        order = [n for step in steps for n in step]
        together = _chunks(order, self.batch_size * self.devices)
        return [n for chunk in together for n in self._interleaved(chunk)]

    def _steps(self, kind: list[int], generator: torch.Generator) -> list[list[int]]:
        """The examples of each step, batch after batch; the last may be short."""
        size = self.batch_size * self.devices * self.accumulate
        return [self._shared_out(step) for step in _chunks(_shuffled(kind, generator), size)]

    def _shared_out(self, step: list[int]) -> list[int]:
        step = sorted(step, key=lambda n: -self.lengths[n])
        count = self.devices * self.accumulate
        if len(step) % count:
            return [n for first in range(count) for n in step[first::count]]
        batches: list[list[int]] = [[] for _ in range(count)]
        for n in step:
            open_ones = [batch for batch in batches if len(batch) < len(step) // count]
            min(open_ones, key=lambda batch: sum(self.lengths[m] for m in batch)).append(n)
        return [n for batch in batches for n in batch]

    def _interleaved(self, together: list[int]) -> list[int]:
        """The devices' batches, one after another, as :class:`EpochBatches` shares them out again."""
        if len(together) < self.batch_size * self.devices:
            return together
        return [n for place in range(self.batch_size) for n in together[place :: self.batch_size]]


class EpochBatches:
    """The batches of one process: its share of each batch of all processes together.

    Process ``rank`` takes every ``world_size``-th example of a batch of ``world_size × batch_size``, so two
    processes see together what one process with twice the batch size sees. The last incomplete batch is left out.
    Lightning calls :meth:`set_epoch` before every training epoch.
    """

    def __init__(self, order: Order, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.order) // (self.batch_size * self.world_size)

    def batches(self) -> list[list[int]]:
        """Of the present epoch."""
        together = self.batch_size * self.world_size
        return [chunk[self.rank :: self.world_size] for chunk in _chunks(self.order.of(self.epoch), together)][
            : len(self)
        ]


def _chunks(examples: Sequence[int], size: int) -> list[list[int]]:
    return [list(examples[start : start + size]) for start in range(0, len(examples), size)]


def _shuffled(examples: Sequence[T], generator: torch.Generator) -> list[T]:
    return [examples[place] for place in torch.randperm(len(examples), generator=generator).tolist()]


def _generator(name: str) -> torch.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def check_batch(
    size: int, batch_size: int, processes: int = 1, left_out: int = 0, setting: str = "training.batch_size"
) -> None:
    """Hold ``batch_size``, of each of ``processes``, against the ``size`` examples of the training split.

    Args:
        left_out: examples that are too long to be among ``size``.
        setting: where the batch size stands, for the message.

    Raises:
        WorkbenchError: an epoch would hold less than one batch.
    """
    if size >= batch_size * processes:
        return
    each = f" in each of {processes} processes" if processes > 1 else ""
    without = f" ({left_out} left out for their length)" if left_out else ""
    raise WorkbenchError(
        f"{setting} is {batch_size}{each}, and there are {size} training examples{without}; a batch must fit into them."
    )
