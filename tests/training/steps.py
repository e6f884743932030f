"""A small real trainer, and steps of made-up samples for it."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.conftest import composed, png
from vlmkit.config import TrainConfig
from vlmkit.data.loader import StepBatches
from vlmkit.data.plan import Position
from vlmkit.data.worker import Loaded, build_batch
from vlmkit.distributed import Ranks
from vlmkit.model.build import build_model
from vlmkit.model.packed import PackedVLM
from vlmkit.model.weights import load_checkpoint_weights
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer, load_tokenizer
from vlmkit.training.loop import Trainer
from vlmkit.types import Batch, Sample, Turn

SMALL = (
    *(f"model.{part}.hidden_size=32" for part in ("vision", "language")),
    *(f"model.{part}.intermediate_size=64" for part in ("vision", "language")),
    *(f"model.{part}.num_layers=1" for part in ("vision", "language")),
    "trainer.max_training_steps=100",
)
ANSWERS = ("red", "a blue circle", "yes", "no", "teal triangle", "gray")


@cache
def small_config(*overrides: str) -> TrainConfig:
    """The demo's config with a smaller model."""
    config = composed("train", *SMALL, *overrides)
    assert isinstance(config, TrainConfig)
    return config


def build_trainer(
    config: TrainConfig, dtype: torch.dtype = torch.float32, begin_from: Path | None = None
) -> tuple[Trainer, Ranks]:
    """With the weights of a checkpoint, or the same random ones whenever it is called."""
    ranks = Ranks(config.trainer, config.seed)
    tokenizer = tokenizer_of(config.model.tokenizer)
    model = PackedVLM(build_model(config.model, tokenizer), ImageLayout.from_config(config.model))
    model.to(dtype)
    if begin_from:
        load_checkpoint_weights(model.hf, begin_from)
    return Trainer(model, config, ranks), ranks


@cache
def tokenizer_of(name: str) -> ChatTokenizer:
    return load_tokenizer(name)


def encoder_of(config: TrainConfig) -> ChatEncoder:
    return ChatEncoder(tokenizer_of(config.model.tokenizer), ImageLayout.from_config(config.model))


def sample(number: int) -> Sample:
    """Every third has no picture, every fourth two."""
    noise = np.random.default_rng(number)
    count = 0 if number % 3 == 0 else 2 if number % 4 == 0 else 1
    pictures = [noise.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(count)]
    turns = tuple(Turn(f"what is {turn}?", str(noise.choice(ANSWERS))) for turn in range(1 + number % 3))
    return Sample(f"made up/{number}", tuple(png(Image.fromarray(picture)) for picture in pictures), turns)


def batch_of(encoder: ChatEncoder, packs: Sequence[Sequence[int]]) -> Batch:
    """A micro-batch of packs of samples, by their numbers."""
    return build_batch([[Loaded(sample(number), ()) for number in pack] for pack in packs], encoder)


def step_of(encoder: ChatEncoder, *micro_batches: Sequence[Sequence[int]], step: int = 1) -> StepBatches:
    """One process's data of a step."""
    return StepBatches([batch_of(encoder, packs) for packs in micro_batches], Position(0, step))
