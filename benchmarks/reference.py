"""The loader of the reference system (nanoVLM), written anew from what it does: the baseline of loader.py.

A sample becomes tensors in the worker: pictures are decoded and resized with PIL, made float32 tiles [n, 3, H, W] and
cut; all text, 64 ``<|image|>`` a tile included, goes through the chat template and the tokenizer, once as a whole and
once more message by message for the loss mask. A background thread of each worker packs a buffer of such samples at a
time. A batch is padded on the left; its pictures stay a list of tensors.
"""

import io
import queue
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Thread
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, pad
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlmkit.data.greedy import GreedyPacker
from vlmkit.processing.images import ImageLayout, TileGrid
from vlmkit.processing.tokenizer import GLOBAL_IMAGE_TOKEN, IMAGE_TOKEN, ChatTokenizer
from vlmkit.types import IGNORED_LABEL

QUEUED_PACKS = 8
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ReferenceSample:
    """A sample, or several in a pack: T tokens, and a float32 [tiles, 3, H, W] for each picture."""

    input_ids: torch.Tensor  # int64 [T]
    labels: torch.Tensor  # int64 [T], shifted
    attention_mask: torch.Tensor  # int64 [T]
    images: list[torch.Tensor]
    samples: int = 1


@dataclass(frozen=True)
class ReferenceBatch:
    """Packs padded on the left."""

    input_ids: torch.Tensor  # int64 [B, T]
    labels: torch.Tensor  # int64 [B, T], shifted
    attention_mask: torch.Tensor  # int64 [B, T]
    images: list[list[torch.Tensor]]
    samples: int


class ReferenceProcessor:
    """Makes tensors of rows."""

    def __init__(self, tokenizer: ChatTokenizer, layout: ImageLayout) -> None:
        self._hf = tokenizer.hf
        self._layout = layout
        self._prefix_length = len(self._encode([{"role": "assistant", "content": ""}])) - 2  # without the end of turn

    def process(self, row: Row) -> ReferenceSample:
        """Pictures to tiles, texts to ids."""
        grids, images = zip(*(self._tiles(image["bytes"]) for image in row["images"]), strict=True)
        messages = [
            {"role": role, "content": text[role].replace(IMAGE_TOKEN, "")}
            for text in row["texts"]
            for role in ("user", "assistant")
        ]
        messages[0]["content"] = self._image_string(grids) + messages[0]["content"]
        input_ids = torch.tensor(self._encode(messages))
        learnt = torch.zeros(len(input_ids), dtype=torch.bool)
        start = 0
        for message in messages:
            end = start + len(self._encode([message]))
            learnt[start + self._prefix_length : end] = message["role"] == "assistant"
            start = end
        labels = input_ids.masked_fill(~learnt, IGNORED_LABEL).roll(-1)
        labels[-1] = IGNORED_LABEL
        return ReferenceSample(input_ids, labels, torch.ones_like(input_ids), list(images))

    def _encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        ids: list[int] = self._hf.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        return ids

    def _tiles(self, encoded: bytes) -> tuple[TileGrid, torch.Tensor]:
        rgb = Image.open(io.BytesIO(encoded)).convert("RGB")
        grid, tile = self._layout.grid(*rgb.size), self._layout.tile_size
        resized = rgb.resize((grid.cols * tile, grid.rows * tile), Image.Resampling.BICUBIC)
        pixels_CHW = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        cells = pixels_CHW.unflatten(1, (grid.rows, tile)).unflatten(3, (grid.cols, tile))
        cells = cells.permute(1, 3, 0, 2, 4).flatten(0, 1).contiguous()
        if grid.num_tiles == 1:
            return grid, cells
        whole = interpolate(pixels_CHW[None], (tile, tile), mode="bilinear", antialias=True)
        return grid, torch.cat([whole, cells])

    def _image_string(self, grids: Sequence[TileGrid]) -> str:
        tile = IMAGE_TOKEN * self._layout.tokens_per_tile
        text = ""
        for number, grid in enumerate(grids):
            text += f"<image: {number}>" * (len(grids) > 1) + GLOBAL_IMAGE_TOKEN + tile
            if grid.num_tiles > 1:
                places = [(row, col) for row in range(1, grid.rows + 1) for col in range(1, grid.cols + 1)]
                text += "".join(f"<row_{row}_col_{col}>{tile}" for row, col in places)
        return text


class ReferencePacks(IterableDataset[ReferenceSample]):
    """Packs without end, in each worker of its own part of the rows."""

    def __init__(self, rows: Sequence[Row], processor: ReferenceProcessor, seq_length: int, pad_id: int) -> None:
        self._rows = rows
        self._processor = processor
        self._seq_length = seq_length
        self._pad_id = pad_id

    def __iter__(self) -> Iterator[ReferenceSample]:
        ready: queue.Queue[ReferenceSample] = queue.Queue(QUEUED_PACKS)
        Thread(target=self._fill, args=(ready,), daemon=True).start()
        while True:
            yield ready.get()

    def _fill(self, ready: "queue.Queue[ReferenceSample]") -> None:
        buffer: dict[int, ReferenceSample] = {}

        def sizes() -> Iterator[tuple[int, int, int]]:
            arrived = count()
            for sample in self._samples():
                buffer[next(arrived)] = sample
                yield len(sample.input_ids), len(sample.images), 0

        for numbers in GreedyPacker(self._seq_length).pack(sizes()):
            ready.put(self._join([buffer.pop(number) for number in numbers]))

    def _samples(self) -> Iterator[ReferenceSample]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        while True:
            for number in range(first, len(self._rows), step):
                sample = self._processor.process(self._rows[number])
                if len(sample.input_ids) < self._seq_length:
                    yield sample

    def _join(self, samples: Sequence[ReferenceSample]) -> ReferenceSample:
        """A pack: a padding token after each sample."""
        return ReferenceSample(
            torch.cat([pad(sample.input_ids, (0, 1), value=self._pad_id) for sample in samples]),
            torch.cat([pad(sample.labels, (0, 1), value=IGNORED_LABEL) for sample in samples]),
            torch.cat([pad(sample.attention_mask, (0, 1)) for sample in samples]),
            [image for sample in samples for image in sample.images],
            len(samples),
        )


def load_batches(
    packs: ReferencePacks, batch_size: int, num_workers: int, seq_length: int, pad_id: int
) -> Iterator[ReferenceBatch]:
    """Batches without end, made in workers."""
    make = partial(collate, seq_length=seq_length, pad_id=pad_id)
    return iter(DataLoader(packs, batch_size=batch_size, collate_fn=make, num_workers=num_workers))


def collate(packs: Sequence[ReferenceSample], seq_length: int, pad_id: int) -> ReferenceBatch:
    """Pad packs on the left and stack them."""

    def padded(name: str, value: int) -> torch.Tensor:
        tensors = [getattr(pack, name) for pack in packs]
        return torch.stack([pad(tensor, (seq_length - len(tensor), 0), value=value) for tensor in tensors])

    return ReferenceBatch(
        padded("input_ids", pad_id),
        padded("labels", IGNORED_LABEL),
        padded("attention_mask", 0),
        [pack.images for pack in packs],
        sum(pack.samples for pack in packs),
    )
