"""Pictures to tiles: the grid arithmetic (no pixels) and the pixels.

A picture of 300 x 800 pixels with tiles of 512 and ``max_img_size`` 2048: the long side becomes 2048 (or, without
``resize_to_max_side_len``, 1024: 800 rounded up to whole tiles); the short side follows the same scale, rounded up
to whole tiles: 300 * 2048 / 800 = 768 → 1024 (or 300 * 1024 / 800 = 384 → 512). That is a grid of 2 x 4 (1 x 2)
tiles, and the whole picture squeezed into one tile goes first: 9 (3) tiles.
"""

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlmkit.config import ModelConfig
from vlmkit.errors import DataError

MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """All that decides what tiles a picture becomes and what stands for them in the text."""

    tile_size: int  # pixels a side
    tokens_per_tile: int
    max_img_size: int  # pixels
    resize_to_max_side_len: bool
    mean: float
    std: float

    @classmethod
    def from_config(cls, model: ModelConfig) -> "ImageLayout":
        """The layout of a model."""
        return cls(tile_size=model.vision.tile_size, tokens_per_tile=model.tokens_per_tile, **asdict(model.image))

    def grid(self, width: int, height: int) -> "TileGrid":
        """Rows and columns of tiles of a picture of this size in pixels."""
        tile = self.tile_size
        long_side = max(width, height)
        rounded_up = math.ceil(long_side / tile) * tile
        target_long = self.max_img_size if self.resize_to_max_side_len else min(self.max_img_size, rounded_up)
        scale = target_long / long_side
        long_tiles = target_long // tile
        short_tiles = max(math.ceil(min(width, height) * scale / tile), 1)
        return TileGrid(long_tiles, short_tiles) if height > width else TileGrid(short_tiles, long_tiles)


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Rows and columns of tiles."""

    rows: int
    cols: int

    @property
    def num_tiles(self) -> int:
        """Tiles of the grid, and the global tile if there is more than one."""
        cells = self.rows * self.cols
        return cells if cells == 1 else cells + 1


def open_image(source: Path | bytes, name: str) -> Image.Image:
    """Open an encoded picture without decoding it; its size is known, its pixels are not.

    Raises:
        DataError: It is no picture, or has more than MAX_PIXELS.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: cannot open the picture: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DataError(f"{name}: picture of {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read")
    return image


def image_size(source: Path | bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels as the picture is seen, without decoding it.

    Raises:
        DataError: It is no picture, or has more than MAX_PIXELS.
    """
    with open_image(source, name) as image:
        # A PNG without an EXIF chunk would be decoded to the end in search of one.
        known = image.format != "PNG" or "exif" in image.info
        try:
            turned = known and image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 swap the sides
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{name}: cannot read the picture: {error}") from error
        return (image.height, image.width) if turned else (image.width, image.height)


def load_image(source: Path | bytes, name: str) -> Image.Image:
    """Decode a picture to RGB, turned as its EXIF orientation says."""
    with open_image(source, name) as image:
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{name}: cannot decode the picture: {error}") from error


def cut_tiles(image: Image.Image, layout: ImageLayout) -> NDArray[np.uint8]:
    """Resize a picture to whole tiles and cut it, the global tile first, then row by row.

    Returns:
        uint8 [num_tiles, tile_size, tile_size, 3]
    """
    grid, tile = layout.grid(*image.size), layout.tile_size
    resized = image.resize((grid.cols * tile, grid.rows * tile), Image.Resampling.BICUBIC)
    cells = np.asarray(resized).reshape(grid.rows, tile, grid.cols, tile, 3).swapaxes(1, 2)
    cells = cells.reshape(-1, tile, tile, 3)
    if len(cells) == 1:
        return cells
    # From the resized picture and bilinear, as in the reference.
    whole = np.asarray(resized.resize((tile, tile), Image.Resampling.BILINEAR))
    return np.concatenate([whole[None], cells])
