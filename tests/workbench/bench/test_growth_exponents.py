"""Exponents of growth, and the memory that they are fitted to."""

from __future__ import annotations

import pytest
import torch

from fusion_workbench.bench.growth import exponent, peak


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_the_power(power: float) -> None:
    sizes = [4, 8, 16, 32]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power, abs=1e-9)


def test_the_peak_is_what_was_held_in_between() -> None:
    def work() -> None:
        torch.ones(2**24)

    weighed = peak(work, "cpu")
    assert weighed is None or 2**25 < weighed < 2**28, "64 MB, gone when it is asked for"
