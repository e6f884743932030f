"""How full packs are, how late samples come, and what packing costs: all packers, side by side.

    python benchmarks/packing.py [--json FILE] [--samples N]

Caps are the reference's: 4096 tokens and 18 pictures. Sizes are made up, from a seed, as the chat layout makes them:
65 tokens a tile (64 image tokens and the one that says where it is), and texts of log-normal length, given as median
and spread (standard deviation of the logarithm). Samples of 4096 tokens and more are left out. Times are CPU time,
after compilation.
"""

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from report import write_report
from rich.console import Console
from rich.table import Table

from vlmkit.data.best_fit import BestFitPacker
from vlmkit.data.greedy import GreedyPacker
from vlmkit.data.packing import KnapsackPacker, Packer, Size

MAX_TOKENS, MAX_IMAGES = 4096, 18
TOKENS_PER_TILE = 65
SEED = 0

Ints = NDArray[np.int64]

PACKERS: dict[str, Callable[[int, int], Packer]] = {
    "knapsack": KnapsackPacker,
    "bfd": BestFitPacker,
    "greedy (batch 2)": GreedyPacker,
    "greedy (batch 16)": partial(GreedyPacker, buffer_packs=64),
}


@dataclass(frozen=True)
class Result:
    """What one packer made of one distribution."""

    distribution: str
    packer: str
    samples: int
    packs: int
    lower_bound: int  # packs that the tokens or the pictures need, were they divisible
    utilisation: float  # tokens of samples by tokens that all packs hold
    max_late: int  # places between an item's arrival and its turn
    us_per_pack: float  # CPU time
    samples_per_second: float
    broken: int  # packs over a cap


def text(rng: np.random.Generator, samples: int, median: float, spread: float) -> Ints:
    """Lengths of texts in tokens."""
    return np.ceil(rng.lognormal(np.log(median), spread, samples)).astype(np.int64)


def short_vqa(rng: np.random.Generator, samples: int) -> tuple[Ints, Ints, Ints]:
    """A picture of one tile; text 150, 0.7. Some 16 samples fill a pack, so 18 pictures are often too many."""
    one = np.ones(samples, np.int64)
    return text(rng, samples, 150, 0.7), one, one


def mixed(rng: np.random.Generator, samples: int) -> tuple[Ints, Ints, Ints]:
    """60 % captions (a tile; text 200, 0.6), 25 % documents (5 to 13 tiles; text 300, 1), 15 % text (400, 0.8)."""
    kind = rng.choice(3, samples, p=[0.6, 0.25, 0.15])
    texts = [text(rng, samples, 200, 0.6), text(rng, samples, 300, 1.0), text(rng, samples, 400, 0.8)]
    tiles = np.choose(kind, [1, rng.choice([5, 7, 9, 13], samples), 0])
    return np.choose(kind, texts), np.choose(kind, [1, 1, 0]), tiles


def multi_turn(rng: np.random.Generator, samples: int) -> tuple[Ints, Ints, Ints]:
    """A picture of 5 to 17 tiles, or (20 %) two with 10 to 17 together; text 400, 0.7."""
    images = rng.choice([1, 2], samples, p=[0.8, 0.2])
    tiles = np.where(images == 1, rng.integers(5, 18, samples), rng.integers(10, 18, samples))
    return text(rng, samples, 400, 0.7), images, tiles


def upscaled(rng: np.random.Generator, samples: int) -> tuple[Ints, Ints, Ints]:
    """A picture enlarged to 2048 pixels: 9 tiles (15 %, 2:1), 13 (70 %, 4:3) or 17 (15 %, 1:1); text 80, 0.6.

    Four such samples leave a gap that seldom a fifth one fits.
    """
    tiles = rng.choice([9, 13, 17], samples, p=[0.15, 0.7, 0.15])
    return text(rng, samples, 80, 0.6), np.ones(samples, np.int64), tiles


def draw(distribution: Callable[..., tuple[Ints, Ints, Ints]], samples: int) -> list[Size]:
    """Samples of a distribution that returns tokens of text, pictures and tiles."""
    texts, images, tiles = distribution(np.random.default_rng(SEED), samples)
    sizes = np.stack([texts + TOKENS_PER_TILE * tiles, images, tiles], axis=1)
    return [Size(*size) for size in sizes[sizes[:, 0] < MAX_TOKENS].tolist()]


def measure(distribution: str, name: str, packer: Packer, items: list[Size]) -> Result:
    """Pack the items once, timed, and look at the packs."""
    start = time.process_time()
    packs = list(packer.pack(items))
    seconds = time.process_time() - start
    order = np.concatenate(packs)
    if not np.array_equal(np.sort(order), np.arange(len(items))):
        raise AssertionError(f"{name} lost or repeated an item of {distribution}")
    sizes = np.array(items)
    loads = np.add.reduceat(sizes[order], np.cumsum([0, *map(len, packs[:-1])]))
    tokens, images, _ = sizes.sum(axis=0).tolist()
    return Result(
        distribution=distribution,
        packer=name,
        samples=len(items),
        packs=len(packs),
        lower_bound=max(-(-tokens // MAX_TOKENS), -(-images // MAX_IMAGES)),
        utilisation=tokens / len(packs) / MAX_TOKENS,
        max_late=int((np.arange(len(items)) - order).max()),
        us_per_pack=seconds / len(packs) * 1e6,
        samples_per_second=len(items) / seconds,
        broken=int((loads[:, :2] > (MAX_TOKENS, MAX_IMAGES)).any(axis=1).sum()),
    )


def show(results: list[Result]) -> None:
    """Print the results as a table."""
    table = Table("distribution", "packer")
    for heading in ("utilisation", "packs", "over bound", "latest", "µs/pack", "samples/s", "broken"):
        table.add_column(heading, justify="right")
    for one in results:
        table.add_row(
            one.distribution,
            one.packer,
            f"{one.utilisation:.4f}",
            f"{one.packs:,}",
            f"{one.packs / one.lower_bound - 1:.2%}",
            f"{one.max_late:,}",
            f"{one.us_per_pack:.1f}",
            f"{one.samples_per_second:,.0f}",
            f"{one.broken}",
        )
    Console(width=120).print(table)


def main() -> None:
    """Compare all packers on all distributions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--samples", type=int, default=100_000, metavar="N", help="samples of each distribution")
    options = parser.parse_args()
    list(BestFitPacker().pack([(1, 1, 1)]))  # compiles
    gc.disable()  # as timeit does
    results = [
        measure(distribution.__name__, name, build(MAX_TOKENS, MAX_IMAGES), items)
        for distribution in (short_vqa, mixed, multi_turn, upscaled)
        for items in [draw(distribution, options.samples)]
        for name, build in PACKERS.items()
    ]
    show(results)
    if options.json:
        settings = {"max_tokens": MAX_TOKENS, "max_images": MAX_IMAGES, "samples": options.samples, "seed": SEED}
        write_report(options.json, settings, ("numpy", "numba"), results)


if __name__ == "__main__":
    main()
