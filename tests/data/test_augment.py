from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import png
from vlmkit.config import AugmentConfig
from vlmkit.data.augment import Augmentation, augment
from vlmkit.data.worker import Loaded, build_batch
from vlmkit.errors import ConfigError
from vlmkit.processing.chat import ChatEncoder
from vlmkit.types import Batch, Sample, Turn

WANTED = AugmentConfig(color_jitter=0.1, rotation_degrees=5.0)  # named as wanted beside the reference


def noise(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def pixels_after(picture: Image.Image, config: AugmentConfig, *key: int) -> np.ndarray:
    return np.asarray(augment(picture, config, key))


def test_off_by_default_and_then_not_a_bit_changes() -> None:
    assert np.array_equal(pixels_after(noise(0), AugmentConfig(), 1, 2, 3, 4), np.asarray(noise(0)))


def test_the_same_key_gives_the_same_picture_and_every_part_of_it_another() -> None:
    key = (1, 2, 3, 4)
    others = [tuple(value + (place == changed) for place, value in enumerate(key)) for changed in range(4)]
    pictures = [pixels_after(noise(0), WANTED, *some) for some in (key, *others)]
    assert np.array_equal(pictures[0], pixels_after(noise(0), WANTED, *key))
    assert len({picture.tobytes() for picture in pictures}) == 5


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (1, 1), (1, 300), (300, 1)])
def test_the_size_stays(size: tuple[int, int]) -> None:
    for sample in range(20):
        picture = augment(noise(0, size), AugmentConfig(color_jitter=1.0, rotation_degrees=180.0), (0, 0, sample, 0))
        assert (picture.mode, picture.size) == ("RGB", size)


def test_brightness_covers_its_range_and_keeps_to_it() -> None:
    gray = Image.new("RGB", (8, 8), (128, 128, 128))  # contrast and saturation leave it as it is
    config = AugmentConfig(color_jitter=0.25)
    factors = [pixels_after(gray, config, 0, 0, sample, 0)[0, 0, 0] / 128 for sample in range(500)]
    assert min(factors) == pytest.approx(0.75, abs=0.01)
    assert max(factors) == pytest.approx(1.25, abs=0.01)
    assert np.mean(factors) == pytest.approx(1, abs=0.02)


def test_contrast_and_saturation_are_drawn_too() -> None:
    """A dark and a light half move apart or together; a colour moves from or to its gray, by both."""
    halves = Image.new("RGB", (20, 20), (60, 60, 60))
    halves.paste((180, 180, 180), (0, 0, 10, 20))
    config = AugmentConfig(color_jitter=0.25)
    contrasts, saturations = [], []
    for sample in range(500):
        after = pixels_after(halves, config, 0, 0, sample, 0).astype(float)
        contrasts.append((after[0, 0, 0] - after[0, -1, 0]) / (after[0, 0, 0] + after[0, -1, 0]))
        red, green, _ = pixels_after(Image.new("RGB", (4, 4), (140, 100, 100)), config, 0, 0, sample, 0)[0, 0]
        saturations.append((float(red) - green) / (float(red) + 2 * green))
    assert (min(contrasts), max(contrasts)) == pytest.approx((0.75 * 0.5, 1.25 * 0.5), rel=0.03)
    assert (min(saturations), max(saturations)) == pytest.approx((0.75**2 * 40 / 340, 1.25**2 * 40 / 340), rel=0.1)


def test_pictures_turn_both_ways_and_no_further_than_asked() -> None:
    """A horizontal bar through the centre: its height at the right edge tells the angle."""
    bar = Image.new("RGB", (201, 201), "white")
    bar.paste((0, 0, 0), (0, 98, 201, 103))
    angles = []
    for sample in range(300):
        right = pixels_after(bar, AugmentConfig(rotation_degrees=5.0), 0, 0, sample, 0)[:, -1, 0].astype(float)
        darkness = 255 - right
        angles.append(np.degrees(np.arctan2(100 - (darkness * np.arange(201)).sum() / darkness.sum(), 100)))
    assert (min(angles), max(angles)) == pytest.approx((-5, 5), abs=0.3)
    assert np.mean(angles) == pytest.approx(0, abs=0.5)


def test_corners_are_filled_with_the_colour_of_the_edges() -> None:
    page = Image.new("RGB", (200, 100), (250, 240, 230))
    page.paste((0, 0, 0), (50, 30, 150, 70))
    turned = pixels_after(page, AugmentConfig(rotation_degrees=45.0), 0, 0, 1, 0)
    assert (turned[[0, 0, -1, -1], [0, -1, 0, -1]] == (250, 240, 230)).all()


@pytest.mark.parametrize(("key", "value"), [("color_jitter", 1.5), ("color_jitter", -0.1), ("rotation_degrees", 181.0)])
def test_a_range_that_makes_no_sense_names_its_key(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"dataset\.augment\.{key}={value}: must be between 0 and"):
        AugmentConfig(**{key: value})


# ---- in a batch ----------------------------------------------------------------------------------------

QUESTION = (Turn("what color?", "red"),)
SAMPLES = [Sample(f"test/{n}", (png(noise(n)), png(noise(10 + n))), QUESTION) for n in range(3)]


def visit(sample: int, epoch: int = 1) -> Loaded:
    return Loaded(SAMPLES[sample], (epoch, 0, sample))


def batch_of(encoder: ChatEncoder, visits: Sequence[Loaded], augmentation: Augmentation | None) -> Batch:
    return build_batch([visits], encoder, augmentation)


def test_what_a_picture_becomes_does_not_depend_on_its_batch(encoder: ChatEncoder) -> None:
    """So neither workers, nor processes, nor resuming change it."""
    visits = [visit(sample) for sample in (2, 0, 1)]
    augmentation = Augmentation(WANTED, seed=0)
    together = batch_of(encoder, visits, augmentation).tiles
    alone = [batch_of(encoder, [each], augmentation).tiles for each in visits]
    assert torch.equal(together, torch.cat(alone))


def test_epoch_and_seed_change_the_tiles_and_nothing_else(encoder: ChatEncoder) -> None:
    plain = batch_of(encoder, [visit(0)], None)
    batches = [
        batch_of(encoder, [visit(0)], Augmentation(WANTED, seed=0)),
        batch_of(encoder, [visit(0, epoch=2)], Augmentation(WANTED, seed=0)),
        batch_of(encoder, [visit(0)], Augmentation(WANTED, seed=1)),
    ]
    assert len({batch.tiles.numpy().tobytes() for batch in (plain, *batches)}) == 4
    assert all(torch.equal(batch.input_ids, plain.input_ids) for batch in batches)
    assert torch.equal(batch_of(encoder, [visit(0)], Augmentation(AugmentConfig(), seed=0)).tiles, plain.tiles)
