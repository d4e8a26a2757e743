"""The encoding pass: images in, shards out, at the speed of the encoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError, code_of
from fusion_workbench.datamodules.store.shards import Shard

if TYPE_CHECKING:
    from fusion_workbench.datamodules.sources.base import Source

_PREFETCH = 2  # batches of images drawn while one is encoded

Images = np.ndarray[Any, np.dtype[np.uint8]]


class EncoderLike(Protocol):
    """What the store and the data module need of an encoder."""

    @property
    def depth(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def image_size(self) -> int | tuple[int, int]: ...
    @property
    def fingerprint(self) -> str:
        """sha256 over weights, config, precision and preprocessing."""

    def grid(self, size: int | tuple[int, int] | None = None, /) -> tuple[int, int]: ...
    def encode(self, images: Images | Tensor, layers: Sequence[int], /) -> Tensor:
        """uint8 ``[B, H, W, 3]`` → ``[layers, B, tokens, dim]``, patch tokens alone."""


@dataclass(frozen=True)
class EncodingPass:
    """The images of one shard, and the layers of them that have to be encoded."""

    split: str
    shards: tuple[Shard, ...]  # of the same images, one per layer

    @property
    def images(self) -> range:
        return range(self.shards[0].start, self.shards[0].stop)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(shard.layer for shard in self.shards)


def load_images(source: Source, split: str, images: Sequence[int]) -> Images:
    """The source's images ``[B, H, W, 3]``, uint8."""
    made = []
    for image in images:
        with code_of(f"the source ({type(source).__module__}), at image {image} of {split},"):
            made.append(source.image(split, image))
    return np.stack(made)


def encode_passes(
    encoder: EncoderLike,
    source: Source,
    passes: Sequence[EncodingPass],
    write: Callable[[EncodingPass, Tensor], int],
    dtype: torch.dtype,
    batch_size: int,
    advance: Callable[[int], None],
) -> int:
    """Encode every pass and hand its states ``[layers, images, tokens, dim]`` to ``write``.

    Three hands: one thread draws the images to come, the caller's encodes, one writes the shards that are
    done. At most one shard waits to be written, so the memory is that of two. Returns the bytes written.
    """
    rows, columns = encoder.grid(encoder.image_size)
    written: list[Future[int]] = []
    with ThreadPoolExecutor(1, "images") as drawer, ThreadPoolExecutor(1, "shards") as writer:
        batches_of_images = _prefetched(drawer, source, passes, batch_size)
        for todo in passes:
            shape = (len(todo.shards), len(todo.images), rows * columns, encoder.dim)
            states = torch.empty(shape, dtype=dtype)
            first = todo.images.start
            for batch in torch.split(states, batch_size, dim=1):
                images = next(batches_of_images)
                batch.copy_(_checked(encoder.encode(images, todo.layers).to(dtype), batch, images, encoder))
                check_finite(batch, todo.layers, partial(_name, source, todo.split, first))
                first += len(images)
                advance(len(images))
            if written:
                written[-1].result()  # a full disk is reported here
            written.append(writer.submit(write, todo, states))
        return sum(future.result() for future in written)


def _prefetched(
    pool: ThreadPoolExecutor, source: Source, passes: Sequence[EncodingPass], batch_size: int
) -> Iterator[Images]:
    """The batches of all passes in order, each drawn while the ones before it are encoded."""
    batches = (
        (todo.split, todo.images[start : start + batch_size])
        for todo in passes
        for start in range(0, len(todo.images), batch_size)
    )
    waiting = deque(pool.submit(load_images, source, *batch) for batch in islice(batches, _PREFETCH))
    while waiting:
        images = waiting.popleft().result()
        waiting.extend(pool.submit(load_images, source, *batch) for batch in islice(batches, 1))
        yield images


def _checked(states: Tensor, expected: Tensor, images: Images, encoder: EncoderLike) -> Tensor:
    if states.shape != expected.shape:
        raise WorkbenchError(
            f"the encoder made features of shape {list(states.shape)} from images of {images.shape[1]} × "
            f"{images.shape[2]} px; {list(expected.shape)} was expected of {encoder.image_size} px."
        )
    return states


def check_finite(states: Tensor, layers: Sequence[int], name: Callable[[int], str]) -> None:
    """Refuse features that are no numbers, before anything is learned from them.

    Args:
        states: ``[layers, images, tokens, dim]``.
        name: the name of an image by its place in ``states``.

    Raises:
        WorkbenchError: with the first image and layer that are not.
    """
    if not states.numel():
        return
    low, high = states.flatten(2).aminmax(dim=2)
    bad = ~(torch.isfinite(low) & torch.isfinite(high))
    if bool(bad.any()):
        place = int(bad.any(0).nonzero()[0])
        layer = layers[int(bad[:, place].nonzero()[0])]
        raise WorkbenchError(
            f"the encoder gives values that are not finite (nan or infinite) for image {name(place)} at layer {layer}; "
            "nothing can be learned from them. Mend its weights, or encode with encoder.precision=float32."
        )


def _name(source: Source, split: str, first: int, place: int) -> str:
    """How a person finds the image at ``place`` of a batch that begins with image ``first``: by its row and its id."""
    identity = source.identity(split)["example_id"]
    image = first + place
    return f"{image} of {split}" + (f" ({identity.iloc[image]})" if image < len(identity) else "")


def progress_bar(console: Console, shown: bool) -> Progress:
    """A bar over images with their rate and the time left; silent where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal))


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.0f} images/s")
