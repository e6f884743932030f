"""Conversations to token ids and labels: image tokens spliced in, loss on the assistant alone.

Only text goes through the tokenizer; the ids that stand for pictures are arithmetic. Text between two special
tokens is tokenised in one piece, as the tokenizer may join characters: ``user\\n`` and what follows it, for instance.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from vlmkit.config import Layout
from vlmkit.errors import ConfigError
from vlmkit.processing.images import ImageLayout, TileGrid
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.special_tokens import (
    GLOBAL_IMAGE_TOKEN,
    IDEFICS3_BESIDE_TILE_TOKEN,
    IDEFICS3_GLOBAL_IMAGE_TOKEN,
    grid_token,
)
from vlmkit.types import IGNORED_LABEL, Encoded, Turn

Role = Literal["system", "user", "assistant"]
Piece = str | list[int]  # text, or ids of special tokens
ONE_TILE = TileGrid(1, 1)


@dataclass(frozen=True, slots=True)
class Message:
    """What one side says at once: texts and, each in its place among them, pictures, of which only the grid matters."""

    role: Role
    parts: tuple[str | TileGrid, ...]


class ChatEncoder:
    """Encodes turns and conversations for one tokenizer and one image layout."""

    def __init__(self, tokenizer: ChatTokenizer, layout: ImageLayout) -> None:
        assert tokenizer.layout is layout.kind
        self.tokenizer = tokenizer
        self.layout = layout
        self._format = _FORMATS[layout.kind](tokenizer, layout.tokens_per_tile)
        self._answer_start = self._encode(self._format.answer_start)
        self._message_end = [tokenizer.turn_end_id, *tokenizer.encode_text("\n")]

    def encode_sample(self, turns: Sequence[Turn], grids: Sequence[TileGrid]) -> Encoded:
        """A conversation; its pictures stand at the start of the first question."""
        input_ids = [*self._format.start]
        labels = [IGNORED_LABEL] * len(input_ids)
        for number, turn in enumerate(turns):
            question = self._question(turn.user, grids if number == 0 else ())
            answer = self._answer(turn.assistant)
            learnt_from = len(self._answer_start)
            input_ids += question + answer
            labels += [IGNORED_LABEL] * (len(question) + learnt_from) + answer[learnt_from:]
        return Encoded(input_ids, labels)

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """A conversation up to the point where the next answer starts.

        What is a sample's first question for training is ``Message("user", (*grids, question))`` here.
        """
        num_pictures = sum(isinstance(part, TileGrid) for message in messages for part in message.parts)
        numbers = count() if num_pictures > 1 else None
        ids = [*self._format.start]
        for message in messages:
            ids += self._message(message, numbers)
        return ids + self._answer_start

    def encode_answer(self, text: str) -> list[int]:
        """What follows a prompt in a sample with this answer, without its end of turn."""
        answer = self._answer(text)
        return answer[len(self._answer_start) : len(answer) - len(self._message_end)]

    def turn_lengths(self, turn: Turn) -> tuple[int, int]:
        """Tokens of a turn without pictures before it, and as the first one after pictures.

        The tokens of the pictures themselves are left out: see ``picture_length`` and ``extra_length``.
        """
        answer = len(self._answer(turn.assistant))
        alone = len(self._question(turn.user))
        after_picture = len(self._question(turn.user, [ONE_TILE])) - self.picture_length(ONE_TILE)
        return alone + answer, after_picture + answer

    def picture_length(self, grid: TileGrid) -> int:
        """Tokens that stand for one picture."""
        return len(self._format.picture(grid))

    def extra_length(self, num_pictures: int) -> int:
        """Tokens of a sample beyond those of its turns and of each of its pictures: its start, numbers of pictures."""
        several = self._question("", [ONE_TILE] * num_pictures)
        one = self._question("", [ONE_TILE] * min(num_pictures, 1))
        others = max(num_pictures - 1, 0)
        return len(self._format.start) + len(several) - len(one) - others * self.picture_length(ONE_TILE)

    def _question(self, text: str, grids: Sequence[TileGrid] = ()) -> list[int]:
        return self._message(Message("user", (*grids, text)), count() if len(grids) > 1 else None)

    def _answer(self, text: str) -> list[int]:
        return self._message(Message("assistant", (text,)), None)

    def _message(self, message: Message, numbers: Iterator[int] | None) -> list[int]:
        parts = tuple(self._stripped(part) if isinstance(part, str) else part for part in message.parts)
        return self._encode(self._format.message(Message(message.role, parts), numbers)) + self._message_end

    def _stripped(self, text: str) -> str:
        """Text without the image token, as in the reference: it would promise a picture that is not there."""
        return text.replace(self.tokenizer.image_token, "")

    def _encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Pieces of a message; texts that follow one another are tokenised in one piece."""
        ids: list[int] = []
        text = ""
        for piece in pieces:
            if isinstance(piece, str):
                text += piece
            else:
                ids += self._text_ids(text) + piece
                text = ""
        return ids + self._text_ids(text)

    def _text_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode_text(text) if text else []


