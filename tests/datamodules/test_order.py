"""The order of training is a permutation that seed and epoch decide, shared by processes as one would see it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_workbench.datamodules.order import EpochBatches, EpochOrder, LengthGroupedOrder, Order


@st.composite
def orders(draw: st.DrawFn) -> tuple[Order, int]:
    """An order, and the batch size of all processes."""
    seed, batch_size = draw(st.integers(0, 2**63)), draw(st.sampled_from([2, 4, 6]))
    examples = draw(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=60))
    lengths, text_only = [length for length, _ in examples], [alone for _, alone in examples]
    grouped = LengthGroupedOrder(lengths, text_only, batch_size, seed, megabatch=draw(st.integers(1, 4)))
    return draw(st.sampled_from([EpochOrder(len(examples), seed), grouped])), batch_size


@settings(deadline=None)
@given(orders(), st.integers(0, 5))
def test_a_permutation_that_seed_and_epoch_decide(given: tuple[Order, int], epoch: int) -> None:
    order, _ = given
    torch.manual_seed(epoch)
    first = order.of(epoch)
    torch.rand(3)
    assert sorted(first) == list(range(len(order)))
    assert order.of(epoch) == first


@settings(deadline=None)
@given(orders(), st.integers(0, 5))
def test_two_processes_see_together_what_one_sees(given: tuple[Order, int], epoch: int) -> None:
    order, together = given
    alone = EpochBatches(order, together)
    pair = [EpochBatches(order, together // 2, rank, 2) for rank in (0, 1)]
    for batches in (alone, *pair):
        batches.set_epoch(epoch)
    assert len(alone) == len(alone.batches()) == len(pair[0]) == len(pair[1]) == len(order) // together
    for whole, *halves in zip(alone.batches(), *(batches.batches() for batches in pair), strict=True):
        assert [len(half) for half in halves] == [together // 2] * 2
        assert sorted(whole) == sorted(halves[0] + halves[1])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=8, max_size=80), st.integers(0, 3))
def test_kinds_stay_apart_but_for_one_batch(examples: list[tuple[int, bool]], epoch: int) -> None:
    lengths, text_only = [length for length, _ in examples], [alone for _, alone in examples]
    batches = EpochBatches(LengthGroupedOrder(lengths, text_only, 4, seed=1), 4)
    batches.set_epoch(epoch)
    mixed = [batch for batch in batches.batches() if len({text_only[n] for n in batch}) > 1]
    assert len(mixed) <= 1


def test_grouping_saves_padding() -> None:
    lengths = torch.randint(10, 500, (2000,), generator=torch.Generator().manual_seed(0)).tolist()

    def padding(order: Order) -> float:
        batches = EpochBatches(order, 8).batches()
        widest = sum(8 * max(lengths[n] for n in batch) for batch in batches)
        return 1 - sum(lengths[n] for batch in batches for n in batch) / widest

    assert padding(EpochOrder(2000, 1)) > 0.4
    assert padding(LengthGroupedOrder(lengths, [False] * 2000, 8, 1)) < 0.05


def test_orders_differ_between_seeds_and_epochs() -> None:
    lengths, alone = [7] * 40, [False] * 40
    many = [LengthGroupedOrder(lengths, alone, 4, seed).of(epoch) for seed in (0, 1) for epoch in (0, 1)]
    many += [EpochOrder(40, seed).of(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in many}) == 8


def test_the_order_is_pinned() -> None:
    """A study goes on tomorrow, on another machine, in the order in which it began."""
    lengths = [3, 1, 4, 1, 5, 9, 2, 6]
    assert LengthGroupedOrder(lengths, [False] * 5 + [True] * 3, 2, 7).of(1) == [5, 2, 3, 1, 7, 6, 4, 0]
