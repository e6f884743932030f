"""How tokens are drawn: each answer has random numbers of its own, whatever else is answered beside it."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row of scores one token, drawn from their softmax; the likeliest token then is this one.

    transformers draws for a batch as a whole, so that an answer depends on its place there. Here each row takes one
    number in [0, 1) a token, made on the CPU, and finds the token at which the summed probability passes it.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        """Take a seed for each row, 0 or more."""
        self._streams = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Of scores, float [rows, V]: 0 at the token that is drawn, minus infinity elsewhere."""
        numbers = torch.tensor([[stream.random()] for stream in self._streams], dtype=torch.float64)
        summed_RV = scores.double().softmax(-1).cumsum(-1)
        # Below the last sum, which is 1 but for rounding: so the token has a probability above 0.
        targets = numbers.to(scores.device) * summed_RV[:, -1:]
        drawn = torch.searchsorted(summed_RV, targets, right=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0)


def draws(temperature: float, top_p: float, seeds: Sequence[int]) -> LogitsProcessorList:
    """What greedy generation needs to draw instead, for a batch whose rows have these seeds."""
    return LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p), Draw(seeds)])
