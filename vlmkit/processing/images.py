"""Pictures to tiles: the grid arithmetic (no pixels) and the pixels.

A picture of 300 x 800 pixels with tiles of 512 and ``max_img_size`` 2048: the long side becomes 2048 (or, without
``resize_to_max_side_len``, 1024: 800 rounded up to whole tiles); the short side follows the same scale, rounded up
to whole tiles: 300 * 2048 / 800 = 768 → 1024 (or 300 * 1024 / 800 = 384 → 512). That is a grid of 2 x 4 (1 x 2)
tiles, and the whole picture squeezed into one tile goes first: 9 (3) tiles.

That is the layout nanovlm. In the layout idefics3 all is as transformers' Idefics3 image processor does it: the long
side always becomes ``max_img_size``, rounding is its own, and the whole picture goes last.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag
from torch.nn.functional import interpolate

from vlmkit.config import Layout, ModelConfig
from vlmkit.errors import BadSampleError

MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # all that PIL may try: no scripts, documents or videos
UNREADABLE = "cannot read the picture"
FILTERS = {  # of the picture, and of the global tile
    Layout.nanovlm: ("bicubic", "bilinear"),
    Layout.idefics3: ("lanczos", "lanczos"),
}
TRANSPOSE = {  # EXIF orientation → what turns the picture upright; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """All that decides what tiles a picture becomes and what stands for them in the text."""

    tile_size: int  # pixels a side
    tokens_per_tile: int
    max_img_size: int  # pixels
    resize_to_max_side_len: bool
    mean: float
    std: float
    kind: Layout = Layout.nanovlm

    @classmethod
    def from_config(cls, model: ModelConfig) -> "ImageLayout":
        """The layout of a model."""
        image = model.image
        return cls(
            tile_size=model.vision.tile_size,
            tokens_per_tile=model.tokens_per_tile,
            max_img_size=image.max_img_size,
            resize_to_max_side_len=image.resize_to_max_side_len,
            mean=image.mean,
            std=image.std,
            kind=image.layout,
        )

    def grid(self, width: int, height: int) -> "TileGrid":
        """Rows and columns of tiles of a picture of this size in pixels, both sides at least 1."""
        return self._nanovlm_grid(width, height) if self.kind is Layout.nanovlm else self._idefics3_grid(width, height)

    def limited_to(self, tiles: int) -> "ImageLayout":
        """The layout that makes pictures so small that their long side has at most so many tiles."""
        return replace(self, max_img_size=min(self.max_img_size, tiles * self.tile_size))

    def size_before_tiles(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that a picture is resized to before it is resized to whole tiles.

        In the layout idefics3 its long side becomes ``max_img_size`` and its short side an even number, and the
        result is resized once more: both can be seen in the pixels.
        """
        if self.kind is Layout.nanovlm:
            return width, height
        short_side = _scaled_short_side(self.max_img_size, width, height)
        even = max(short_side + short_side % 2, 1)
        return (self.max_img_size, even) if width >= height else (even, self.max_img_size)

    def split(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8]]:
        """A picture's global tile, if it has one, and the tiles of its grid, row by row."""
        if len(tiles) == 1:
            return None, tiles
        return (tiles[0], tiles[1:]) if self.kind is Layout.nanovlm else (tiles[-1], tiles[:-1])

    def _nanovlm_grid(self, width: int, height: int) -> "TileGrid":
        """The long side in whole tiles, then the short side at the same scale, rounded up.

        In whole numbers: in floating point, as in the reference, a side that comes to exactly k tiles can come to
        k + 1 (25 x 25 pixels at 8 tiles of 224: 8 x 9), which is more than there are row tokens.
        """
        tile = self.tile_size
        long_side, short_side = max(width, height), min(width, height)
        long_tiles = self.max_img_size // tile
        if not self.resize_to_max_side_len:
            long_tiles = min(long_tiles, _ceil_div(long_side, tile))
        short_tiles = _ceil_div(short_side * long_tiles, long_side)
        return TileGrid(long_tiles, short_tiles) if height > width else TileGrid(short_tiles, long_tiles)

    def _idefics3_grid(self, width: int, height: int) -> "TileGrid":
        """The same, from the size that the picture has been resized to."""
        width, height = self.size_before_tiles(width, height)
        long_tiles = self.max_img_size // self.tile_size
        short_tiles = _ceil_div(_scaled_short_side(self.max_img_size, width, height), self.tile_size)
        return TileGrid(short_tiles, long_tiles) if width >= height else TileGrid(long_tiles, short_tiles)


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


