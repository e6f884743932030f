"""Tokens are drawn with the probabilities that the model gives them."""

import pytest
import torch
from scipy.stats import chisquare

from vlmkit.model.drawing import draws

SCORES = torch.tensor([2.0, -1.0, 0.5, -torch.inf, 1.0, 0.0])
ROWS = 4000


def counts(temperature: float, top_p: float, steps: int = 2) -> torch.Tensor:
    """How often each token is drawn, over rows of different seeds, for some tokens one after the other."""
    processors = draws(temperature, top_p, range(ROWS))
    chosen = [processors(torch.empty(ROWS, 0).long(), SCORES.repeat(ROWS, 1)).argmax(-1) for _ in range(steps)]
    found = torch.cat(chosen).bincount(minlength=len(SCORES))
    assert len(set(zip(*(each.tolist() for each in chosen), strict=True))) > len(found.nonzero())  # not twice the same
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_draws_follow_the_softmax(temperature: float) -> None:
    found, expected = counts(temperature, 1.0), (SCORES / temperature).softmax(-1) * ROWS * 2
    possible = SCORES.isfinite()
    assert not found[~possible].any()
    assert chisquare(found[possible], expected[possible].double() / expected.double().sum() * found.sum()).pvalue > 0.01


def test_the_unlikely_rest_is_never_drawn() -> None:
    """The two likeliest have 0.56 and 0.21 of the probability."""
    found, expected = counts(1.0, 0.6), SCORES[[0, 4]].double().softmax(-1) * ROWS * 2
    assert found.nonzero().flatten().tolist() == [0, 4]
    assert chisquare(found[[0, 4]], expected).pvalue > 0.01
