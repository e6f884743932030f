"""Questions to a checkpoint, about pictures or none, and its answers: for generation, tests and evaluation alike.

``Answerer.prepare`` makes a prompt of a question (pixels and text, on the CPU, in any thread); ``answer`` and
``loglikelihood`` take a batch of prompts to the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import TextStreamer

from vlmkit.config import require
from vlmkit.errors import BadSampleError, UserError
from vlmkit.model.build import load_checkpoint
from vlmkit.model.packed import PackedVLM, Sampling
from vlmkit.model.stopping import StopStrings
from vlmkit.processing.chat import ChatEncoder, Message, Role
from vlmkit.processing.images import UNREADABLE, ImageLayout, cut_tiles, digest_picture, to_rgb

ANSWER_ROOM = 64  # tokens that a prompt leaves for its answer, if the answer may be so long
Finish = Literal["end", "until", "length"]  # the end of its turn, a stop string, the limit


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """What one side says at once: texts and, each in its place among them, pictures of any mode."""

    role: Role
    parts: tuple[str | Image.Image, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that the assistant is to go on with."""

    messages: tuple[ChatMessage, ...]

    @classmethod
    def about(cls, pictures: Sequence[Image.Image], text: str) -> "Question":
        """One message: the pictures, then the text."""
        return cls((ChatMessage("user", (*pictures, text)),))

    @property
    def pictures(self) -> list[Image.Image]:
        """In the order in which they stand."""
        return [part for message in self.messages for part in message.parts if not isinstance(part, str)]

    @property
    def text(self) -> str:
        """The texts in order, ``<image>`` for each picture; a line for each message."""
        joined = ("".join(part if isinstance(part, str) else "<image>" for part in m.parts) for m in self.messages)
        return "\n".join(joined)


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How an answer is generated; questions of one batch share them."""

    max_new_tokens: int
    until: tuple[str, ...] = ()  # the answer ends before the first of these
    temperature: float = 0.0  # 0: the likeliest token each time; above: drawn, the flatter the higher
    top_p: float = 1.0  # drawn from the likeliest tokens that have so much probability together
    num_beams: int = 1  # so many answers are followed at a time, and the likeliest is taken

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("max_new_tokens", "num_beams"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        require(0 <= self.top_p <= 1, "top_p", self.top_p, "between 0 and 1")
        require(all(self.until), "until", list(self.until), "strings that are not empty")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in tiles."""

    digest: str  # of its size and pixels, before tiling
    tiles: NDArray[np.uint8]  # [I, H, W, 3]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked."""

    ids: list[int]
    pictures: tuple[Picture, ...]
    room: int  # tokens that the model can take after it
    shrunk: bool = False  # its pictures have fewer tiles than they should: the model could not have taken more


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and why it stopped."""

    text: str  # without what it stopped at
    finish: Finish
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Loglikelihood:
    """How likely the model is to answer with a text: natural logarithm; whether it is what it would say itself."""

    logprob: float
    is_greedy: bool


class Answerer:
    """A model that answers."""

    def __init__(self, model: PackedVLM, encoder: ChatEncoder) -> None:
        """Take a model on its device, in the precision it is to compute in; it is in evaluation mode from now on."""
        self._model = model.eval()
        self._encoder = encoder
        self._longest = int(model.hf.config.text_config.max_position_embeddings)

    @property
    def precision(self) -> str:
        """Of its weights and its arithmetic: fp32, bf16."""
        return {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(self._model.hf.dtype, str(self._model.hf.dtype))

    def prepare(self, question: Question, wanted: GenerationSettings | str) -> Prompt:
        """Make a prompt.

        If it leaves no room for the answer, its pictures get smaller, all alike, until it does. It must leave
        ANSWER_ROOM tokens, or as many as the answer may have if these are fewer; the answer then has what room is left.

        Args:
            question: Its pictures may have any mode.
            wanted: How the answer is to be generated, or the text whose likelihood is wanted.

        Raises:
            UserError: It is too long with even one tile a picture, or the text whose likelihood is wanted is empty.
            BadSampleError: A picture has no pixels.
        """
        pictures = [_readable(picture) for picture in question.pictures]
        ids, layout = self._fit(question, self._tokens_needed(wanted))
        return Prompt(
            ids=ids,
            pictures=tuple(Picture(digest_picture(picture), cut_tiles(picture, layout)) for picture in pictures),
            room=self._longest - len(ids),
            shrunk=layout is not self._encoder.layout,
        )

    def _tokens_needed(self, wanted: GenerationSettings | str) -> int:
        """How many tokens a prompt must leave."""
        if not isinstance(wanted, str):
            return min(wanted.max_new_tokens, ANSWER_ROOM)
        if not wanted.strip():  # its likelihood is 1: as a choice it would beat all others
            raise UserError("the text whose likelihood is wanted is empty")
        return len(self._answer_ids(wanted))

    def _fit(self, question: Question, needed: int) -> tuple[list[int], ImageLayout]:
        """A question's ids that leave room for so many tokens, in the layout that makes its pictures the largest."""
        grids = [self._encoder.layout.grid(*picture.size) for picture in question.pictures]
        largest = max((max(grid.rows, grid.cols) for grid in grids), default=1)
        smaller = (self._encoder.layout.limited_to(tiles) for tiles in range(largest - 1, 0, -1))
        for layout in (self._encoder.layout, *smaller):
            ids = self._encode(question, layout)
            if len(ids) + needed <= self._longest:
                return ids, layout
        smallest = f" with one tile for each of its {len(grids)} pictures" if grids else ""
        raise UserError(
            f"the question has {len(ids)} tokens{smallest} and its answer needs {needed}; the model takes "
            f"{self._longest} together"
        )

    def answer(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, seeds: Sequence[int] = (), stream: bool = False
    ) -> list[Answer]:
        """Answer a batch of prompts.

        An answer does not depend on what else is in the batch, up to floating point; but beams that are drawn do.

        Args:
            prompts: Prepared with these settings.
            settings: How.
            seeds: One for each prompt, 0 or more: of what is drawn, if anything is.
            stream: Write the answer to standard output while it is made; for one prompt.
        """
        tokenizer = self._encoder.tokenizer
        limits = [min(settings.max_new_tokens, prompt.room) for prompt in prompts]
        until = StopStrings(settings.until, tokenizer)
        tiles, order = self._distinct_tiles(prompts)
        answers = self._model.generate(
            [prompt.ids for prompt in prompts],
            tiles,
            limits,
            Sampling(settings.temperature, settings.top_p, seeds) if settings.temperature else None,
            TextStreamer(tokenizer.hf, skip_prompt=True, skip_special_tokens=True) if stream else None,
            order=order,
            num_beams=settings.num_beams,
            until=until,
        )
        read = []
        for prompt, ids, limit in zip(prompts, answers, limits, strict=True):
            whole = tokenizer.decode(ids)
            text = until.cut(whole)
            finish: Finish = "until" if text != whole else "end" if len(ids) < limit else "length"
            read.append(Answer(text, finish, len(prompt.ids), len(ids)))
        return read

    def loglikelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Loglikelihood]:
        """How likely the model is to begin its answer with a text; that it ends there too is not asked.

        Args:
            prompts: Each prepared with its continuation.
            continuations: White space before them is left out, or is the layout's own: so answers were trained.
        """
        tiles, order = self._distinct_tiles(prompts)
        ids = [self._answer_ids(text) for text in continuations]
        results = self._model.loglikelihood([prompt.ids for prompt in prompts], ids, tiles, order)
        return [Loglikelihood(*result) for result in results]

    def _encode(self, question: Question, layout: ImageLayout) -> list[int]:
        return self._encoder.encode_messages(
            [
                Message(m.role, tuple(part if isinstance(part, str) else layout.grid(*part.size) for part in m.parts))
                for m in question.messages
            ]
        )

    def _answer_ids(self, text: str) -> list[int]:
        return self._encoder.encode_answer(text.lstrip())

    def _distinct_tiles(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, list[int]]:
        """The tiles of all pictures of some prompts, each picture once, and in which order the prompts need them."""
        side = self._encoder.layout.tile_size
        distinct = [np.empty((0, side, side, 3), np.uint8)]
        places: dict[tuple[str, int], range] = {}
        order: list[int] = []
        num_tiles = 0
        for picture in (picture for prompt in prompts for picture in prompt.pictures):
            key = (picture.digest, len(picture.tiles))  # a shrunk picture has fewer
            if key not in places:
                places[key] = range(num_tiles, num_tiles + len(picture.tiles))
                num_tiles += len(picture.tiles)
                distinct.append(picture.tiles)
            order += places[key]
        return torch.from_numpy(np.concatenate(distinct)), order


def load_answerer(checkpoint: str, device: torch.device | None = None, key: str = "ckpt") -> Answerer:
    """Load a vlmkit, nanoVLM, Idefics3 or SmolVLM checkpoint that answers: on a GPU in bf16, on a CPU in float32.

    Args:
        checkpoint: A folder or a hub id ``org/name[@revision]``.
        device: Where it computes; None: on a GPU if there is one.
        key: The config key that holds the name, for messages.

    Raises:
        UserError: As ``load_checkpoint``.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_checkpoint(checkpoint, key)
    hf = loaded.model.to(device)
    if device.type == "cuda":
        for parameter in hf.parameters():  # not what is computed: the angles of positions need float32
            parameter.data = parameter.data.to(torch.bfloat16)
    return Answerer(PackedVLM(hf, loaded.layout), ChatEncoder(loaded.tokenizer, loaded.layout))


def _readable(picture: Image.Image) -> Image.Image:
    if not picture.width or not picture.height:
        raise BadSampleError(UNREADABLE, "a picture of the question", "it has no pixels")
    return to_rgb(picture)
