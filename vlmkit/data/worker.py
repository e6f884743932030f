"""What a loader process does with packs: samples → one Batch. It keeps no state between two calls."""

import hashlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch.nn.functional import pad
from torch.utils.data import get_worker_info

from vlmkit.data.augment import Augmentation
from vlmkit.errors import BadSampleError
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout, load_image, write_tiles
from vlmkit.types import DIGEST_BITS, IGNORED_LABEL, Batch, Encoded, Sample, add_digests


@dataclass(frozen=True, slots=True)
class Loaded:
    """A sample with the turns that this visit of it has, pictures still encoded; or why there is none."""

    sample: Sample | BadSampleError
    key: tuple[int, ...]  # of this visit: epoch, source and place; decides the random changes of its pictures
    encoded: Encoded | None = None  # if it has been measured already


@dataclass(frozen=True, slots=True)
class _Prepared:
    name: str
    encoded: Encoded
    pictures: list[Image.Image]  # decoded


def build_batch(
    packs: Sequence[Sequence[Loaded]],
    encoder: ChatEncoder,
    augmentation: Augmentation | None = None,
    pad_left: bool = False,
) -> Batch:
    """Decode, augment, tile and encode the samples of some packs; the shorter packs are padded.

    A sample that cannot be read leaves its place empty, and is named in the batch.
    """
    bad: list[BadSampleError] = []
    prepared: list[list[_Prepared]] = []
    for pack in packs:
        prepared.append([])
        for loaded in pack:
            try:
                prepared[-1].append(_prepare(loaded, encoder, augmentation))
            except BadSampleError as error:
                bad.append(error)
    lengths = [sum(len(one.encoded.input_ids) for one in together) for together in prepared]
    shape = (len(packs), max([*lengths, 1]))
    input_ids = torch.full(shape, encoder.tokenizer.pad_id)
    labels = torch.full(shape, IGNORED_LABEL)
    position_ids = torch.arange(shape[1]).repeat(len(packs), 1)
    segment_ids = torch.full(shape, -1)
    names = [tuple(one.name for one in together) for together in prepared]
    digests = []
    for row, together in enumerate(prepared):
        start = shape[1] - lengths[row] if pad_left else 0
        for segment, one in enumerate(together):
            end = start + len(one.encoded.input_ids)
            _write(one.encoded, input_ids[row, start:end], labels[row, start:end])
            position_ids[row, start:end] = torch.arange(end - start)
            segment_ids[row, start:end] = segment
            start = end
        digests.append(_digest(names[row], input_ids[row, start - lengths[row] : start]))
    pictures = [picture for together in prepared for one in together for picture in one.pictures]
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        segment_ids=segment_ids,
        tiles=_cut(pictures, encoder.layout),
        num_samples=sum(map(len, prepared)),
        num_images=len(pictures),
        num_pairs=sum(
            n * (n + 1) // 2 for together in prepared for one in together if (n := len(one.encoded.input_ids))
        ),
        names=tuple(names),
        digest=add_digests(digests),
        bad=tuple(bad),
    )


def join_batches(parts: Sequence[Batch], pad_id: int, pad_left: bool) -> Batch:
    """One micro-batch of several that were made apart, their packs in order."""
    if len(parts) == 1:
        return parts[0]
    length = max(part.input_ids.shape[1] for part in parts)

    def padded(name: str, value: int) -> torch.Tensor:
        tensors = [getattr(part, name) for part in parts]
        missing = [length - tensor.shape[1] for tensor in tensors]
        sides = [(count, 0) if pad_left else (0, count) for count in missing]
        return torch.cat([pad(tensor, side, value=value) for tensor, side in zip(tensors, sides, strict=True)])

    return Batch(
        input_ids=padded("input_ids", pad_id),
        labels=padded("labels", IGNORED_LABEL),
        position_ids=padded("position_ids", 0),
        segment_ids=padded("segment_ids", -1),
        tiles=torch.cat([part.tiles for part in parts]),
        num_samples=sum(part.num_samples for part in parts),
        num_images=sum(part.num_images for part in parts),
        num_pairs=sum(part.num_pairs for part in parts),
        names=tuple(pack for part in parts for pack in part.names),
        digest=add_digests(part.digest for part in parts),
        bad=tuple(error for part in parts for error in part.bad),
        lateness=max(part.lateness for part in parts),
    )


def ignore_signals(_worker: int) -> None:
    """Leave signals to the training process, also those sent to the whole group: it saves, then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _prepare(loaded: Loaded, encoder: ChatEncoder, augmentation: Augmentation | None) -> _Prepared:
    """Ids, labels and decoded pictures of a sample.

    Raises:
        BadSampleError: It cannot be read.
    """
    if isinstance(loaded.sample, BadSampleError):
        raise loaded.sample
    sample = loaded.sample
    pictures = [load_image(image, sample.name) for image in sample.images]
    if augmentation:
        pictures = [augmentation.apply(picture, loaded.key, number) for number, picture in enumerate(pictures)]
    encoded = loaded.encoded
    if encoded is None:
        encoded = encoder.encode_sample(sample.turns, [encoder.layout.grid(*picture.size) for picture in pictures])
    return _Prepared(sample.name, encoded, pictures)


def _cut(pictures: Sequence[Image.Image], layout: ImageLayout) -> torch.Tensor:
    """The tiles of pictures, one after the other: uint8 [I, H, W, 3].

    A loader process writes them where the training process can read them; elsewhere they would be copied there.
    """
    counts = [layout.grid(*picture.size).num_tiles for picture in pictures]
    shape = (sum(counts), layout.tile_size, layout.tile_size, 3)
    tiles = torch.empty(shape, dtype=torch.uint8)
    if pictures and get_worker_info():
        tiles = tiles.new(torch.UntypedStorage._new_shared(tiles.nbytes)).view(shape)
    for picture, place in zip(pictures, tiles.split(counts), strict=True):
        write_tiles(picture, layout, place.numpy())
    return tiles


def _digest(names: Sequence[str], input_ids_T: torch.Tensor) -> int:
    """A number that changes with the samples of a pack, their order and what was taken of them."""
    text = "\n".join(names).encode() + b"\0" + input_ids_T.numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(text, digest_size=DIGEST_BITS // 8).digest(), "little")


def _write(encoded: Encoded, input_ids_T: torch.Tensor, labels_T: torch.Tensor) -> None:
    """Write a sample into its place; its first label is what no token of it predicts, so nothing learns it."""
    input_ids_T.copy_(torch.tensor(encoded.input_ids))
    labels_T.copy_(torch.tensor(encoded.labels))
    labels_T[0] = IGNORED_LABEL
