import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vlmkit.model import loss as loss_module
from vlmkit.model.loss import shift_labels, summed_loss


@settings(max_examples=30)
@given(length=st.integers(1, 12), seed=st.integers(0, 1000), chunk=st.integers(1, 8))
def test_the_loss_is_the_cross_entropy_of_full_logits(length: int, seed: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, length, 5, generator=generator)
    labels = torch.randint(0, 7, (2, length), generator=generator)
    labels[torch.rand(2, length, generator=generator) < 0.5] = -100
    head = nn.Linear(5, 7, bias=False)
    whole = nn.functional.cross_entropy(head(hidden[:, :-1]).flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    before, loss_module.CHUNK = loss_module.CHUNK, chunk
    try:
        torch.testing.assert_close(summed_loss(hidden, labels, head), whole)
    finally:
        loss_module.CHUNK = before


def test_labels_move_one_to_the_left() -> None:
    assert shift_labels(torch.tensor([[1, 2, -100, 4]])).tolist() == [[2, -100, 4, -100]]


def test_nothing_labelled_is_a_loss_of_zero_with_a_gradient() -> None:
    hidden = torch.randn(1, 4, 5, requires_grad=True)
    loss = summed_loss(hidden, torch.full((1, 4), -100), nn.Linear(5, 7))
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()