def image_size(source: Path | bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels as the picture is seen, without decoding it.

    Raises:
        BadSampleError: It is no picture, or has more than MAX_PIXELS.
    """
    with _opened(source, name) as image:
        return _seen_size(image, _orientation(image))


def load_image(source: Path | bytes, name: str) -> Image.Image:
    """Decode a picture (the first of an animation) to RGB, turned as its EXIF orientation says.

    Its size is that of ``image_size``. Transparency is dropped, as in the reference.

    Raises:
        BadSampleError: It is no picture, is damaged, or has more than MAX_PIXELS.
    """
    with _opened(source, name) as image:
        orientation = _orientation(image)  # before decoding, which may come upon another one behind the pixels
        size = _seen_size(image, orientation)
        image.load()
        rgb = to_rgb(image)
        upright = rgb.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else rgb
        if upright.size != size:
            raise ValueError(f"the header says {size} pixels, decoded are {upright.size}")
        return upright


def refuse_half_pictures() -> None:
    """A picture that breaks off is an error in all of this process, whoever reads it, as it is with PIL itself.

    To be called after a library was imported that tells PIL to fill the rest with grey, as lmms-eval does.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def cut_tiles(image: Image.Image, layout: ImageLayout) -> NDArray[np.uint8]:
    """Resize an RGB picture to whole tiles and cut it, row by row; the global tile stands where the layout has it.

    Returns:
        uint8 [num_tiles, tile_size, tile_size, 3]
    """
    tile = layout.tile_size
    tiles = np.empty((layout.grid(*image.size).num_tiles, tile, tile, 3), np.uint8)
    write_tiles(image, layout, tiles)
    return tiles


def write_tiles(image: Image.Image, layout: ImageLayout, tiles: NDArray[np.uint8]) -> None:
    """As ``cut_tiles``, into an array that is there."""
    grid, tile = layout.grid(*image.size), layout.tile_size
    picture_filter, global_filter = FILTERS[layout.kind]
    pixels = np.array(image)  # not asarray: torch warns of memory that it may not write to
    width, height = layout.size_before_tiles(*image.size)
    pixels = _resize(pixels, height, width, picture_filter)
    resized = _resize(pixels, grid.rows * tile, grid.cols * tile, picture_filter)
    cells = resized.reshape(grid.rows, tile, grid.cols, tile, 3).swapaxes(1, 2)
    global_tile, grid_tiles = layout.split(tiles)
    grid_tiles.reshape(cells.shape)[...] = cells
    if global_tile is not None:
        global_tile[...] = _resize(resized, tile, tile, global_filter)  # from the resized picture, as in the references


def digest_picture(image: Image.Image) -> str:
    """The same for two RGB pictures of the same size and pixels, and for no others."""
    size = "x".join(map(str, image.size)).encode()
    return hashlib.sha256(size + image.tobytes()).hexdigest()[:16]


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _scaled_short_side(long_side: int, width: int, height: int) -> int:
    """The short side if the long one becomes ``long_side``, rounded down, as transformers' Idefics3 does it.

    In its floating point: whole numbers would come to another even size, and so to another grid, now and then.
    """
    ratio = width / height
    return int(long_side / ratio if width >= height else long_side * ratio)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """Open an encoded picture: its size is known, its pixels are not yet decoded.

    Whatever goes wrong until it is closed is a BadSampleError in one line; PIL's warnings are not for the user.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read")
                yield image
    except UnidentifiedImageError as error:
        raise BadSampleError(UNREADABLE, name, f"not recognised as any of {', '.join(FORMATS)}") from error
    except Exception as error:  # a damaged file makes PIL raise nearly anything, struct.error and KeyError included
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadSampleError(UNREADABLE, name, reason) from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, that is still to be applied to an opened picture; 1 if its EXIF is broken."""
    if image.format == "TIFF":
        return 1  # PIL turns it while decoding, and its size is already that
    try:
        # Not image.getexif(): a PNG without an EXIF chunk would be decoded to the end in search of one.
        orientation = Image.Image.getexif(image).get(ExifTag.Orientation)
        return orientation if orientation in TRANSPOSE else 1
    except Exception:  # PIL raises nearly anything here too
        return 1


def _seen_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    return (image.height, image.width) if orientation >= 5 else (image.width, image.height)


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB; PIL alone would cut everything above 255 to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretch(np.asarray(image, np.float64))).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _stretch(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Lowest to highest value become 0 to 255: such a file does not say which value is white."""
    finite = np.isfinite(values)
    low, high = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    if not low < high:
        return np.zeros(values.shape, np.uint8)
    stretched = (np.where(finite, values, low) - low) * (255 / (high - low))
    return stretched.round().astype(np.uint8)


def _resize(pixels: NDArray[np.uint8], height: int, width: int, mode: str) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] as PIL does (first in width), to within 2 of 255; with AVX2 in a tenth of its time."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if mode == "lanczos" and not _torch_has_lanczos():
        return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    return _torch_resize(pixels, height, width, mode)


@cache
def _torch_has_lanczos() -> bool:
    """Whether this PyTorch has PIL's Lanczos filter: some that vlmkit runs on do not."""
    try:
        _torch_resize(np.zeros((2, 2, 3), np.uint8), 1, 1, "lanczos")
    except (NotImplementedError, ValueError):
        return False
    return True


def _torch_resize(pixels: NDArray[np.uint8], height: int, width: int, mode: str) -> NDArray[np.uint8]:
    image_NHWC = torch.from_numpy(pixels)[None]  # in this order of axes torch takes it for channels-last: 3x faster
    resized = interpolate(image_NHWC.permute(0, 3, 1, 2), (height, width), mode=mode, antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()
