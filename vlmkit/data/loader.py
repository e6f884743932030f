"""From the plan to micro-batches: each process takes its share of every step and prepares it in workers."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vlmkit.data.plan import Pack, Plan, Position
from vlmkit.data.worker import build_batch
from vlmkit.errors import DataError
from vlmkit.processing.chat import ChatEncoder
from vlmkit.types import Batch, Sample


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
        """This process's micro-batches of one step's packs."""
        own = packs[self.rank :: self.world_size]
        return [own[i : i + self.batch_size] for i in range(0, len(own), self.batch_size)]


@dataclass(frozen=True, slots=True)
class StepBatches:
    """One step's data on one process, and the place in the plan once the step is done."""

    micro_batches: list[Batch]
    position: Position


@dataclass(frozen=True, slots=True)
class _Request:
    """What travels to a worker: ids only."""

    packs: Sequence[Pack]
    position: Position  # after the step


class TrainLoader:
    """Endless steps from a position of the plan on."""

    def __init__(
        self, plan: Plan, samples: Sequence[Sample], encoder: ChatEncoder, shard: Shard, num_workers: int
    ) -> None:
        self.plan = plan
        self._worker = _Worker(samples, encoder)
        self._shard = shard
        self._num_workers = num_workers

    def steps_from(self, position: Position) -> Iterator[StepBatches]:
        """Yield steps without end.

        Raises:
            DataError: A sample cannot be decoded, or there is nothing to train on.
        """
        loader: DataLoader[_Answer] = DataLoader(
            self._worker,
            batch_size=None,
            sampler=_Requests(self.plan, self._shard, position),
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_signals,
        )
        micro_batches: list[Batch] = []
        for answer in loader:
            if isinstance(answer, DataError):
                raise answer
            batch, after = answer
            micro_batches.append(batch)
            if len(micro_batches) == self._shard.micro_batches:
                yield StepBatches(micro_batches, after)
                micro_batches = []


def validation_batches(
    plan: Plan, samples: Sequence[Sample], encoder: ChatEncoder, shard: Shard, max_batches: int
) -> list[Batch]:
    """This process's share of the held-out packs: ``max_batches`` micro-batches at most."""
    packs = plan.epoch(0)[: max_batches * shard.batch_size * shard.world_size]
    own = packs[shard.rank :: shard.world_size]
    starts = range(0, len(own), shard.batch_size)
    return [build_batch(own[i : i + shard.batch_size], samples, encoder) for i in starts]


def ignore_signals(_worker: int) -> None:
    """Leave signals to the training process, also those sent to the whole group: it saves, then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


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
                yield from (_Request(packs, after) for packs in self._shard.micro_batches_of(step))
                step = []


_Answer = tuple[Batch, Position] | DataError


class _Worker(Dataset[_Answer]):
    """Answers a request; PyTorch's name for it is a map-style dataset."""

    def __init__(self, samples: Sequence[Sample], encoder: ChatEncoder) -> None:
        self._samples = samples
        self._encoder = encoder

    def __getitem__(self, request: _Request) -> _Answer:
        try:
            return build_batch(request.packs, self._samples, self._encoder), request.position
        except DataError as error:
            return error  # raised in the training process: raised here it would come with a worker's traceback
