"""From packs to steps: each process takes its share of every step and prepares it in workers.

Two loaders with one face. ``PlanLoader`` sends ids of a plan to whichever worker is free; ``StreamLoader`` gives each
worker lanes of its own. Both yield ``StepBatches`` with the position after the step, so what is prefetched and not yet
consumed is never taken for done.
"""

import atexit
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing import active_children
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from vlmkit.data.augment import Augmentation
from vlmkit.data.lanes import LanePack, LaneReport, LaneState, Stream
from vlmkit.data.plan import Pack, Plan, Position, Visit
from vlmkit.data.sources import Source
from vlmkit.data.worker import Loaded, build_batch, ignore_signals, join_batches
from vlmkit.errors import BadSampleError, DataError
from vlmkit.processing.chat import ChatEncoder
from vlmkit.types import Batch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """Which share of every step this process takes."""

    rank: int
    world_size: int
    batch_size: int  # packs in a micro-batch
    micro_batches: int  # in a step

    @property
    def packs_per_step(self) -> int:
        """Packs in a step, over all processes."""
        return self.world_size * self.batch_size * self.micro_batches

    def micro_batches_of(self, packs: Sequence[Pack]) -> list[Sequence[Pack]]:
        """This process's micro-batches of one step's packs.

        Packs with the most tiles go together, so that at no time one process has much more to do than the others.
        """
        if self.world_size == 1:
            return _groups(packs, self.batch_size)
        heaviest_first = sorted(packs, key=lambda pack: -pack.size.tiles)
        at_once = self.world_size * self.batch_size
        return [_dealt(group, self.world_size)[self.rank] for group in _groups(heaviest_first, at_once)]

    def equal_share(self, packs: Sequence[Sequence[T]]) -> list[Sequence[T]]:
        """This process's share of packs that are not part of a step; empty packs make all shares as long.

        A model that is sharded over the processes runs only on all of them at once.
        """
        missing = -len(packs) % self.world_size
        return [*packs, *[()] * missing][self.rank :: self.world_size]

    @property
    def lanes(self) -> list[int]:
        """The lanes of this process, micro-batch after micro-batch."""
        return list(range(self.rank, self.packs_per_step, self.world_size))


@dataclass(frozen=True, slots=True)
class LanePositions:
    """The states of lanes, after the same number of packs each."""

    lanes: Mapping[int, LaneState] = field(default_factory=dict)  # empty: the start

    @property
    def epoch(self) -> int:
        """Epochs that every lane of every source has done."""
        return min(self.epochs_of_sources, default=0)

    @property
    def epochs_of_sources(self) -> list[int]:
        """Epochs that every lane has done, for each source."""
        of_lanes = zip(*(lane.following for lane in self.lanes.values()), strict=True)
        return [min(place.epoch for place in places) for places in of_lanes]


@dataclass(frozen=True, slots=True)
class StepBatches:
    """One step's data on one process, and the place in the data once the step is done."""

    micro_batches: list[Batch]
    position: Position | LanePositions
    report: LaneReport = field(default_factory=LaneReport)


