"""The data side of a training run, put together: sources → index and plan, or stream → loader."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from vlmkit.config import RATING_AXES, NoPackingConfig, TrainConfig
from vlmkit.data.augment import Augmentation
from vlmkit.data.index import SampleIndex, load_or_build_index
from vlmkit.data.lanes import Selection, Stream
from vlmkit.data.loader import LanePositions, PlanLoader, Shard, StepBatches, StreamLoader, ValidationSet
from vlmkit.data.order import keyed_permutation
from vlmkit.data.packing import KnapsackPacker, Size
from vlmkit.data.plan import Candidates, Limits, Plan, Position, build_packer
from vlmkit.data.ratings import FilterCounts
from vlmkit.data.rows import Row
from vlmkit.data.sources import Question, Source, build_sources
from vlmkit.data.worker import Loaded
from vlmkit.errors import BadSampleError, ConfigError, DataError, describe_counts
from vlmkit.paths import cache_dir
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.tokenizer import ChatTokenizer

EVERY_RATING = (1,) * len(RATING_AXES)
VALIDATION_SEED = 0  # and no rating filter: runs with other seeds and other filters validate on the same samples
Watch = Callable[[Sequence[int]], Iterable[int]]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run reads."""

    sources: Sequence[Source]
    loader: PlanLoader | StreamLoader
    packs_per_step: int  # over all processes
    start: Position | LanePositions
    validation: ValidationSet  # this process's share
    counts: FilterCounts = field(default_factory=FilterCounts)  # what the filter does, as far as known in advance
    bad: Sequence[BadSampleError] = ()  # samples to train on that cannot be read, as far as known in advance

    def steps_from(self, position: Position | LanePositions) -> Iterator[StepBatches]:
        """Steps without end, from a position that this data's loader gave.

        Raises:
            DataError: There is nothing to train on.
        """
        match self.loader, position:
            case PlanLoader() as loader, Position() as place:
                return loader.steps_from(place)
            case StreamLoader() as loader, LanePositions() as places:
                return loader.steps_from(places)
        raise AssertionError("a checkpoint's data_keys keep positions of plans and of streams apart")

    def contents(self, tokenizer: ChatTokenizer) -> dict[str, object]:
        """What changes with the contents of the files that a run reads."""
        return {
            "contents of the dataset": [source.contents for source in self.sources],
            "contents of the tokenizer": tokenizer.fingerprint,
            "unreadable rows": len(self.bad),
        }

    @property
    def test(self) -> Sequence[Question]:
        """Test questions, if the dataset has any."""
        return [question for source in self.sources for question in source.test]

    def rows(self) -> Iterator[Row]:
        """All rows, held-out ones included."""
        return (row for source in self.sources for row in source.all_rows())

    def describe_end(self, position: Position | LanePositions) -> str:
        """How often a stream of several sources went through each; empty for other data, which know it in advance."""
        if not isinstance(position, LanePositions) or len(self.sources) == 1:
            return ""
        laps = zip(self.sources, position.epochs_of_sources, strict=True)
        return ", ".join(f"{source.name} {epochs} time(s) through" for source, epochs in laps)

    @property
    def skipped(self) -> list[str]:
        """Files that cannot be read, each with the reason."""
        return [reason for source in self.sources for reason in source.skipped]

    def describe(self) -> str:
        """One line for the banner."""
        skipped = f"{len(self.skipped):,} file(s) skipped, the first is {self.skipped[0]}" if self.skipped else ""
        if isinstance(self.loader, StreamLoader):
            weights = [source.weight or 1.0 for source in self.sources]
            names = _mixed(self.sources, [f"{weight / sum(weights):.1%}" for weight in weights])
            files = sum(len(source.files) for source in self.sources)
            return "; ".join(filter(None, [f"{names}: streamed from {files:,} file(s)", skipped]))
        plan = self.loader.plan
        shares = zip(plan.shares_of_sources, plan.epochs_of_sources, strict=True)
        names = _mixed(self.sources, [f"{share:.1%}, {epochs:.2f} times through" for share, epochs in shares])
        text = f"{names}: {len(plan):,} samples an epoch"
        if packs := plan.first_packs:
            tokens = sum(pack.size.tokens for pack in packs)
            samples = sum(len(pack.visits) for pack in packs)
            text += f" in about {round(len(packs) * len(plan) / samples):,} packs"
            text += f", {tokens / len(packs) / plan.seq_length:.1%} full"
        left_out = "; ".join(f"{count:,} {reason}" for reason, count in plan.left_out.most_common())
        parts = [text, self.counts.describe(), left_out and f"left out: {left_out}", skipped]
        return "; ".join(filter(None, parts))


