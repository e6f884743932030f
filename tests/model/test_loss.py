from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlmkit.model import loss as loss_module
from vlmkit.model.loss import shift_labels, summed_loss

WIDTH, VOCABULARY, CHUNK = 5, 97, 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK", CHUNK)


def made_up(length: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Hidden states, labels (half of them ignored) and a head."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, length, WIDTH, generator=generator, dtype=dtype)
    labels = torch.randint(0, VOCABULARY, (2, length), generator=generator)
    labels[torch.rand(2, length, generator=generator) < 0.5] = -100
    head = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype)
    return hidden.requires_grad_(), labels, head.requires_grad_()


def loss_of_full_logits(hidden: torch.Tensor, labels: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    logits = nn.functional.linear(hidden, head).to(torch.promote_types(hidden.dtype, torch.float32))
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


@settings(max_examples=30)
@given(length=st.integers(1, 40), seed=st.integers(0, 1000), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_loss_and_gradients_are_those_of_full_logits(length: int, seed: int, dtype: torch.dtype) -> None:
    hidden, labels, head = made_up(length, seed, dtype)
    ours, full = summed_loss(hidden, labels, head), loss_of_full_logits(hidden, labels, head)
    torch.testing.assert_close(ours, full)
    ours_grads = torch.autograd.grad(ours / 3, (hidden, head))
    torch.testing.assert_close(ours_grads, torch.autograd.grad(full / 3, (hidden, head)))


def test_under_autocast_only_the_products_are_in_bf16() -> None:
    hidden, labels, head = made_up(40)
    exact = torch.autograd.grad(summed_loss(hidden, labels, head), (hidden, head))
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_loss(hidden, labels, head)
    assert loss.dtype == torch.float32
    rounded = summed_loss(hidden.bfloat16(), labels, head.bfloat16())  # the same products, so the same softmax
    torch.testing.assert_close(loss, rounded)
    assert loss != summed_loss(hidden, labels, head)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, head)), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(frozen: int) -> None:
    hidden, labels, head = made_up(40)
    both = torch.autograd.grad(summed_loss(hidden, labels, head), (hidden, head))
    [hidden, head][frozen].requires_grad_(False)
    [one] = torch.autograd.grad(summed_loss(hidden, labels, head), [[hidden, head][1 - frozen]])
    torch.testing.assert_close(one, both[1 - frozen])


def test_without_gradients_only_the_loss_is_computed() -> None:
    hidden, labels, head = made_up(40)
    learning, when_learning = watched(lambda: summed_loss(hidden, labels, head))
    with torch.no_grad():
        loss, sizes = watched(lambda: summed_loss(hidden, labels, head))
    torch.testing.assert_close(loss, learning.detach(), rtol=0, atol=0)
    assert sizes.count(CHUNK * VOCABULARY) < when_learning.count(CHUNK * VOCABULARY)


class Sizes(TorchDispatchMode):
    """Elements of every tensor that an operator gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen += [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        return out


def watched(compute: Any) -> tuple[torch.Tensor, list[int]]:
    with Sizes() as sizes:
        out = compute()
    return out, sizes.seen


def kept_for_backward(compute: Any) -> tuple[torch.Tensor, int]:
    """What a computation gives, and the elements it keeps for its backward pass."""
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return compute(), sum(kept)


def test_memory_does_not_grow_with_tokens_times_vocabulary() -> None:
    hidden, labels, head = made_up(200)
    learnt = int((labels[:, 1:] != -100).sum())

    def step() -> torch.Tensor:
        loss = summed_loss(hidden, labels, head)
        loss.backward()
        return loss

    _, sizes = watched(step)
    assert learnt > 10 * CHUNK
    assert max(sizes) <= max(CHUNK * VOCABULARY, 2 * 200 * WIDTH)
    _, kept = kept_for_backward(lambda: summed_loss(hidden, labels, head))
    assert kept <= learnt * (WIDTH + 4) + VOCABULARY * WIDTH  # its gradients, and which places are learnt


def test_the_memory_test_would_see_full_logits() -> None:
    hidden, labels, head = made_up(200)
    _, sizes = watched(lambda: loss_of_full_logits(hidden, labels, head))
    assert max(sizes) == 2 * 200 * VOCABULARY
    _, kept = kept_for_backward(lambda: loss_of_full_logits(hidden, labels, head))
    assert kept > 2 * 199 * VOCABULARY


def test_labels_move_one_to_the_left() -> None:
    assert shift_labels(torch.tensor([[1, 2, -100, 4]])).tolist() == [[2, -100, 4, -100]]


def test_nothing_labelled_is_a_loss_of_zero_with_a_gradient() -> None:
    hidden, labels, head = made_up(4)
    loss = summed_loss(hidden, torch.full_like(labels, -100), head)
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert head.grad is not None
    assert not hidden.grad.any()
    assert not head.grad.any()
