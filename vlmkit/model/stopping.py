"""Where an answer ends before its end of turn: at its own limit, or at a stop string."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from vlmkit.processing.tokenizer import ChatTokenizer


class StopStrings:
    """Strings that an answer ends before."""

    def __init__(self, strings: Sequence[str], tokenizer: ChatTokenizer) -> None:
        """Take none or more strings, none of them empty."""
        self._strings = tuple(strings)
        self._tokenizer = tokenizer
        # Every token of a string has at least one of its bytes. One more: some tokenizers drop a first token's space.
        self.tail = 1 + max((len(string.encode()) for string in strings), default=-1)

    def __bool__(self) -> bool:
        return bool(self._strings)

    def found(self, tails: list[list[int]]) -> list[bool]:
        """Whether a string ends in each of these: the last ``tail`` tokens of an answer that had none before."""
        texts = self._tokenizer.decode_all(tails)
        return [any(string in text for string in self._strings) for text in texts]

    def cut(self, text: str) -> str:
        """The text before the first string."""
        places = (place for string in self._strings if (place := text.find(string)) >= 0)
        return text[: min(places, default=len(text))]


class AnswerEnds(StoppingCriteria):  # type: ignore[misc]
    """Says after each token which answers of a batch are complete; for beams too, all beams of an answer together."""

    def __init__(self, limits: Sequence[int], until: StopStrings | None, device: torch.device) -> None:
        """Each answer has its limit in tokens; all have the same stop strings."""
        self._limits = torch.tensor(limits, device=device)
        self._until = until

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Of the tokens so far, without the prompt, int64 [answers * beams, T]: bool [answers * beams]."""
        beams = len(input_ids) // len(self._limits)
        done = input_ids.shape[1] >= self._limits.repeat_interleave(beams)
        if self._until:
            tails = input_ids[:, -self._until.tail :].tolist()
            done |= torch.tensor(self._until.found(tails), device=done.device)
        return done
