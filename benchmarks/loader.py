"""What loading costs: our loaders and the reference's, the same samples, side by side.

    python benchmarks/loader.py [--json FILE] [--workers 1 2] [--seconds N]

Made-up pictures of 336x336 to 1024x768 pixels as JPEG, tiles of 512 pixels and 64 tokens, SmolLM2's tokenizer, packs of
4096 tokens, steps of 8 batches of 2 packs: the reference's defaults. ``short`` are 1 to 3 short questions about a
picture, ``long`` are 4 to 12 long ones about one or two; ``upscaled`` is ``short`` with pictures enlarged to 2048.

Each contender has a process of its own in place of a training process. It fetches batches and copies each into memory
once, as a transfer to a device does. The contenders take turns, the workers of the others being stopped meanwhile;
figures are medians of ROUNDS turns of N seconds.

- tokens/s: useful tokens (no padding) for each worker; … CPU s: by the worker's CPU time instead of the clock
- full: useful tokens by all tokens of the batches
- ms/batch: wall time; fetch ms: CPU time of the training process to get a batch; main ms: to get, copy and release it;
  µs/token: the same for a useful token
- MB: peak of resident memory of the largest worker and of the training process, what they share counted in both;
  growth of a worker's from the first turn to the last, while so many samples were read
"""

import argparse
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from statistics import median

import made_up
import numpy as np
import psutil
import torch
from datasets import disable_progress_bars
from reference import ReferenceBatch, ReferencePacks, ReferenceProcessor, load_batches
from report import write_report
from rich.console import Console
from rich.table import Table

from vlmkit.config import RATING_AXES, KnapsackConfig, LocalConfig
from vlmkit.data.index import load_or_build_index
from vlmkit.data.lanes import Selection, Stream
from vlmkit.data.loader import LanePositions, PlanLoader, Shard, StreamLoader
from vlmkit.data.packing import KnapsackPacker
from vlmkit.data.plan import Candidates, Limits, Plan, Position
from vlmkit.data.sources import Source, build_sources
from vlmkit.data.worker import Loaded, build_batch
from vlmkit.model.loss import shift_labels
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import load_tokenizer
from vlmkit.types import Batch

TOKENIZER = Path(__file__).parents[1] / "tests" / "golden" / "tokenizer"
SEED = 0
SAMPLES, FILES = 768, 32
ROUNDS = 3
SEQ_LENGTH = 4096
SHARD = Shard(rank=0, world_size=1, batch_size=2, micro_batches=8)
LIMITS = Limits(tokens=SEQ_LENGTH - 1, images=4, pack_images=18, pack_tiles=None)
MINIMA = (1,) * len(RATING_AXES)
WORKLOADS = {"short": (made_up.SHORT, False), "long": (made_up.LONG, False), "upscaled": (made_up.SHORT, True)}
BUFFER_BYTES = 2**29  # more than a batch


# ---- the contenders: endless steps, each a list of batches ---------------------------------------------


def build_encoder(upscale: bool) -> ChatEncoder:
    """SmolLM2's tokenizer and the reference's tiling."""
    layout = ImageLayout(
        tile_size=512, tokens_per_tile=64, max_img_size=2048, resize_to_max_side_len=upscale, mean=0.5, std=0.5
    )
    return ChatEncoder(load_tokenizer(str(TOKENIZER)), layout)


def rows_by_number(folder: Path) -> Source:
    """The rows of a workload."""
    return build_sources(LocalConfig(path=str(folder / "saved")))[0]


def reference(encoder: ChatEncoder, folder: Path, workers: int) -> Iterator[Sequence[ReferenceBatch]]:
    """The reference's loader; it knows no steps."""
    rows = rows_by_number(folder).rows
    assert rows is not None
    pad_id = encoder.tokenizer.pad_id
    packs = ReferencePacks(rows, ReferenceProcessor(encoder.tokenizer, encoder.layout), SEQ_LENGTH, pad_id)
    batches = load_batches(packs, SHARD.batch_size, workers, SEQ_LENGTH, pad_id)
    return map(as_step, batches)