class PlanLoader:
    """Endless steps of a plan."""

    def __init__(
        self,
        plan: Plan,
        sources: Sequence[Source],
        encoder: ChatEncoder,
        shard: Shard,
        num_workers: int,
        augmentation: Augmentation | None = None,
        pad_left: bool = False,
    ) -> None:
        self.plan = plan
        self._worker = _PlanWorker(sources, encoder, augmentation, pad_left)
        self._shard = shard
        self._num_workers = num_workers

    def steps_from(self, position: Position) -> Iterator[StepBatches]:
        """Yield steps without end.

        Raises:
            DataError: There is nothing to train on.
        """
        requests = _Requests(self.plan, self._shard, position)
        a_step = -(-self._shard.micro_batches // max(self._num_workers, 1))
        answers = iter(_loader(self._worker, self._num_workers, max(a_step, 2), requests))
        while True:
            yield self._step(list(islice(answers, self._shard.micro_batches)))

    def _step(self, answers: Sequence[tuple[Batch, Position]]) -> StepBatches:
        return StepBatches([batch for batch, _ in answers], answers[-1][1])


class StreamLoader:
    """Endless steps of a stream."""

    def __init__(
        self,
        stream: Stream,
        encoder: ChatEncoder,
        shard: Shard,
        num_workers: int,
        augmentation: Augmentation | None = None,
        pad_left: bool = False,
    ) -> None:
        self._stream = stream
        self._encoder = encoder
        self._shard = shard
        self._num_workers = useful_workers(shard, num_workers)
        self._augmentation = augmentation
        self._pad_left = pad_left

    def steps_from(self, position: LanePositions) -> Iterator[StepBatches]:
        """Yield steps without end.

        Raises:
            DataError: There is nothing to train on.
        """
        states = {lane: position.lanes.get(lane, self._stream.start) for lane in self._shard.lanes}
        worker = _LaneWorker(self._stream, self._encoder, self._shard, states, self._augmentation, self._pad_left)
        answers = iter(_loader(worker, self._num_workers, ahead=1))
        while True:
            yield self._step(list(islice(answers, max(self._num_workers, 1))))

    def _step(self, answers: Sequence["_LanePart | DataError"]) -> StepBatches:
        parts: list[_LanePart] = []
        for answer in answers:
            if isinstance(answer, DataError):
                raise answer
            parts.append(answer)
        batches = [batch for part in parts for batch in part.batches]
        together = len(batches) // self._shard.micro_batches  # these make one micro-batch
        pad_id = self._encoder.tokenizer.pad_id
        report = LaneReport()
        for part in parts:
            report.merge(part.report)
        return StepBatches(
            [join_batches(group, pad_id, self._pad_left) for group in _groups(batches, together)],
            LanePositions({lane: state for part in parts for lane, state in part.states.items()}),
            report,
        )


class ValidationSet:
    """This process's share of the held-out packs, prepared anew each time that it is gone through."""

    def __init__(
        self,
        packs: Sequence[Sequence[Visit | Loaded]],
        sources: Sequence[Source],
        encoder: ChatEncoder,
        batch_size: int,
        num_workers: int,
        pad_left: bool = False,
    ) -> None:
        self.num_samples = sum(map(len, packs))
        self._worker = _ValidationWorker(_groups(packs, batch_size), sources, encoder, pad_left)
        self._num_workers = min(num_workers, len(self._worker))

    def __iter__(self) -> Iterator[Batch]:
        return iter(_loader(self._worker, self._num_workers, ahead=2, sampler=range(len(self._worker))))


def useful_workers(shard: Shard, num_workers: int) -> int:
    """How many workers a stream can use: all have as many lanes, each whole micro-batches or a part of one."""
    batch, lanes = shard.batch_size, shard.batch_size * shard.micro_batches
    divisors = [n for n in range(1, num_workers + 1) if lanes % n == 0]
    return max((n for n in divisors if lanes // n % batch == 0 or batch % (lanes // n) == 0), default=0)


def load_visit(visit: Visit, sources: Sequence[Source]) -> Loaded:
    """Read the row of a visit."""
    key = (visit.epoch, visit.source, visit.row)
    try:
        sample = sources[visit.source].sample(visit.row)
    except BadSampleError as error:
        return Loaded(error, key)
    return Loaded(replace(sample, turns=tuple(sample.turns[turn] for turn in visit.turns)), key)


def _loader(dataset: Dataset[T], num_workers: int, ahead: int, sampler: Iterable[Any] | None = None) -> DataLoader[T]:
    """PyTorch's loader, which hands on what the dataset makes.

    Args:
        dataset: Works in the loader processes.
        num_workers: Loader processes; 0: in this process.
        ahead: What each of them makes before it is asked for.
        sampler: What a map-style dataset is asked for.
    """
    atexit.register(_end_workers)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        prefetch_factor=ahead if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
    )


def _end_workers() -> None:
    """End the loader processes that an error has left: this process would wait for them, and they ignore SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # at which PyTorch would complain of killed loader processes
    for process in active_children():
        process.kill()


def _groups(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Runs of so many items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _dealt(group: Sequence[Pack], world_size: int) -> list[list[Pack]]:
    """Packs, the heaviest first, dealt to processes back and forth, so that each gets as many and about as much."""
    hands: list[list[Pack]] = [[] for _ in range(world_size)]
    for turn, packs in enumerate(_groups(group, world_size)):
        for hand, pack in zip(hands, packs if turn % 2 == 0 else reversed(packs), strict=True):
            hand.append(pack)
    return hands


@dataclass(frozen=True, slots=True)
class _Request:
    """What travels to a worker: ids only."""

    packs: Sequence[Sequence[Visit]]
    lateness: int
    position: Position  # after the step


class _Requests(Sampler[_Request]):
    """This process's micro-batches as ids, without end."""

    def __init__(self, plan: Plan, shard: Shard, position: Position) -> None:
        self._plan = plan
        self._shard = shard
        self._position = position

    def __iter__(self) -> Iterator[_Request]:
        step: list[Pack] = []
        for pack, after in self._plan.packs_from(self._position):
            step.append(pack)
            if len(step) == self._shard.packs_per_step:
                for packs in self._shard.micro_batches_of(step):
                    yield _Request([pack.visits for pack in packs], max(pack.lateness for pack in packs), after)
                step = []


class _PlanWorker(Dataset[tuple[Batch, Position]]):
    """Answers a request; PyTorch's name for it is a map-style dataset."""

    def __init__(
        self, sources: Sequence[Source], encoder: ChatEncoder, augmentation: Augmentation | None, pad_left: bool
    ) -> None:
        self._sources = sources
        self._encoder = encoder
        self._augmentation = augmentation
        self._pad_left = pad_left

    def __getitem__(self, request: _Request) -> tuple[Batch, Position]:
        packs = [[load_visit(visit, self._sources) for visit in visits] for visits in request.packs]
        batch = build_batch(packs, self._encoder, self._augmentation, self._pad_left)
        return replace(batch, lateness=request.lateness), request.position


class _ValidationWorker(Dataset[Batch]):
    """Makes the micro-batch of a number."""

    def __init__(
        self,
        micro_batches: Sequence[Sequence[Sequence[Visit | Loaded]]],
        sources: Sequence[Source],
        encoder: ChatEncoder,
        pad_left: bool,
    ) -> None:
        self._micro_batches = micro_batches
        self._sources = sources
        self._encoder = encoder
        self._pad_left = pad_left

    def __len__(self) -> int:
        return len(self._micro_batches)

    def __getitem__(self, number: int) -> Batch:
        packs = [[self._loaded(one) for one in pack] for pack in self._micro_batches[number]]
        return build_batch(packs, self._encoder, pad_left=self._pad_left)

    def _loaded(self, one: Visit | Loaded) -> Loaded:
        return load_visit(one, self._sources) if isinstance(one, Visit) else one


@dataclass(frozen=True, slots=True)
class _LanePart:
    """What one worker makes for one step."""

    batches: list[Batch]
    states: dict[int, LaneState]  # after the step
    report: LaneReport

    def pin_memory(self) -> "_LanePart":
        """Called by the loader's pinning thread, for asynchronous copies to a GPU."""
        return replace(self, batches=[batch.pin_memory() for batch in self.batches])


class _LaneWorker(IterableDataset[_LanePart | DataError]):
    """Goes on with its lanes step by step; PyTorch's name for it is an iterable dataset."""

    def __init__(
        self,
        stream: Stream,
        encoder: ChatEncoder,
        shard: Shard,
        states: Mapping[int, LaneState],
        augmentation: Augmentation | None,
        pad_left: bool,
    ) -> None:
        self._stream = stream
        self._encoder = encoder
        self._shard = shard
        self._states = states
        self._augmentation = augmentation
        self._pad_left = pad_left

    def __iter__(self) -> Iterator[_LanePart | DataError]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        share = len(self._states) // workers
        lanes = self._shard.lanes[number * share : (number + 1) * share]
        try:
            streams = [self._stream.packs(lane, self._states[lane]) for lane in lanes]
            while True:
                yield self._part(lanes, [next(stream) for stream in streams])
        except DataError as error:
            yield error  # raised in the training process: raised here it would come with a worker's traceback

    def _part(self, lanes: Sequence[int], packs: Sequence[LanePack]) -> _LanePart:
        report = LaneReport()
        for pack in packs:
            report.merge(pack.report)
        batches = []
        for together in _groups(packs, min(self._shard.batch_size, len(packs))):
            samples = [pack.samples for pack in together]
            batch = build_batch(samples, self._encoder, self._augmentation, self._pad_left)
            batches.append(replace(batch, lateness=max(pack.lateness for pack in together)))
        return _LanePart(batches, {lane: pack.state for lane, pack in zip(lanes, packs, strict=True)}, report)