def build_training_data(
    config: TrainConfig, encoder: ChatEncoder, rank: int, world_size: int, watch: Watch
) -> TrainingData:
    """Read, index, plan and get ready to load the configured data.

    Args:
        config: The run's config.
        encoder: Turns samples into ids; it decides their lengths.
        rank: Number of this process.
        world_size: Number of processes.
        watch: Shows progress over the parts of an index that is built.
    """
    shard = Shard(rank, world_size, config.trainer.batch_size, config.trainer.gradient_accumulation_steps)
    sources = build_sources(config.dataset)
    if config.dataset.streaming:
        return _streamed(config, sources, encoder, shard)
    return _planned(config, sources, encoder, shard, watch)


def _planned(
    config: TrainConfig, sources: Sequence[Source], encoder: ChatEncoder, shard: Shard, watch: Watch
) -> TrainingData:
    """Every row has a number: index, plan, and workers that are told numbers."""
    held_out = held_out_rows(sources, config.dataset.val_size)
    to_validate = _as_validated(sources)
    indexes = [load_or_build_index(source, encoder, cache_dir(), watch) for source in sources]
    val_indexes = [
        index if source.validation is None else load_or_build_index(source.validation, encoder, cache_dir(), watch)
        for source, index in zip(sources, indexes, strict=True)
    ]
    bad = [error for index in indexes for error in index.bad]
    _check_bad(bad, sum(map(len, held_out)), config)

    def candidates(
        indexes: Sequence[SampleIndex], parts: Sequence[NDArray[np.bool_]], minima: Sequence[int]
    ) -> list[Candidates]:
        return [
            Candidates(index, part, encoder, minima, limits_of(config), config.dataset.turns_per_visit)
            for index, part in zip(indexes, parts, strict=True)
        ]

    weights = [source.weight for source in sources]
    to_train = candidates(indexes, [~part for part in held_out], config.filter.minima)
    plan = Plan(to_train, config.packing, config.seed, weights)
    val_plan = Plan(candidates(val_indexes, held_out, EVERY_RATING), config.packing, VALIDATION_SEED)
    val_packs = islice(val_plan.packs(0), config.trainer.max_val_packs)
    counts = FilterCounts()
    for part in to_train:
        counts.merge(part.counts)
    pad_left = isinstance(config.packing, NoPackingConfig)
    workers = config.dataset.num_workers
    return TrainingData(
        sources=sources,
        loader=PlanLoader(plan, sources, encoder, shard, workers, augmentation_of(config), pad_left),
        packs_per_step=shard.packs_per_step,
        start=Position(),
        validation=ValidationSet(
            shard.equal_share([pack.visits for pack in val_packs]),
            to_validate,
            encoder,
            shard.batch_size,
            workers,
            pad_left,
        ),
        counts=counts,
        bad=bad,
    )