def as_step(batch: ReferenceBatch) -> list[ReferenceBatch]:
    """One batch; in a generator expression, the batch before would stay in memory."""
    return [batch]


def plan(encoder: ChatEncoder, folder: Path, workers: int) -> Iterator[Sequence[Batch]]:
    """Ours, from an index."""
    source = rows_by_number(folder)
    index = load_or_build_index(source, encoder, folder / "index", watch=iter)
    everything = np.ones(index.num_rows, bool)
    candidates = Candidates(index, everything, encoder, MINIMA, LIMITS, turns_per_visit=None)
    loader = PlanLoader(Plan([candidates], KnapsackConfig(), SEED), [source], encoder, SHARD, workers)
    return map(attrgetter("micro_batches"), loader.steps_from(Position()))


def stream(encoder: ChatEncoder, folder: Path, workers: int) -> Iterator[Sequence[Batch]]:
    """Ours, from files as they come."""
    sources = build_sources(LocalConfig(path=str(folder / "parquet"), streaming=True))
    selection = Selection(encoder, MINIMA, LIMITS, turns_per_visit=None, seed=SEED)
    files = Stream(sources, selection, KnapsackPacker(SEQ_LENGTH), SHARD.packs_per_step, val_size=0)
    loader = StreamLoader(files, encoder, SHARD, workers)
    return map(attrgetter("micro_batches"), loader.steps_from(LanePositions()))


CONTENDERS = {"reference": reference, "plan": plan, "stream": stream}


def check_same(encoder: ChatEncoder, folder: Path) -> None:
    """The contenders make the same of a sample, but for the rounding of pixels."""
    source = rows_by_number(folder)
    assert source.rows is not None
    processor = ReferenceProcessor(encoder.tokenizer, encoder.layout)
    for number in range(8):
        theirs = processor.process(source.rows[number])
        ours = build_batch([[Loaded(source.sample(number), (0,))]], encoder)
        assert torch.equal(ours.input_ids[0], theirs.input_ids)
        assert torch.equal(shift_labels(ours.labels)[0], theirs.labels)
        pixels = torch.cat(theirs.images).permute(0, 2, 3, 1) * 255
        assert (ours.tiles - pixels).abs().max() <= 2.5


# ---- one process in place of a training process --------------------------------------------------------


@dataclass
class Window:
    """What one process fetched in one turn."""

    batches: int = 0
    samples: int = 0
    tokens: int = 0  # without padding
    all_tokens: int = 0
    wall_s: float = 0
    workers_cpu_s: float = 0
    fetch_cpu_s: float = 0
    main_cpu_s: float = 0  # to fetch, copy and release
    worker_peak_mb: float = 0  # of the largest
    main_peak_mb: float = 0

    def add(self, batch: Batch | ReferenceBatch) -> None:
        """Count a batch."""
        useful = batch.segment_ids >= 0 if isinstance(batch, Batch) else batch.attention_mask
        self.batches += 1
        self.samples += batch.num_samples if isinstance(batch, Batch) else batch.samples
        self.tokens += int(useful.sum())
        self.all_tokens += useful.numel()


def consume(contender: str, upscale: bool, folder: Path, workers: int, channel: Connection) -> None:
    """Fetch batches for as many seconds as the channel asks for, again and again; answer each time with a Window."""
    torch.set_num_threads(1)
    steps = CONTENDERS[contender](build_encoder(upscale), folder, workers)
    next(steps)
    processes = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    try:
        rest(processes)
        channel.send("ready")
        while seconds := channel.recv():
            channel.send(fetch(steps, processes, seconds))
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # at which PyTorch would miss its workers
        for process in processes:
            process.kill()