class _Format(ABC):
    """How a layout writes a conversation; behind every message comes the end of the turn and a newline."""

    start: list[int]  # what a conversation starts with
    answer_start: list[Piece]  # what stands before an answer, in a prompt too

    def __init__(self, tokenizer: ChatTokenizer, tokens_per_tile: int) -> None:
        self._special = tokenizer.special_ids
        self._tile = [tokenizer.image_id] * tokens_per_tile

    @abstractmethod
    def message(self, message: Message, numbers: Iterator[int] | None) -> Iterator[Piece]:
        """A message, from its role on; an assistant's starts with ``answer_start``.

        Args:
            message: Its texts are without image tokens.
            numbers: What the conversation's next pictures are numbered with; None if it has only one.
        """

    @abstractmethod
    def picture(self, grid: TileGrid) -> list[int]:
        """Ids that stand for one picture."""


class _NanoVLMFormat(_Format):
    """ChatML, ``<|im_start|>user\\n`` pictures ``question<|im_end|>\\n``.

    Several pictures of a conversation are numbered from 0: ``<image: 0>``.
    """

    def __init__(self, tokenizer: ChatTokenizer, tokens_per_tile: int) -> None:
        super().__init__(tokenizer, tokens_per_tile)
        self.start = []
        self._turn_start = [tokenizer.turn_start_id]
        self.answer_start = [self._turn_start, "assistant\n"]

    def message(self, message: Message, numbers: Iterator[int] | None) -> Iterator[Piece]:
        yield self._turn_start
        yield f"{message.role}\n"
        for part in message.parts:
            if isinstance(part, str):
                yield part
                continue
            if numbers is not None:
                yield f"<image: {next(numbers)}>"
            yield self.picture(part)

    def picture(self, grid: TileGrid) -> list[int]:
        """The global tile, then, if there is more than one tile, row by row."""
        ids = [self._special[GLOBAL_IMAGE_TOKEN], *self._tile]
        if grid.num_tiles > 1:
            for row in range(1, grid.rows + 1):
                for col in range(1, grid.cols + 1):
                    ids += [self._special[grid_token(row, col)], *self._tile]
        return ids


class _Idefics3Format(_Format):
    """``<|im_start|>`` once, then ``User:`` pictures ``question<end_of_utterance>\\n``, as SmolVLM's template has it.

    A space stands after the colon if no picture does. Pictures are not numbered.
    """

    def __init__(self, tokenizer: ChatTokenizer, tokens_per_tile: int) -> None:
        super().__init__(tokenizer, tokens_per_tile)
        _require_apart(tokenizer)
        self.start = [tokenizer.turn_start_id]
        self.answer_start = ["Assistant:"]
        self._beside = tokenizer.special_ids[IDEFICS3_BESIDE_TILE_TOKEN]
        self._row_end = tokenizer.encode_text("\n")
        self._last_row_end = tokenizer.encode_text("\n\n")

    def message(self, message: Message, numbers: Iterator[int] | None) -> Iterator[Piece]:
        starts_with_picture = isinstance(next(iter(message.parts), None), TileGrid)
        yield f"{message.role.capitalize()}:{'' if starts_with_picture else ' '}"
        for part in message.parts:
            yield part if isinstance(part, str) else self.picture(part)

    def picture(self, grid: TileGrid) -> list[int]:
        """If there is more than one tile, these row by row, each row a line; then the global tile."""
        ids: list[int] = []
        if grid.num_tiles > 1:
            for row in range(1, grid.rows + 1):
                for col in range(1, grid.cols + 1):
                    ids += [self._beside, self._special[grid_token(row, col)], *self._tile]
                ids += self._row_end if row < grid.rows else self._last_row_end
        return [*ids, self._beside, self._special[IDEFICS3_GLOBAL_IMAGE_TOKEN], *self._tile, self._beside]


_FORMATS: dict[Layout, type[_Format]] = {Layout.nanovlm: _NanoVLMFormat, Layout.idefics3: _Idefics3Format}


def _require_apart(tokenizer: ChatTokenizer) -> None:
    """Raise ConfigError if the tokenizer joins a role with what stands beside it: messages are encoded one by one."""
    for role in ("User:", "Assistant:", "System:"):
        apart = [token for text in ("\n", role, " a") for token in tokenizer.encode_text(text)]
        if tokenizer.encode_text(f"\n{role} a") != apart:
            raise ConfigError(f"model.image.layout=idefics3: must be nanovlm: model.tokenizer joins {role} with text")
