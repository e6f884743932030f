import io
import re
import struct
import warnings
import zlib
from dataclasses import replace
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin
from transformers import Idefics3ImageProcessor, Idefics3ImageProcessorPil
from transformers.image_utils import SizeDict

from tests.conftest import as_idefics3, png
from vlmkit.config import Layout
from vlmkit.errors import DataError
from vlmkit.processing import images
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
        (SMALL_STEPS, (1092, 1092), TileGrid(3, 3), 10),  # in floating point 4 x 3
        (REFERENCE, (1, 10000), TileGrid(4, 1), 5),
        (REFERENCE, (10000, 1), TileGrid(1, 4), 5),
        (REFERENCE, (1, 1), TileGrid(4, 4), 17),
    ],
)
def test_grid_of_known_pictures(layout: ImageLayout, size: tuple[int, int], grid: TileGrid, tiles: int) -> None:
    assert layout.grid(*size) == grid
    assert layout.grid(*size).num_tiles == tiles


layouts = st.builds(
    lambda tile, tiles, resize: ImageLayout(tile, 64, tile * tiles, resize, 0.0, 1.0),
    tile=st.sampled_from([32, 64, 224, 384, 512]),
    tiles=st.integers(1, 8),
    resize=st.booleans(),
)
sides = st.integers(1, 400) | st.integers(1, 20000)


@given(layout=layouts, width=sides, height=sides)
def test_the_grid_is_the_exact_one_and_no_larger_than_its_tokens(layout: ImageLayout, width: int, height: int) -> None:
    long_side, short_side = max(width, height), min(width, height)
    grid = layout.grid(width, height)
    long_px = layout.tile_size * max(grid.rows, grid.cols)
    whole_tiles = ceil(long_side / layout.tile_size) * layout.tile_size
    assert long_px == (layout.max_img_size if layout.resize_to_max_side_len else min(layout.max_img_size, whole_tiles))
    scaled_short = short_side * Fraction(long_px, long_side)
    assert min(grid.rows, grid.cols) == ceil(scaled_short / layout.tile_size) >= 1
    assert max(grid.rows, grid.cols) <= 8


@given(layout=layouts, kind=st.sampled_from(Layout), width=sides, height=sides, limit=st.integers(1, 8))
def test_a_limited_layout_has_no_longer_side_and_the_same_shape(
    layout: ImageLayout, kind: Layout, width: int, height: int, limit: int
) -> None:
    layout = replace(layout, kind=kind)
    whole, limited = layout.grid(width, height), layout.limited_to(limit).grid(width, height)
    long_side = max(whole.rows, whole.cols)
    assert max(limited.rows, limited.cols) == min(long_side, limit)
    assert (limited == whole) == (long_side <= limit)
    assert limited.rows <= whole.rows and limited.cols <= whole.cols


def test_no_square_picture_gets_a_tile_too_many() -> None:
    """In floating point 25 x 25 comes to 8 x 9 here, and there is no token for row 9."""
    layout = ImageLayout(224, 64, 8 * 224, resize_to_max_side_len=True, mean=0.0, std=1.0)
    assert {layout.grid(side, side) for side in range(1, 3000)} == {TileGrid(8, 8)}


