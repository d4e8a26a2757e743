"""Tasks: geometry, heads that learn, and per-example scores that give the primary metric back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.probes.bank import objective
from fusion_workbench.modules.tasks import TASKS, Count, Digit, Locate, Read, Segment, Task, build_task, register_task
from fusion_workbench.modules.tasks.heads import box_iou, box_weights, centres, coverage, generalised_iou

GRID, WIDTH = (4, 6), 16


def batch_of(images: int, seed: int = 0, objects: int = 3) -> dict[str, Tensor]:
    """Targets of every task, with between one and ``objects`` objects an image."""
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, objects, 2, generator=draw) * 0.6
    boxes = torch.cat([corner, corner + 0.1 + 0.3 * torch.rand(images, objects, 2, generator=draw)], -1)
    number = torch.randint(1, objects + 1, (images,), generator=draw)
    valid = torch.arange(objects) < number.unsqueeze(1)
    points = boxes[..., :2] + (boxes[..., 2:] - boxes[..., :2]) * (0.25 + 0.5 * torch.rand(images, objects, 2))
    return {
        "read.label": torch.randint(5, (images, objects), generator=draw),
        "read.box": boxes,
        "read.valid": valid,
        "digit.label": torch.randint(4, (images,), generator=draw),
        "segment.box": boxes,
        "segment.valid": valid,
        "count.number": number.float(),
        "locate.box": boxes,
        "locate.point": points,
        "locate.valid": valid,
    }


def tasks(batch: dict[str, Tensor]) -> list[Task]:
    arrays = {name: values.numpy() for name, values in batch.items()}
    return [Read(5), Digit(4), Segment(0, arrays), Count(0, arrays), Locate(0, arrays)]


def names() -> list[str]:
    return [task.name for task in tasks(batch_of(8))]


def one(name: str, batch: dict[str, Tensor]) -> Task:
    return next(task for task in tasks(batch) if task.name == name)


def test_every_registered_task_is_held_here() -> None:
    assert set(names()) == set(TASKS)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(4, 12), split=st.integers(1, 3))
@pytest.mark.parametrize("name", names())
def test_outcomes_of_examples_give_the_metric_of_torchmetrics(name: str, seed: int, images: int, split: int) -> None:
    batch = batch_of(images, seed)
    torch.manual_seed(seed)
    task = one(name, batch_of(20, seed))
    head = task.head(WIDTH, 8)
    tokens = 3 * torch.randn(images, GRID[0] * GRID[1], WIDTH)
    metric, scores, items, stats = task.metric(), [], [], []
    for rows in torch.arange(images).split(split):
        part = {key: values[rows] for key, values in batch.items()}
        with torch.no_grad():
            logits = head(tokens[rows], part, GRID)
        task.update(metric, logits, part)
        each = task.scores(logits, part)
        scores.append(each[0])
        items.append(each[1])
        stats.append(task.statistics(logits, part))
    together = {key: torch.cat([part[key] for part in stats]) for key in stats[0]}
    assert task.value(torch.cat(scores), torch.cat(items), together) == pytest.approx(float(metric.compute()), abs=1e-5)
    assert all(len(values) == images for values in together.values())


@pytest.mark.parametrize("name", names())
def test_a_head_learns_from_tokens_that_hold_the_answer(name: str) -> None:
    """Tokens that carry their place and what covers them: every task gets far beyond chance on a few images."""
    batch = batch_of(8, seed=3)
    task = one(name, batch)
    tokens = torch.zeros(8, GRID[0] * GRID[1], WIDTH)
    tokens[..., :2] = 4 * centres(GRID, tokens)
    tokens[..., 2] = coverage(batch["segment.box"], batch["segment.valid"], GRID).flatten(1)
    tokens[..., 3:8] = torch.einsum(
        "bgt,bgc->btc",
        box_weights(batch["read.box"], GRID) * batch["read.valid"].unsqueeze(-1),
        torch.eye(5)[batch["read.label"]],
    )
    tokens[..., 8:12] = torch.eye(4)[batch["digit.label"]].unsqueeze(1)
    tokens[..., 12] = batch["count.number"].unsqueeze(1)
    tokens[..., 13:] = torch.randn(8, GRID[0] * GRID[1], 3, generator=torch.Generator().manual_seed(0))  # images differ
    torch.manual_seed(0)
    head = task.head(WIDTH, 64)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(300):
        loss = task.loss(head(tokens, batch, GRID), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metric = task.metric()
    with torch.no_grad():
        task.update(metric, head(tokens, batch, GRID), batch)
    assert task.chance_normalised(float(metric.compute())) > 0.7


@pytest.mark.parametrize("name", names())
def test_heads_of_places_read_the_grid_alone(name: str) -> None:
    """Tokens that a strategy appends have no place: only pooling heads may see them."""
    batch = batch_of(4)
    task = one(name, batch)
    head = task.head(WIDTH, 8)
    tokens = torch.randn(4, GRID[0] * GRID[1] + 5, WIDTH)
    other = tokens.clone()
    other[:, GRID[0] * GRID[1] :] += 1
    with torch.no_grad():
        same = torch.equal(head(tokens, batch, GRID), head(other, batch, GRID))
    assert same == (name != "digit")


def test_chance_is_what_guessing_reaches() -> None:
    batch = batch_of(200, seed=1)
    segment, count, locate = (one(name, batch) for name in ("segment", "count", "locate"))
    everything = torch.full((200, 32, 32), 9.0)
    metric = segment.metric()
    segment.update(metric, everything, batch)
    assert segment.chance == pytest.approx(float(metric.compute()), abs=1e-6)
    median = torch.full((200,), float(batch["count.number"].median()))
    assert count.chance == pytest.approx(float(count.scores(median, batch)[0].mean()))
    assert 0.1 < locate.chance < 0.7
    fitted, other = ({key: value.numpy() for key, value in b.items()} for b in (batch, batch_of(100, seed=2)))
    for task in (segment, count, locate):
        assert task.chance_baseline(fitted) == task.chance == task.chance_baseline(fitted, fitted)
    few = np.median(fitted["count.number"])
    assert count.chance_baseline(fitted, other) == pytest.approx(np.abs(other["count.number"] - few).mean())
    assert segment.chance_baseline(fitted, other) == segment.chance_baseline(other)  # nothing is fitted
    assert locate.chance_baseline(fitted, other) != locate.chance_baseline(other)
    assert (Read(34).chance, Digit(10).chance) == (1 / 34, 1 / 10)


def test_coverage_counts_what_is_covered_once() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.5, 0.5], [0.9, 0.9, 1.0, 1.0]]])
    valid = torch.tensor([[True, True, False]])
    assert coverage(boxes, valid, (2, 2)).tolist() == [[[1.0, 0.0], [0.0, 0.0]]]
    assert coverage(boxes, valid, (1, 1)).tolist() == [[[0.25]]]


def test_iou_of_worked_examples() -> None:
    a = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5]])
    b = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5], [0.5, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(box_iou(a, b), torch.tensor([1.0, 1 / 3, 0.0]))
    torch.testing.assert_close(generalised_iou(a, b), torch.tensor([1.0, 1 / 3, -0.5]))


def test_the_objective_does_not_mix_units() -> None:
    batch = batch_of(50)
    read, digit = Read(34), Digit(10)
    assert objective({"read/accuracy": 0.5, "digit/accuracy": 0.7}, [read, digit]) == pytest.approx(0.6)
    segment, count = one("segment", batch), one("count", batch)
    assert objective({"count/mae": 0.25}, [count]) == -0.25
    chance = {"segment/iou": segment.chance, "count/mae": count.chance}
    assert objective(chance, [segment, count]) == pytest.approx(0)
    assert objective({"segment/iou": 1.0, "count/mae": 0.0}, [segment, count]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("reed", {}, "unknown task 'reed'. Did you mean 'read'"),
        ("locate", {"digit.label": np.zeros(3, np.int64)}, "needs the targets locate.point.*it serves digit"),
        ("count", {"count.number": np.full(3, 6.0)}, "every training image holds 6 objects"),
    ],
)
def test_a_task_that_a_source_cannot_serve_is_refused(name: str, targets: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        build_task(name, {"digit": ["0", "1"]}, targets)


def test_a_task_of_an_older_package_is_refused() -> None:
    """``guess`` of 0.1 would be ignored in silence."""

    class Old(Digit):
        def guess(self, targets: Any, scored: Any = None) -> float:
            return 0.5

    with pytest.raises(WorkbenchError, match=r"Old\.guess is now called chance_baseline"):
        register_task("old")(Old)
    assert "old" not in TASKS
