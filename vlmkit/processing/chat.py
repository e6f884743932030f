"""Conversations to token ids and labels: ChatML, image tokens spliced in, loss on the assistant alone.

Only text goes through the tokenizer; the ids that stand for pictures are arithmetic. Text between two special
tokens is tokenised in one piece, as the tokenizer may join characters: ``user\\n`` and what follows it, for instance.
"""

from collections.abc import Sequence

from vlmkit.processing.images import ImageLayout, TileGrid
from vlmkit.processing.tokenizer import IMAGE_TOKEN, ChatTokenizer
from vlmkit.types import IGNORED_LABEL, Encoded, Turn


class ChatEncoder:
    """Encodes turns and prompts for one tokenizer and one image layout."""

    def __init__(self, tokenizer: ChatTokenizer, layout: ImageLayout) -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        self._user_prefix_length = len(tokenizer.encode_text("user\n"))
        self._newline = tokenizer.encode_text("\n")
        self._answer_start = [tokenizer.turn_start_id, *tokenizer.encode_text("assistant\n")]

    def encode_sample(self, turns: Sequence[Turn], grids: Sequence[TileGrid]) -> Encoded:
        """A conversation; its pictures stand at the start of the first question."""
        input_ids: list[int] = []
        labels: list[int] = []
        for number, turn in enumerate(turns):
            question = self._message("user", turn.user, grids if number == 0 else ())
            answer = self._message("assistant", turn.assistant)
            learnt_from = len(self._answer_start)
            input_ids += question + answer
            labels += [IGNORED_LABEL] * (len(question) + learnt_from) + answer[learnt_from:]
        return Encoded(input_ids, labels)

    def encode_prompt(self, question: str, grids: Sequence[TileGrid]) -> list[int]:
        """A question with its pictures, up to the point where the answer starts."""
        return self._message("user", question, grids) + self._answer_start

    def turn_lengths(self, turn: Turn) -> tuple[int, int]:
        """Tokens of a turn as a later one of its conversation, and as the first one after pictures.

        The second leaves the tokens of the pictures themselves out: see ``picture_length``.
        """
        user = strip_image_token(turn.user)
        joined = len(self.tokenizer.encode_text(f"user\n{user}"))
        apart = self._user_prefix_length + len(self.tokenizer.encode_text(user))
        later = len(self.encode_sample([turn], ()).input_ids)
        return later, later - joined + apart

    def picture_length(self, grids: Sequence[TileGrid]) -> int:
        """Tokens that pictures add to the first question."""
        return len(self._message("user", "", grids)) - len(self._message("user", ""))

    def picture_label_length(self, num_pictures: int) -> int:
        """Tokens that number the pictures of a sample: what several add beyond what each adds alone."""
        grid = TileGrid(1, 1)
        return self.picture_length([grid] * num_pictures) - num_pictures * self.picture_length([grid])

    def _message(self, role: str, content: str, grids: Sequence[TileGrid] = ()) -> list[int]:
        """``<|im_start|>role\\n`` pictures ``content<|im_end|>\\n``; several pictures are numbered."""
        encode = self.tokenizer.encode_text
        ids = [self.tokenizer.turn_start_id]
        text = f"{role}\n"
        for number, grid in enumerate(grids):
            if len(grids) > 1:
                text += f"<image: {number}>"
            ids += encode(text) + self._grid_ids(grid)
            text = ""
        ids += encode(text + strip_image_token(content))
        return [*ids, self.tokenizer.turn_end_id, *self._newline]

    def _grid_ids(self, grid: TileGrid) -> list[int]:
        """The global tile, then, if there is more than one tile, row by row."""
        tile = [self.tokenizer.image_id] * self.layout.tokens_per_tile
        ids = [self.tokenizer.global_image_id, *tile]
        if grid.num_tiles > 1:
            for row in range(1, grid.rows + 1):
                for col in range(1, grid.cols + 1):
                    ids += [self.tokenizer.grid_ids[row, col], *tile]
        return ids


def strip_image_token(text: str) -> str:
    """Text without ``<|image|>``, as in the reference: it would promise a picture that is not there."""
    return text.replace(IMAGE_TOKEN, "")