@settings(max_examples=30)
@given(tiles=st.integers(1, 8), resize=st.booleans(), width=sides, height=sides)
def test_a_picture_is_cut_into_the_tiles_of_its_grid(tiles: int, resize: bool, width: int, height: int) -> None:
    layout = ImageLayout(16, 1, 16 * tiles, resize, 0.0, 1.0)
    width, height = (min(side, 2_000_000 // max(width, height)) for side in (width, height))
    cut = cut_tiles(Image.new("RGB", (width, height), (10, 20, 30)), layout)
    assert cut.shape == (layout.grid(width, height).num_tiles, 16, 16, 3)
    assert (cut == (10, 20, 30)).all()


@pytest.mark.parametrize("size", [(150, 100), (100, 150), (7, 900), (900, 7), (65, 1), (700, 400)])
def test_tiles_put_together_are_the_picture_as_pil_resizes_it(layout: ImageLayout, size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    whole, *cells = cut_tiles(image, layout)
    grid = layout.grid(*size)
    width, height = grid.cols * 64, grid.rows * 64
    rows = [np.concatenate(cells[row * grid.cols : (row + 1) * grid.cols], axis=1) for row in range(grid.rows)]
    together = np.concatenate(rows)
    # One axis after the other: which comes first changes the pixels, and depends on PIL's version.
    bicubic = Image.Resampling.BICUBIC
    resized = image.resize((width, image.height), bicubic).resize((width, height), bicubic)
    assert largest_difference(together, resized) <= 2
    assert largest_difference(whole, resized.resize((64, 64), Image.Resampling.BILINEAR)) <= 2


def test_a_picture_of_one_tile_is_that_tile(layout: ImageLayout) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    one_tile = ImageLayout(64, 16, 64, resize_to_max_side_len=True, mean=0.0, std=1.0)
    assert np.array_equal(cut_tiles(Image.fromarray(pixels), one_tile), pixels[None])


def largest_difference(a: object, b: object) -> int:
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


# ---- layout idefics3 -----------------------------------------------------------------------------------

IMAGE_PROCESSOR = Idefics3ImageProcessor()


@settings(max_examples=300)
@given(tile=st.sampled_from([32, 64, 224, 364, 384, 512]), tiles=st.integers(1, 6), width=sides, height=sides)
def test_the_grid_of_idefics3_is_that_of_its_processor(tile: int, tiles: int, width: int, height: int) -> None:
    size, bicubic = tile * tiles, Image.Resampling.BICUBIC
    picture = torch.empty(1, 3, height, width, dtype=torch.uint8, device="meta")  # sizes alone
    picture = IMAGE_PROCESSOR.resize(picture, SizeDict(longest_edge=size), resample=bicubic)
    picture = IMAGE_PROCESSOR.resize_for_vision_encoder(picture, tile, resample=bicubic)
    _, [rows], [cols] = IMAGE_PROCESSOR.split_images(picture, {"longest_edge": tile}, resample=bicubic)
    grid = ImageLayout(tile, 64, size, True, 0.5, 0.5, Layout.idefics3).grid(width, height)
    assert (grid.rows, grid.cols) == (max(rows, 1), max(cols, 1))
    assert max(grid.rows, grid.cols) <= Layout.idefics3.max_grid_side


def test_the_global_tile_of_idefics3_goes_last(layout: ImageLayout) -> None:
    halves = np.zeros((64, 128, 3), np.uint8)
    halves[:, 64:] = 255
    left, right, whole = cut_tiles(Image.fromarray(halves), replace(as_idefics3(layout), max_img_size=128))
    assert (left[:, :60].max(), right[:, 4:].min()) == (0, 255)
    assert (whole[:, :28].max(), whole[:, 36:].min()) == (0, 255)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (300, 7), (5, 400), (257, 256), (640, 480), (999, 1000)])
def test_pixels_of_idefics3_are_pil_s_or_nearly(
    layout: ImageLayout, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of PyTorch's filter to within 2 of 255 (more in noise, where it resizes the other axis first); or it is PIL's."""
    few = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(few).resize(size, Image.Resampling.BICUBIC)
    layout = as_idefics3(layout)
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": layout.max_img_size},
        max_image_size={"longest_edge": layout.tile_size},
        do_rescale=False,
        do_normalize=False,
    )
    pil = processor(picture).pixel_values[0].transpose(0, 2, 3, 1)
    assert largest_difference(cut_tiles(picture, layout), pil) <= 2
    monkeypatch.setattr(images, "_torch_has_lanczos", lambda: False)
    assert np.array_equal(cut_tiles(picture, layout), pil)


# ---- modes ---------------------------------------------------------------------------------------------


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "modes"),
    [
        ("PNG", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
        ("JPEG", ["L", "RGB", "CMYK", "YCbCr"]),
        ("WEBP", ["RGB", "RGBA"]),
        ("GIF", ["1", "L", "P"]),
        ("BMP", ["1", "L", "RGB"]),
        ("TIFF", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"]),
    ],
)
def test_every_mode_becomes_rgb(form: str, modes: list[str]) -> None:
    for mode in modes:
        image = load_image(encoded(Image.new(mode, (5, 7)), form), "test/0")
        assert (image.mode, image.size) == ("RGB", (5, 7))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_colours_stay(mode: str) -> None:
    red = Image.new("RGB", (8, 8), "red").convert(mode)
    loaded = load_image(encoded(red, "TIFF"), "test/0")
    assert loaded.getpixel((4, 4)) == red.convert("RGB").getpixel((4, 4))


def test_transparency_is_dropped_also_from_a_palette() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 100, 50, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    for image in (palette, palette.convert("RGBA")):
        loaded = load_image(png(image, transparency=bytes([0, 128])) if image is palette else png(image), "test/0")
        assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(200, 100, 50), (1, 2, 3)]


@pytest.mark.parametrize(
    ("form", "values", "gray"),
    [
        ("PNG", np.array([[0, 255, 256, 32768, 65535]], np.uint16), [0, 0, 1, 128, 255]),
        ("TIFF", np.array([[0, 255, 256, 32768, 65535]], np.uint16), [0, 0, 1, 128, 255]),
        ("TIFF", np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        ("TIFF", np.array([[0.0, 0.25, 0.5, np.nan, np.inf]], np.float32), [0, 128, 255, 0, 0]),
        ("TIFF", np.full((1, 3), 7.5, np.float32), [0, 0, 0]),
    ],
)
def test_deep_grays_are_scaled_not_cut_off(form: str, values: np.ndarray, gray: list[int]) -> None:
    loaded = np.asarray(load_image(encoded(Image.fromarray(values), form), "test/0"))
    assert loaded[0].tolist() == [[value] * 3 for value in gray]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_picture_of_several_counts(form: str) -> None:
    first, second = Image.new("RGB", (6, 4), "blue"), Image.new("RGB", (6, 4), "yellow")
    several = encoded(first, form, save_all=True, append_images=[second])
    assert image_size(several, "test/0") == (6, 4)
    assert largest_difference(load_image(several, "test/0"), first) <= 8  # WebP is lossy


# ---- EXIF ----------------------------------------------------------------------------------------------


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_seen_upright(form: str, orientation: int) -> None:
    quarters = np.zeros((24, 48, 3), np.uint8)
    quarters[:12, :24], quarters[:12, 24:], quarters[12:, :24] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image = Image.fromarray(quarters)
    quality = {} if form == "TIFF" else {"quality": 100}
    loaded = load_image(encoded(image, form, exif=with_orientation(orientation), **quality), "test/0")
    image.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(image)
    assert image_size(encoded(image, form, exif=with_orientation(orientation)), "test/0") == loaded.size == upright.size
    centres = [(loaded.width * x // 4, loaded.height * y // 4) for x in (1, 3) for y in (1, 3)]
    for centre in centres:
        assert largest_difference(loaded.getpixel(centre), upright.getpixel(centre)) < 40


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
WIDE = Image.new("RGB", (30, 10), "red")
END = 12  # bytes of a PNG's last chunk


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        (png(WIDE)[:-END] + png_chunk(b"eXIf", with_orientation(6).tobytes()[6:]) + png(WIDE)[-END:], (30, 10)),
        (png(WIDE)[:-END] + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP) + png(WIDE)[-END:], (30, 10)),
        (encoded(WIDE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), (30, 10)),
        (encoded(WIDE, "JPEG", exif=b"Exif\0\0" + b"no exif" * 9), (30, 10)),
        (encoded(WIDE, "JPEG", exif=with_orientation(99)), (30, 10)),
    ],
    ids=["exif-behind-pixels", "xmp-behind-pixels", "exif-cut-off", "exif-text", "exif-99"],
)
def test_the_size_read_is_the_size_loaded(picture: bytes, size: tuple[int, int]) -> None:
    """The header alone decides: what only comes to light while decoding would come too late for the plan."""
    assert image_size(picture, "test/0") == load_image(picture, "test/0").size == size


reads_xmp = pytest.mark.skipif(
    tuple(map(int, PIL.__version__.split(".")[:2])) < (11, 3),
    reason="this version of PIL looks for no orientation there",
)


@reads_xmp
@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_an_orientation_may_stand_in_xmp(form: str) -> None:
    picture = encoded(WIDE, form, xmp=XMP)
    assert image_size(picture, "test/0") == load_image(picture, "test/0").size == (10, 30)


@reads_xmp
def test_a_picture_that_comes_out_of_another_size_is_an_error() -> None:
    tiff = encoded(WIDE, "TIFF", tiffinfo={700: XMP})  # PIL turns it, unannounced
    with pytest.raises(DataError, match=r"test/0: .*header says \(30, 10\) pixels, decoded are \(10, 30\)"):
        load_image(tiff, "test/0")


# ---- what is no picture --------------------------------------------------------------------------------


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header claims this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png(WIDE)[:8] + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


def with_text(text: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", text, zip=True)
    return png(WIDE, pnginfo=info)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"", "not recognised as any of JPEG, PNG"),
        (b"no\npicture", "not recognised"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not recognised"),  # Ghostscript would run it
        (b"%PDF-1.4\n", "not recognised"),
        (encoded(WIDE, "PPM"), "not recognised"),
        (Path("/nonexistent/a\nb.png"), "No such file"),
        (Path("/"), "Is a directory"),
        (Path("nul\0.png"), "null byte"),
        (png_of_size(9000, 9000), "it has 9000x9000 pixels; at most"),
        (png_of_size(9500, 9500), "it has 9500x9500 pixels; at most"),  # PIL itself would warn
        (png_of_size(2**31 - 1, 2**31 - 1), "decompression bomb"),
        (with_text("x" * 2_000_000), "too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_picture_is_one_line_that_names_its_sample(picture: Path | bytes, reason: str) -> None:
    for read in (image_size, load_image):
        with pytest.raises(DataError, match=rf"\Atest/7: cannot read the picture: .*{reason}.*\Z"):
            read(picture, "test/7")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_picture_has_a_size_but_is_an_error_to_load(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    truncated = encoded(noise, form)[:-600]
    with pytest.raises(DataError, match=r"test/0: cannot read the picture"):
        load_image(truncated, "test/0")
    if form != "WEBP":  # its decoder looks at the whole file first
        assert image_size(truncated, "test/0") == (300, 200)


def test_a_long_text_beside_the_pixels_does_no_harm() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 2_000_000)
    assert load_image(png(WIDE, pnginfo=info), "test/0").size == (30, 10)


def small_files() -> list[bytes]:
    """One small file for each way of encoding."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 20, 3), dtype=np.uint8))
    turned = {"exif": with_orientation(6)}
    several = {"save_all": True, "append_images": [image.rotate(90)]}
    wanted: list[tuple[str, dict[str, object]]] = [
        ("JPEG", turned),
        ("JPEG", {"progressive": True}),
        ("MPO", several),
        ("PNG", turned),
        ("PNG", several),
        ("WEBP", turned),
        ("WEBP", {"lossless": True}),
        ("WEBP", several),
        ("GIF", {}),
        ("GIF", several),
        ("BMP", {}),
        ("TIFF", turned),
        ("TIFF", {"tiffinfo": {700: XMP}}),
    ]
    files = [encoded(image, form, **options) for form, options in wanted]
    files += [encoded(image.convert(mode), "PNG") for mode in ("1", "P", "LA", "I;16")]
    return files + [encoded(image.convert(mode), "TIFF") for mode in ("I", "F", "CMYK")]


flips = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6)


@settings(max_examples=1500)
@given(whole=st.sampled_from(small_files()), flips=flips, early=st.booleans(), kept=st.floats(0, 1) | st.just(1.0))
def test_a_damaged_picture_is_a_picture_or_a_data_error(
    whole: bytes, flips: list[tuple[int, int]], early: bool, kept: float
) -> None:
    damaged = bytearray(whole)
    for place, byte in flips:
        damaged[place % (min(len(whole), 100) if early else len(whole))] = byte
    size, image = None, None
    picture = bytes(damaged[: ceil(kept * len(whole))])
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(images, "MAX_PIXELS", 100_000)  # or a byte of the header could cost a second
        warnings.simplefilter("error")
        try:
            size = image_size(picture, "test/0")
            image = load_image(picture, "test/0")
        except DataError as error:
            assert re.fullmatch(r"test/0: cannot read the picture: .+", str(error))
    if image:
        assert (image.mode, image.size) == ("RGB", size)
