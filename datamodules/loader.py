"""The loader of training, whose place in the epoch is part of Lightning's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.order import EpochBatches

Batch = dict[str, Tensor]


@dataclass
class Resumption:
    """What a checkpoint says of the order of training; forgotten once training has gone on from there."""

    state: dict[str, int] | None = None


class TrainingLoader:
    """Batches in the order of :class:`EpochBatches`, from where a checkpoint was written.

    A run that was stopped after some step of an epoch and is resumed sees exactly the batches that were left.
    :class:`AblationDataModule` keeps :meth:`state_dict` in the checkpoint (of the process of rank 0; the place is
    that of all) and hands it back as ``resumption``. Lightning would do the same with a loader that has a state, but
    forgets to where a schedule has read the number of steps from it. This is no ``DataLoader``, so Lightning puts no
    sampler of its own instead of ours.

    Args:
        examples: gives whole batches (``__getitems__``).
        sampler: the batches; Lightning sets its epoch.
        num_workers: processes that fetch batches.
        resumption: where to begin; shared, as Lightning may open several loaders before it trains.

    Raises:
        WorkbenchError: the checkpoint was written over other batches.
    """

    def __init__(
        self,
        examples: Dataset[Batch],
        sampler: EpochBatches,
        num_workers: int = 0,
        resumption: Resumption | None = None,
    ) -> None:
        self.sampler = sampler
        self._examples = examples
        self._num_workers = num_workers
        self._resumption = resumption or Resumption()
        self._place = (0, 0)  # epoch, batches of it given out
        if self._resumption.state is not None:
            self.load_state_dict(self._resumption.state)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing below runs before the first batch is fetched, and by then Lightning, which makes
        # iterators early, has set the sampler's epoch.
        epoch = self.sampler.epoch
        left, self._resumption.state = self._resumption.state, None
        first = left["batches"] if left is not None and left["epoch"] == epoch else 0
        loader: DataLoader[Batch] = DataLoader(
            self._examples,
            batch_sampler=self.sampler.batches()[first:],
            num_workers=self._num_workers,
            collate_fn=keep_batch,
        )
        for number, batch in enumerate(_told_in_one_line(loader), first + 1):
            self._place = (epoch, number)
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._place[0], "batches": self._place[1], **self._facts()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        changed = [
            f"{name} {state_dict[name]} (now {now})" for name, now in self._facts().items() if state_dict[name] != now
        ]
        if changed:
            raise WorkbenchError(
                f"the checkpoint was written in another order of training: {', '.join(changed)}; "
                "resume with the same data, seed and batch size."
            )
        self._place = (state_dict["epoch"], state_dict["batches"])
        self._resumption.state = state_dict

    def _facts(self) -> dict[str, int]:
        order = self.sampler.order
        return {
            "examples": len(order),
            "order_seed": order.seed,
            "batch_size": self.sampler.batch_size * self.sampler.world_size,
        }


def _told_in_one_line(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The batches; what a worker cannot read is said as it is without workers, where torch adds a traceback."""
    try:
        yield from loader
    except WorkbenchError as error:
        before, name, told = str(error).rpartition(f"{WorkbenchError.__name__}: ")
        if before.startswith("Caught ") and name:
            raise WorkbenchError(told.strip()) from None
        raise


def keep_batch(batch: Any) -> Any:
    """A collate function: ``__getitems__`` has made the batch."""
    return batch
