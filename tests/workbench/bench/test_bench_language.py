"""The loop by hand takes the loss that the model takes."""

from __future__ import annotations

import pytest
import torch

from fusion_workbench.bench.language import TINY, Subject, tiny_decoder


@pytest.mark.parametrize("full", [False, True], ids=["frozen", "in full"])
def test_both_losses_and_gradients_are_one(full: bool) -> None:
    subject = Subject(tiny_decoder(), TINY, "cpu", full)
    trained = [p for part in subject.model.parts().values() for p in part]
    assert trained
    found = []
    for loss in (subject.by_hand(subject.batch), subject.model.training_step(subject.batch, 0)):
        gradients = torch.autograd.grad(loss, trained)
        found.append((float(loss.detach()), gradients))
    (by_hand, theirs), (own, ours) = found
    assert by_hand == pytest.approx(own, rel=1e-5)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
