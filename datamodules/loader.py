"""The loader of training, whose place in the epoch is part of Lightning's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.order import EpochBatches
from workbench.errors import WorkbenchError

Batch = dict[str, Tensor]


class TrainingLoader:
    """Batches in the order of :class:`EpochBatches`, from where a checkpoint was written.

    Lightning keeps :meth:`state_dict` in the checkpoint (of the process of rank 0; the place is that of all) and
    hands it back before it resumes: a run that was stopped after some step of an epoch sees exactly the batches
    that were left. It is no ``DataLoader``, so Lightning puts no sampler of its own in the place of ours.

    Args:
        examples: gives whole batches (``__getitems__``).
        sampler: the batches; Lightning tells it the epoch.
        num_workers: processes that fetch batches.

    Raises:
        WorkbenchError: (from ``load_state_dict``) the checkpoint was written over other batches.
    """

    def __init__(self, examples: Dataset[Batch], sampler: EpochBatches, num_workers: int = 0) -> None:
        self.sampler = sampler
        self._examples = examples
        self._num_workers = num_workers
        self._place = (0, 0)  # epoch, batches of it given out
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing below runs before the first batch is asked for, and by then Lightning, which makes
        # iterators early, has told the sampler the epoch.
        epoch = self.sampler.epoch
        first = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        loader: DataLoader[Batch] = DataLoader(
            self._examples,
            batch_sampler=self.sampler.batches()[first:],
            num_workers=self._num_workers,
            collate_fn=whole,
        )
        for number, batch in enumerate(loader, first + 1):
            self._place = (epoch, number)
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._place[0], "batches": self._place[1], **self._facts()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        facts = self._facts()
        changed = [
            f"{name} {state_dict.get(name)} (now {now})" for name, now in facts.items() if state_dict[name] != now
        ]
        if changed:
            raise WorkbenchError(
                f"the checkpoint was written in another order of training: {', '.join(changed)}; "
                "resume with the same data, seed and batch size."
            )
        self._place = self._resume = (state_dict["epoch"], state_dict["batches"])

    def _facts(self) -> dict[str, int]:
        order = self.sampler.order
        return {
            "examples": len(order),
            "order_seed": order.seed,
            "batch_size": self.sampler.batch_size * self.sampler.world_size,
        }


def whole(batch: Any) -> Any:
    """A collate function: ``__getitems__`` has made the batch."""
    return batch
