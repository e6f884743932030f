"""Random changes of training pictures, drawn anew each epoch; validation and tests see pictures as they are.

The draws depend on keys alone (see ``order``), so neither the number of workers nor resuming changes a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from vlmkit.config import AugmentConfig
from vlmkit.data.order import keyed_hash

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What a run does to its training pictures."""

    config: AugmentConfig
    seed: int

    def apply(self, picture: Image.Image, visit: Sequence[int], number: int) -> Image.Image:
        """Change picture ``number`` of a sample as this visit of it has it."""
        return augment(picture, self.config, (self.seed, *visit, number))


def augment(picture: Image.Image, config: AugmentConfig, key: Sequence[int]) -> Image.Image:
    """Jitter the colours of an RGB picture and turn it about its centre, by amounts that the key alone decides.

    The size stays as it is, so the planned tiles stay right: corners are cut off, and what comes to light in their
    place has the median colour of the picture's edges (the paper of a document, the sky of a photograph).
    """
    draws = keyed_hash(np.arange(len(ENHANCERS) + 1, dtype=np.uint64), *key) / 2**63 - 1  # each in -1 to 1
    *jitter, turn = draws.tolist()
    if config.color_jitter:
        for enhancer, draw in zip(ENHANCERS, jitter, strict=True):
            picture = enhancer(picture).enhance(1 + config.color_jitter * draw)
    if config.rotation_degrees:
        angle = config.rotation_degrees * turn
        picture = picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=_edge_color(picture))
    return picture


def _edge_color(picture: Image.Image) -> tuple[int, ...]:
    pixels = np.asarray(picture)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(np.median(edges, axis=0).astype(int).tolist())