def _streamed(config: TrainConfig, sources: Sequence[Source], encoder: ChatEncoder, shard: Shard) -> TrainingData:
    """Files are read as they come: a lane for each pack of a step."""
    packer = build_packer(config.packing)
    if not isinstance(packer, KnapsackPacker):
        raise ConfigError("packing: a stream is packed by knapsack or none; for the others dataset.streaming=false")
    selection = Selection(encoder, config.filter.minima, limits_of(config), config.dataset.turns_per_visit, config.seed)
    stream = Stream(sources, selection, packer, shard.packs_per_step, config.dataset.val_size)
    to_validate = _as_validated(sources)
    unfiltered = replace(selection, minima=EVERY_RATING, seed=VALIDATION_SEED)
    validated = Stream(to_validate, unfiltered, packer, shard.packs_per_step, config.dataset.val_size)
    pad_left = isinstance(config.packing, NoPackingConfig)
    workers = config.dataset.num_workers
    return TrainingData(
        sources=sources,
        loader=StreamLoader(stream, encoder, shard, workers, augmentation_of(config), pad_left),
        packs_per_step=shard.packs_per_step,
        start=LanePositions(),
        validation=ValidationSet(
            _held_out_packs(validated.held_out(unfiltered, config.dataset.val_size), packer, config, shard),
            to_validate,
            encoder,
            shard.batch_size,
            workers,
            pad_left,
        ),
    )


def _as_validated(sources: Sequence[Source]) -> list[Source]:
    """The sources whose held-out rows are validated on."""
    return [source.validation or source for source in sources]


def _held_out_packs(
    samples: Iterable[tuple[Loaded, Size]], packer: KnapsackPacker, config: TrainConfig, shard: Shard
) -> list[Sequence[Loaded]]:
    """Packs of held-out samples, as many as validation takes; those of this process."""
    waiting: dict[int, Loaded] = {}

    def sizes() -> Iterator[Size]:
        for number, (loaded, size) in enumerate(samples):
            waiting[number] = loaded
            yield size

    packs = ([waiting.pop(number) for number in numbers] for numbers in packer.pack(sizes()))
    return shard.equal_share(list(islice(packs, config.trainer.max_val_packs)))


def _check_bad(bad: Sequence[BadSampleError], num_rows: int, config: TrainConfig) -> None:
    """Raise DataError if too many samples cannot be read."""
    if len(bad) > config.dataset.max_bad_share * num_rows:
        raise DataError(
            f"{len(bad):,} of {num_rows:,} samples cannot be read, more than dataset.max_bad_share="
            f"{config.dataset.max_bad_share}: {describe_reasons(bad)}; the first is {bad[0]}"
        )


def describe_reasons(bad: Iterable[BadSampleError]) -> str:
    """The reasons of bad samples, with how many there are of each."""
    return describe_counts(Counter(error.reason for error in bad))


def _mixed(sources: Sequence[Source], shares: Sequence[str]) -> str:
    """Names of the sources, with their shares if there are several."""
    if len(sources) == 1:
        return sources[0].name
    return " + ".join(f"{source.name} ({share})" for source, share in zip(sources, shares, strict=True))


def held_out_rows(sources: Sequence[Source], val_size: int) -> list[NDArray[np.bool_]]:
    """For each source, which of its rows are held out of training; together ``val_size``, each source its share.

    They are the same whatever the run's seed, so that runs can be compared.
    """
    sizes = [len(source.rows or ()) for source in sources]
    if val_size >= sum(sizes):
        raise ConfigError(f"dataset.val_size={val_size}: must be below the {sum(sizes)} samples of the dataset")
    held_out = []
    for size in sizes:
        part = np.zeros(size, bool)
        part[keyed_permutation(size, VALIDATION_SEED)[: val_size * size // sum(sizes)]] = True
        held_out.append(part)
    return held_out


def limits_of(config: TrainConfig) -> Limits:
    """What a sample may have at most."""
    packing = config.packing
    return Limits(
        tokens=config.max_sample_length,
        images=config.dataset.max_images_per_example,
        pack_images=packing.max_images_per_knapsack,
        pack_tiles=packing.max_tiles_per_knapsack,
    )


def augmentation_of(config: TrainConfig) -> Augmentation | None:
    """What the run does to its training pictures; None: nothing."""
    augment = config.dataset.augment
    return Augmentation(augment, config.seed) if augment.color_jitter or augment.rotation_degrees else None
