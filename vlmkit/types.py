"""The nouns that travel between the stages.

Data flow one way: source → Sample → rating filter → index → packer (ids only) → workers → Batch → model → loss.

Shape letters: B packs of a micro-batch, T tokens of a pack, I tiles, H and W pixels, K tokens of a tile, D width,
V vocabulary, N labelled tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from vlmkit.config import RATING_AXES
from vlmkit.errors import BadSampleError

IGNORED_LABEL = -100


Ratings = tuple[int | None, ...]  # of one turn, 1 to 5 or None, in the order of RATING_AXES
UNRATED: Ratings = (None,) * len(RATING_AXES)


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer, with its ratings."""

    user: str
    assistant: str
    ratings: Ratings = UNRATED


@dataclass(frozen=True, slots=True)
class Sample:
    """Some pictures and the conversation about them.

    Pictures are encoded files, as a path or as bytes: only workers decode.
    """

    name: str  # "source/row", for messages
    images: tuple[Path | bytes, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as token ids; labels are unshifted, IGNORED_LABEL where nothing is learnt."""

    input_ids: list[int]
    labels: list[int]


DIGEST_BITS = 40  # the sums of a few thousand processes are still exact as float64


def add_digests(digests: Iterable[int]) -> int:
    """The digest of several packs or batches together; it does not depend on their order."""
    return sum(digests) % 2**DIGEST_BITS


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of packs, padded to the longest.

    Samples of a pack are told apart by ``segment_ids``: 0, 1, … in order, -1 for padding.
    """

    input_ids: torch.Tensor  # int64 [B, T]
    labels: torch.Tensor  # int64 [B, T], unshifted
    position_ids: torch.Tensor  # int64 [B, T], from 0 in every sample
    segment_ids: torch.Tensor  # int64 [B, T]
    tiles: torch.Tensor  # uint8 [I, H, W, 3], in the order of their tokens
    num_samples: int
    num_images: int
    num_pairs: int  # of a query and a key that it sees: of a sample of n tokens n (n + 1) / 2
    names: tuple[tuple[str, ...], ...] = ()  # of the samples of each pack
    digest: int = 0  # of names and ids, whatever the padding and however the packs are split: see add_digests
    bad: tuple[BadSampleError, ...] = ()  # samples that were to be in it and could not be read
    lateness: int = 0  # places that the most delayed sample comes after its turn

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, torch.Tensor):
                moved[name] = value.to(device, non_blocking=True)
        return Batch(**moved)

    def pin_memory(self) -> "Batch":
        """Called by the loader's pinning thread, for asynchronous copies to a GPU."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, torch.Tensor):
                moved[name] = value.pin_memory()
        return Batch(**moved)
