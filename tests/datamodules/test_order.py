"""The order of training is a permutation that seed and epoch decide, shared by processes as one would see it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_workbench.datamodules.order import (
    EpochBatches,
    EpochOrder,
    LengthGroupedOrder,
    ModalityLengthOrder,
    Order,
    _generator,
)


@st.composite
def orders(draw: st.DrawFn) -> tuple[Order, int]:
    """An order, and the batch size of all processes."""
    seed, batch_size = draw(st.integers(0, 2**63)), draw(st.sampled_from([2, 4, 6]))
    examples = draw(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=60))
    lengths, text_only = [length for length, _ in examples], [alone for _, alone in examples]
    grouped = LengthGroupedOrder(lengths, text_only, batch_size, seed, megabatch=draw(st.integers(1, 4)))
    of_llava = ModalityLengthOrder(lengths, text_only, batch_size // 2, seed, 2, draw(st.integers(1, 3)))
    return draw(st.sampled_from([EpochOrder(len(examples), seed), grouped, of_llava])), batch_size


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


def llavas_indices(words: list[int], text_only: list[bool], batch: int, parts: int, draw: torch.Generator) -> list[int]:
    """LLaVA's ``group_by_modality_length`` in our words: the examples in the order in which its sampler gives them.

    ``batch``: of a device; ``parts``: devices × accumulated batches; ``draw``: torch's random state, which it reads.
    Where all are text alone, theirs takes the lengths as negative, and so the shortest first; ours is as with images.
    """

    def a_kind(members: list[int]) -> list[list[int]]:
        drawn = [members[place] for place in torch.randperm(len(members), generator=draw).tolist()]
        return [shared_out(drawn[n : n + batch * parts]) for n in range(0, len(drawn), batch * parts)]

    def shared_out(step: list[int]) -> list[int]:
        longest_first = sorted(step, key=lambda n: words[n], reverse=True)
        if len(step) % parts:
            return [n for part in range(parts) for n in longest_first[part::parts]]
        held: dict[int, list[int]] = {part: [] for part in range(parts)}
        for n in longest_first:
            free = [part for part, members in held.items() if len(members) * parts < len(step)]
            weights = {part: sum(words[m] for m in held[part]) for part in free}
            held[min(free, key=lambda part: (weights[part], part))].append(n)
        return [n for part in range(parts) for n in held[part]]

    kinds = [[n for n, alone in enumerate(text_only) if alone == kind] for kind in (False, True)]
    if not all(kinds):
        return [n for step in a_kind(kinds[0] + kinds[1]) for n in step]
    (*images, some), (*texts, others) = a_kind(kinds[0]), a_kind(kinds[1])
    steps = images + texts
    steps = [steps[place] for place in torch.randperm(len(steps), generator=draw).tolist()]
    return [n for step in steps for n in step] + sorted(some + others)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=80),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2**40),
)
def test_the_batches_of_every_device_are_llavas(
    examples: list[tuple[int, bool]], batch: int, devices: int, accumulate: int, seed: int
) -> None:
    """With the same random state as theirs; a last batch that is not full is theirs to train on and not ours."""
    words, text_only = [length for length, _ in examples], [alone for _, alone in examples]
    draw = _generator(f"{seed}|0|modality_length")
    theirs = llavas_indices(words, text_only, batch, devices * accumulate, draw)
    full = [theirs[n : n + batch] for n in range(0, len(theirs), batch)]  # devices take batches in turn
    order = ModalityLengthOrder(words, text_only, batch, seed, devices, accumulate)
    for rank in range(devices):
        ours = EpochBatches(order, batch, rank, devices).batches()
        assert ours == full[rank::devices][: len(theirs) // (batch * devices)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_of_llavas_shows_images_or_none_does(accumulate: int) -> None:
    text_only = [n % 3 == 0 for n in range(200)]
    order = ModalityLengthOrder([1 + n % 17 for n in range(200)], text_only, 4, 1, 2, accumulate).of(0)
    steps = [order[n : n + 8 * accumulate] for n in range(0, 200, 8 * accumulate)]
    assert sum(len({text_only[n] for n in step}) == 2 for step in steps) <= 2


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
    assert ModalityLengthOrder(lengths, [False] * 5 + [True] * 3, 1, 7, 2).of(1) == [4, 3, 7, 6, 2, 0, 1, 5]