def rest(processes: Sequence[psutil.Process]) -> None:
    """Stop processes until they are told to go on."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)


def fetch(
    steps: Iterator[Sequence[Batch | ReferenceBatch]], processes: Sequence[psutil.Process], seconds: float
) -> Window:
    """Whole steps for so many seconds or a little longer."""
    window = Window(workers_cpu_s=-cpu_seconds(processes))
    for process in processes:
        forget_peak(process.pid)
        process.send_signal(signal.SIGCONT)
    start = time.perf_counter()
    while window.wall_s < seconds:
        at_start = time.process_time()
        step = next(steps)
        fetched = time.process_time()
        for batch in step:
            copy(batch)
        copied = time.process_time()
        for batch in step:
            window.add(batch)
        counted = time.process_time()
        del batch, step
        window.fetch_cpu_s += fetched - at_start
        window.main_cpu_s += copied - at_start + time.process_time() - counted
        window.wall_s = time.perf_counter() - start
    rest(processes)
    window.workers_cpu_s += cpu_seconds(processes)
    window.worker_peak_mb = max(peak_mb(process.pid) for process in processes)
    window.main_peak_mb = peak_mb(os.getpid())
    return window


def copy(batch: Batch | ReferenceBatch) -> None:
    """Copy every byte into memory that is there already, as for a transfer to a device."""
    tensors = [tensor for field in fields(batch) if isinstance(tensor := getattr(batch, field.name), torch.Tensor)]
    if isinstance(batch, ReferenceBatch):
        tensors += [image for images in batch.images for image in images]
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        transfer_buffer(BUFFER_BYTES)[start:end].copy_(tensor.contiguous().view(torch.uint8).flatten())


@cache
def transfer_buffer(size: int) -> torch.Tensor:
    """Memory of this process."""
    return torch.zeros(size, dtype=torch.uint8)


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """CPU time that the processes have used."""
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def peak_mb(pid: int) -> float:
    """The most memory that was resident, shared memory included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def forget_peak(pid: int) -> None:
    """Measure the peak from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


# ---- all processes in turns ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What loading one workload with one contender came to."""

    workload: str
    workers: int
    contender: str
    tokens_per_s: float  # useful ones, for each worker
    tokens_per_cpu_s: float  # useful ones, CPU time of the workers
    samples_per_s: float  # of all workers
    full: float  # useful tokens by all tokens
    ms_per_batch: float  # wall time
    fetch_cpu_ms: float  # of the training process, for a batch
    main_cpu_ms: float  # the same to fetch, copy and release it
    main_cpu_us_per_token: float  # the same for a useful token
    worker_peak_mb: float  # of the largest worker
    main_peak_mb: float
    worker_growth_mb: float  # of the peak, from the first turn to the last
    samples_read: int  # in all turns


def compare(workload: str, folder: Path, workers: int, seconds: float) -> list[Result]:
    """All contenders on one workload, in turns."""
    context = multiprocessing.get_context("spawn")
    channels: dict[str, Connection] = {}
    for contender in CONTENDERS:
        channels[contender], theirs = context.Pipe()
        arguments = (contender, WORKLOADS[workload][1], folder, workers, theirs)
        context.Process(target=consume, args=arguments).start()
        assert channels[contender].recv() == "ready"
    windows: dict[str, list[Window]] = {contender: [] for contender in CONTENDERS}
    for _ in range(ROUNDS):
        for contender, channel in channels.items():
            channel.send(seconds)
            windows[contender].append(channel.recv())
    results = []
    for contender, channel in channels.items():
        channel.send(None)
        results.append(summary(workload, workers, contender, windows[contender]))
    return results


def summary(workload: str, workers: int, contender: str, windows: Sequence[Window]) -> Result:
    """Medians over the turns."""
    return Result(
        workload=workload,
        workers=workers,
        contender=contender,
        tokens_per_s=median(one.tokens / one.wall_s / workers for one in windows),
        tokens_per_cpu_s=median(one.tokens / one.workers_cpu_s for one in windows),
        samples_per_s=median(one.samples / one.wall_s for one in windows),
        full=sum(one.tokens for one in windows) / sum(one.all_tokens for one in windows),
        ms_per_batch=median(one.wall_s / one.batches for one in windows) * 1e3,
        fetch_cpu_ms=median(one.fetch_cpu_s / one.batches for one in windows) * 1e3,
        main_cpu_ms=median(one.main_cpu_s / one.batches for one in windows) * 1e3,
        main_cpu_us_per_token=median(one.main_cpu_s / one.tokens for one in windows) * 1e6,
        worker_peak_mb=max(one.worker_peak_mb for one in windows),
        main_peak_mb=max(one.main_peak_mb for one in windows),
        worker_growth_mb=windows[-1].worker_peak_mb - windows[0].worker_peak_mb,
        samples_read=sum(one.samples for one in windows),
    )


