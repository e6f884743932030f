"""The data side of a training run, put together: dataset → index → plan → loader."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vlmkit.config import TrainConfig
from vlmkit.data.index import SampleIndex, build_index
from vlmkit.data.loader import Shard, TrainLoader, validation_batches
from vlmkit.data.plan import Plan
from vlmkit.data.sources import Dataset, build_dataset
from vlmkit.processing.chat import ChatEncoder
from vlmkit.types import Batch, Sample


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run reads."""

    dataset: Dataset
    loader: TrainLoader
    val_batches: list[Batch]  # this process's share

    @property
    def filtered_ratio(self) -> float:
        """Share of the training samples that are left out."""
        return 1 - len(self.loader.plan) / len(self.dataset.train)

    def describe(self) -> str:
        """One line for the banner."""
        plan = self.loader.plan
        packs = plan.epoch(0)
        tokens = sum(pack.tokens for pack in packs)
        text = f"{self.dataset.name}: {len(plan):,} samples, {tokens:,} tokens in {len(packs):,} packs an epoch"
        text += f" ({tokens / len(packs) / plan.seq_length:.1%} full)" if packs else ""
        left_out = "; ".join(f"{count:,} {reason}" for reason, count in plan.left_out.most_common())
        return f"{text}; left out: {left_out}" if left_out else text


def build_training_data(
    config: TrainConfig,
    encoder: ChatEncoder,
    rank: int,
    world_size: int,
    watch: Callable[[Sequence[Sample]], Iterable[Sample]],
) -> TrainingData:
    """Read, index, plan and get ready to load the configured data.

    Args:
        config: The run's config.
        encoder: Turns samples into ids; it decides their lengths.
        rank: Number of this process.
        world_size: Number of processes.
        watch: Shows progress over the samples.
    """
    shard = Shard(rank, world_size, config.trainer.batch_size, config.trainer.gradient_accumulation_steps)
    dataset = build_dataset(config.dataset, config.seed)

    def index(samples: Iterable[Sample]) -> SampleIndex:
        return build_index(samples, encoder, config.filter, config.dataset.max_images_per_example)

    def plan(index: SampleIndex) -> Plan:
        turns = config.dataset.turns_per_visit
        return Plan(index, config.packing, config.seed, config.max_sample_length, turns)

    train_index = index(watch(dataset.train))
    loader = TrainLoader(plan(train_index), dataset.train, encoder, shard, config.dataset.num_workers)
    val_plan = plan(index(dataset.val))
    val_batches = validation_batches(val_plan, dataset.val, encoder, shard, config.trainer.max_val_batches)
    return TrainingData(dataset, loader, val_batches)
