"""What a loader process does: a few packs of ids → one Batch. It keeps no state between two calls."""

from collections.abc import Sequence

import numpy as np
import torch

from vlmkit.data.plan import Pack
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import cut_tiles, load_image
from vlmkit.types import IGNORED_LABEL, Batch, Encoded, Sample


def build_batch(packs: Sequence[Pack], samples: Sequence[Sample], encoder: ChatEncoder) -> Batch:
    """Decode, tile and encode the samples of some packs; the shorter packs are padded on the right."""
    length = max(pack.tokens for pack in packs)
    shape = (len(packs), length)
    input_ids = torch.full(shape, encoder.tokenizer.pad_id)
    labels = torch.full(shape, IGNORED_LABEL)
    position_ids = torch.arange(length).repeat(len(packs), 1)
    segment_ids = torch.full(shape, -1)
    tiles: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    num_images = 0
    for row, pack in enumerate(packs):
        start = 0
        for segment, visit in enumerate(pack.visits):
            sample = samples[visit.sample]
            pictures = [load_image(image, sample.name) for image in sample.images]
            grids = [encoder.layout.grid(*picture.size) for picture in pictures]
            encoded = encoder.encode_sample([sample.turns[turn] for turn in visit.turns], grids)
            end = start + len(encoded.input_ids)
            _write(encoded, input_ids[row, start:end], labels[row, start:end])
            position_ids[row, start:end] = torch.arange(end - start)
            segment_ids[row, start:end] = segment
            tiles += [cut_tiles(picture, encoder.layout) for picture in pictures]
            num_images += len(pictures)
            start = end
        assert start == pack.tokens, f"{pack}: planned {pack.tokens} tokens, encoded {start}"
    side = encoder.layout.tile_size
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        segment_ids=segment_ids,
        tiles=torch.from_numpy(np.concatenate(tiles) if tiles else np.empty((0, side, side, 3), np.uint8)),
        num_samples=sum(len(pack.visits) for pack in packs),
        num_images=num_images,
    )


def _write(encoded: Encoded, input_ids_T: torch.Tensor, labels_T: torch.Tensor) -> None:
    """Write a sample into its place; its first label is what no token of it predicts, so nothing learns it."""
    input_ids_T.copy_(torch.tensor(encoded.input_ids))
    labels_T.copy_(torch.tensor(encoded.labels))
    labels_T[0] = IGNORED_LABEL
