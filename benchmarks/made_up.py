"""Made-up samples for benchmarks, from a seed: JPEG pictures of the sizes of real ones, and texts of common tokens."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from tokenizers import Tokenizer

PICTURE_SIZES = ((640, 480), (800, 600), (336, 336), (1024, 768))
GRAIN = (
    (128, 80),
    (16, 30),
    (4, 12),
    (1, 4),
)  # of a picture: side of a speck in pixels, and its strength
FEATURES = Features({"images": List(Image()), "texts": List({"user": Value("string"), "assistant": Value("string")})})


@dataclass(frozen=True)
class Conversations:
    """What the texts are like; lengths are log-normal, given as median in words and spread."""

    max_images: int
    turns: tuple[int, int]  # at least, at most
    question: tuple[float, float]
    answer: tuple[float, float]


SHORT = Conversations(max_images=1, turns=(1, 3), question=(12, 0.5), answer=(5, 1.0))
LONG = Conversations(max_images=2, turns=(4, 12), question=(20, 0.5), answer=(80, 0.7))


def make_rows(kind: Conversations, tokenizer: Tokenizer, samples: int, seed: int) -> list[dict[str, Any]]:
    """Rows in FineVision's schema."""
    rng = np.random.default_rng(seed)
    words = common_words(tokenizer)

    def text(median: float, spread: float) -> str:
        length = int(np.ceil(rng.lognormal(np.log(median), spread)))
        ranks = np.minimum(rng.zipf(1.3, length), len(words)) - 1
        return " ".join(words[rank] for rank in ranks)

    return [
        {
            "images": [{"bytes": picture(rng), "path": None} for _ in range(rng.integers(1, kind.max_images + 1))],
            "texts": [
                {"user": text(*kind.question), "assistant": text(*kind.answer)}
                for _ in range(rng.integers(kind.turns[0], kind.turns[1] + 1))
            ],
        }
        for _ in range(samples)
    ]


def common_words(tokenizer: Tokenizer) -> list[str]:
    """Words that are one token each, the commonest (merged first) in front."""
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return [token[1:] for token, _ in by_id if token[0] == "Ġ" and len(token) > 2 and token[1:].isalpha()][:10_000]


def picture(rng: np.random.Generator) -> bytes:
    """Noise of several grains, which compresses about as a photograph does."""
    size = PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))]
    pixels = np.full((size[1], size[0], 3), 128.0)
    for grain, strength in GRAIN:
        specks = rng.integers(0, 256, (-(-size[1] // grain), -(-size[0] // grain), 3), np.uint8)
        grown = Pictures.fromarray(specks).resize(size, Pictures.Resampling.BILINEAR)
        pixels += (np.asarray(grown) / 127.5 - 1) * strength
    buffer = io.BytesIO()
    Pictures.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_rows(rows: list[dict[str, Any]], folder: Path, files: int) -> None:
    """Write the same rows twice: ``folder/saved`` can be read by number, ``folder/parquet`` are files that stream."""
    dataset = Dataset.from_list(rows, FEATURES)
    dataset.save_to_disk(folder / "saved")
    (folder / "parquet").mkdir()
    for number in range(files):
        dataset.shard(files, number).to_parquet(folder / "parquet" / f"{number:03}.parquet")
