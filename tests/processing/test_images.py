from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import png
from vlmkit.errors import DataError
from vlmkit.processing.images import ImageLayout, TileGrid, cut_tiles, image_size, load_image

REFERENCE = ImageLayout(
    tile_size=512, tokens_per_tile=64, max_img_size=2048, resize_to_max_side_len=True, mean=0.0, std=1.0
)
SMALL_STEPS = ImageLayout(
    tile_size=512, tokens_per_tile=64, max_img_size=2048, resize_to_max_side_len=False, mean=0.0, std=1.0
)


@pytest.mark.parametrize(
    ("layout", "size", "grid", "tiles"),
    [
        (REFERENCE, (300, 800), TileGrid(4, 2), 9),
        (SMALL_STEPS, (300, 800), TileGrid(2, 1), 3),
        (SMALL_STEPS, (512, 512), TileGrid(1, 1), 1),
        (SMALL_STEPS, (513, 1), TileGrid(1, 2), 3),
        (SMALL_STEPS, (10000, 10000), TileGrid(4, 4), 17),
    ],
)
def test_grid_of_known_pictures(layout: ImageLayout, size: tuple[int, int], grid: TileGrid, tiles: int) -> None:
    assert layout.grid(*size) == grid
    assert layout.grid(*size).num_tiles == tiles


@given(width=st.integers(1, 20000), height=st.integers(1, 20000), resize=st.booleans())
def test_no_grid_is_larger_than_its_tokens(width: int, height: int, resize: bool) -> None:
    layout = SMALL_STEPS if not resize else REFERENCE
    grid = layout.grid(width, height)
    assert 1 <= grid.rows <= 4
    assert 1 <= grid.cols <= 4


def test_tiles_put_together_are_the_resized_picture(layout: ImageLayout) -> None:
    random = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    image = Image.fromarray(random)
    whole, *cells = cut_tiles(image, layout)
    grid = layout.grid(150, 100)
    assert (grid.rows, grid.cols) == (2, 3)
    rows = [np.concatenate(cells[row * 3 : row * 3 + 3], axis=1) for row in range(2)]
    resized = image.resize((3 * 64, 2 * 64), Image.Resampling.BICUBIC)
    assert np.array_equal(np.concatenate(rows), np.asarray(resized))
    assert whole.shape == (64, 64, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = load_image(png(Image.new(mode, (5, 7))), "test/0")
    assert (image.mode, image.size) == ("RGB", (5, 7))


def test_a_turned_picture_has_the_size_that_is_seen() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = png(Image.new("RGB", (30, 10)), exif=exif)
    assert image_size(turned, "test/0") == load_image(turned, "test/0").size == (10, 30)


@pytest.mark.parametrize("broken", [b"", b"no picture", png(Image.new("RGB", (300, 300), "red"))[:-60]])
def test_a_broken_picture_names_its_sample(broken: bytes) -> None:
    with pytest.raises(DataError, match=r"test/7: cannot (open|decode) the picture"):
        load_image(broken, "test/7")


def test_the_size_of_a_png_is_read_without_its_pixels() -> None:
    truncated = png(Image.new("RGB", (300, 200), "red"))[:-60]
    assert image_size(truncated, "test/0") == (300, 200)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(DataError, match=r"test/0: picture of 9000x9000 pixels; at most"):
        image_size(path, "test/0")