# ---- what is shown -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """One of our results by the reference's."""

    workload: str
    workers: int
    contender: str
    tokens_per_s: float
    tokens_per_cpu_s: float
    fetch_cpu_ms: float
    main_cpu_ms: float
    main_cpu_us_per_token: float


def compute_ratios(results: Sequence[Result]) -> list[Ratio]:
    """One for each of our results."""
    base = {(one.workload, one.workers): one for one in results if one.contender == "reference"}
    names = [field.name for field in fields(Ratio) if field.type is float]
    return [
        Ratio(
            one.workload,
            one.workers,
            one.contender,
            **{name: getattr(one, name) / getattr(base[one.workload, one.workers], name) for name in names},
        )
        for one in results
        if one.contender != "reference"
    ]


def show(results: Sequence[Result]) -> None:
    """Print the results, and what they are to the reference's."""
    figures = [
        ("tokens/s", "tokens_per_s", ",.0f"),
        ("… CPU s", "tokens_per_cpu_s", ",.0f"),
        ("samples/s", "samples_per_s", ".1f"),
        ("full", "full", ".3f"),
        ("ms/batch", "ms_per_batch", ".0f"),
        ("fetch ms", "fetch_cpu_ms", ".1f"),
        ("main ms", "main_cpu_ms", ".1f"),
        ("µs/token", "main_cpu_us_per_token", ".1f"),
        ("worker MB", "worker_peak_mb", ",.0f"),
        ("main MB", "main_peak_mb", ",.0f"),
        ("growth MB", "worker_growth_mb", "+,.0f"),
        ("samples", "samples_read", ",d"),
    ]
    print_table("", results, figures)
    names = [field.name for field in fields(Ratio)]
    by_reference = [(heading, name, ".2f") for heading, name, _ in figures if name in names]
    print_table(
        "by the reference's (goals: 3 for tokens/s, 0.1 for main ms)",
        compute_ratios(results),
        by_reference,
    )


def print_table(title: str, rows: Sequence[Result | Ratio], figures: Sequence[tuple[str, str, str]]) -> None:
    """A row for each result, a column for each figure: heading, name, format."""
    table = Table("workload", "workers", "contender", title=title)
    for heading, _, _ in figures:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.workload,
            str(row.workers),
            row.contender,
            *(format(getattr(row, name), style) for _, name, style in figures),
            end_section=row.contender == list(CONTENDERS)[-1],
        )
    Console(width=160).print(table)


def main() -> None:
    """Compare all contenders on all workloads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="loader workers")
    parser.add_argument("--seconds", type=float, default=6, metavar="N", help="of one turn")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    options = parser.parse_args()
    disable_progress_bars()
    results: list[Result] = []
    for workload in options.workloads:
        kind, upscale = WORKLOADS[workload]
        with tempfile.TemporaryDirectory() as folder:
            encoder = build_encoder(upscale)
            rows = made_up.make_rows(kind, encoder.tokenizer.hf.backend_tokenizer, SAMPLES, SEED)
            made_up.write_rows(rows, Path(folder), FILES)
            check_same(encoder, Path(folder))
            for workers in options.workers:
                results += compare(workload, Path(folder), workers, options.seconds)
    show(results)
    if options.json:
        settings = {
            "seq_length": SEQ_LENGTH,
            "batch_size": SHARD.batch_size,
            "micro_batches": SHARD.micro_batches,
            "samples": SAMPLES,
            "files": FILES,
            "seed": SEED,
            "seconds": options.seconds,
            "rounds": ROUNDS,
        }
        packages = ("torch", "numpy", "pillow", "tokenizers", "transformers", "datasets", "pyarrow")
        ratios = [asdict(ratio) for ratio in compute_ratios(results)]
        write_report(options.json, settings, packages, results, ratios=ratios)


if __name__ == "__main__":
    main()
