"""What a position in the data takes up, and how long loading takes to start: at once, and deep in an epoch.

    python benchmarks/resume.py [--json FILE] [--rows N]

A plan over N made-up rows (those of loader.py's ``short``, again and again), and lanes of a stream with a pool of 64:
of one source, and of a mixture of ten, each of 1000 files of 10,000 rows.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import made_up
import numpy as np
from datasets import disable_progress_bars
from loader import LIMITS, MINIMA, SEED, SEQ_LENGTH, SHARD, build_encoder, rows_by_number
from report import write_report
from rich.console import Console
from rich.table import Table

from vlmkit.config import KnapsackConfig
from vlmkit.data.files import RowsFile
from vlmkit.data.index import ENDS, SampleIndex, load_or_build_index
from vlmkit.data.lanes import LanePack, LaneState, Selection, Stream
from vlmkit.data.loader import LanePositions, PlanLoader
from vlmkit.data.packing import KnapsackPacker
from vlmkit.data.plan import Candidates, Plan, Position
from vlmkit.data.rows import Row
from vlmkit.data.sources import Source
from vlmkit.data.state import position_to_json
from vlmkit.processing.chat import ChatEncoder

SAMPLES = 256  # made; the rows are these again and again
SOURCES, FILES, ROWS_OF_A_FILE = 10, 1000, 10_000
PACKS_OF_A_LANE = 200

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """One figure."""

    what: str
    value: float
    unit: str


class Repeated(Sequence[Row]):
    """Rows again and again."""

    def __init__(self, rows: Sequence[Row], length: int) -> None:
        self._rows = rows
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Row:  # type: ignore[override]
        return self._rows[number % len(self._rows)]


def repeated_index(index: SampleIndex, times: int) -> SampleIndex:
    """The index of rows that come so many times."""
    columns = {field.name: getattr(index, field.name) for field in fields(index) if field.name != "bad_reasons"}
    laps = np.arange(times)[:, None]
    starts = {name: laps * columns[name][-1] for name in ENDS} | {"rows": laps * index.num_rows}
    return replace(
        index,
        **{name: np.concatenate([column] * times) for name, column in columns.items() if name not in starts},
        **{name: (columns[name] + start).reshape(-1) for name, start in starts.items()},
    )


def measure_plan(encoder: ChatEncoder, folder: Path, rows: int) -> Iterator[Result]:
    """A plan's start: made, its first step, and the step after half an epoch."""
    source = rows_by_number(folder)
    assert source.rows is not None
    index = repeated_index(load_or_build_index(source, encoder, folder / "index", watch=iter), rows // SAMPLES)
    long_source = replace(source, rows=Repeated(source.rows, index.num_rows))

    def build() -> Plan:
        everything = np.ones(index.num_rows, bool)
        return Plan([Candidates(index, everything, encoder, MINIMA, LIMITS, None)], KnapsackConfig(), SEED)

    plan, seconds = timed(build)
    yield Result(f"plan of {index.num_rows:,} rows: made", seconds, "s")
    loader = PlanLoader(plan, [long_source], encoder, SHARD, num_workers=1)
    step, seconds = timed(lambda: next(loader.steps_from(Position())))
    yield Result("… first step of 8 batches of 2 packs", seconds, "s")
    half = len(plan) // 2
    deep, seconds = timed(lambda: next(after for _, after in plan.packs_from(Position()) if after.arrived > half))
    yield Result("… half an epoch gone through, ids only", seconds, "s")
    step, seconds = timed(lambda: next(loader.steps_from(deep)))
    yield Result("… first step from there on", seconds, "s")
    yield Result("… position as JSON", json_bytes(step.position), "bytes")


def measure_stream(encoder: ChatEncoder, folder: Path) -> Iterator[Result]:
    """What the states of lanes take up as JSON."""
    rows = rows_by_number(folder).rows
    assert rows is not None
    selection = Selection(encoder, MINIMA, LIMITS, turns_per_visit=None, seed=SEED)
    for sources in (1, SOURCES):
        files = [RowsFile(str(number), Repeated(rows, ROWS_OF_A_FILE)) for number in range(FILES)]
        mixture = [Source(str(number), files=files) for number in range(sources)]
        stream = Stream(mixture, selection, KnapsackPacker(SEQ_LENGTH), SHARD.packs_per_step, val_size=0)
        states = [pack.state for pack in islice(stream.packs(0, stream.start), PACKS_OF_A_LANE)]
        sizes = [json_bytes(LanePositions({0: state})) for state in states]
        yield Result(f"stream of {sources} source(s): largest state of a lane", max(sizes), "bytes")
        _, seconds = timed(partial(next_pack, stream, states[-1]))
        yield Result(f"… a lane's next pack, its pool of {len(states[-1].waiting)} read again", seconds, "s")


def next_pack(stream: Stream, state: LaneState) -> LanePack:
    """The pack that follows a state."""
    return next(stream.packs(0, state))


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """What an action gives, and how long it took."""
    start = time.perf_counter()
    return action(), time.perf_counter() - start


def json_bytes(position: Position | LanePositions) -> int:
    """As a checkpoint writes it."""
    return len(json.dumps(position_to_json(position)))


def main() -> None:
    """Measure a plan and a stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows of the plan")
    options = parser.parse_args()
    disable_progress_bars()
    encoder = build_encoder(upscale=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = made_up.make_rows(made_up.SHORT, encoder.tokenizer.hf.backend_tokenizer, SAMPLES, SEED)
        made_up.write_rows(rows, folder, files=1)
        results = [*measure_plan(encoder, folder, options.rows), *measure_stream(encoder, folder)]
    table = Table("what", "", "")
    for one in results:
        table.add_row(one.what, f"{one.value:,.3f}" if one.unit == "s" else f"{one.value:,.0f}", one.unit)
    Console(width=120).print(table)
    if options.json:
        settings = {"rows": options.rows, "seed": SEED, "pool_size": 64, "lanes": SHARD.packs_per_step}
        write_report(options.json, settings, ("torch", "numpy", "pillow", "tokenizers"), results)


if __name__ == "__main__":
    main()
