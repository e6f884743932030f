"""Useful tokens per second and peak memory of a training step: ours, and the reference's way of computing it.

    python benchmarks/train_step.py [--json FILE] [--models NAME ...] [--steps N] [--profile]

A step is forward, backward, clipping and AdamW on one micro-batch of two packs. Samples are made up, from a seed: some
tiles, and a text of log-normal length whose last two fifths are learnt. Useful tokens are those of samples.

The reference (nanoVLM) fills packs with its own packer (58 % full), pads them on the left to the whole length, lets
samples see all that is in front of them in the pack, and computes the logits of all positions. Both train the same
model (random weights) on the same samples; on a GPU in bf16. Each variant runs in a process of its own. On a CPU that
has one thread, times are its CPU time, which other jobs disturb least, and memory is what it grows by from before the
first step; on a GPU memory is the most that was allocated, weights included.

On a CPU: ``tiny``, and ``mid`` with a real vocabulary. On a GPU: the shapes of nanoVLM's models, every attention
backend that is there, and where the time goes (``--profile`` asks for that on a CPU too).
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from report import write_report
from rich.console import Console
from rich.table import Table

from vlmkit.config import Attention, LanguageConfig, ModelConfig, OptimizerConfig, VisionConfig
from vlmkit.data.greedy import GreedyPacker
from vlmkit.data.packing import KnapsackPacker, Packer
from vlmkit.model.build import build_model
from vlmkit.model.flops import Work, count_training_flops, find_peak_flops
from vlmkit.model.layers import wrap_layers
from vlmkit.model.loss import shift_labels
from vlmkit.model.packed import PackedVLM
from vlmkit.paths import config_dir
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import load_tokenizer
from vlmkit.training.optim import build_optimizer
from vlmkit.types import IGNORED_LABEL, Batch

SEED = 0
PACKS = 2  # of a micro-batch
WARM_UP = 2  # steps that are not timed
LEARNT = 0.4  # share of a text
SMOLLM2_VOCABULARY = 49152 + 66
GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Shape:
    """A model, and samples that suit it."""

    model: ModelConfig
    vocabulary: int | None  # tokens; None: that of the tiny tokenizer
    seq_length: int
    tiles: tuple[int, ...]  # of a sample: one of these
    text: tuple[float, float]  # tokens: median and spread (standard deviation of the logarithm)


@dataclass(frozen=True)
class Variant:
    """A way to compute a step."""

    name: str
    attention: Attention | None  # None: the reference's way
    compiled: bool = False
    recomputed: bool = False


@dataclass(frozen=True)
class Result:
    """What a variant needed for a model."""

    model: str
    variant: str
    full: float  # useful tokens by computed positions of the language model
    seconds: float  # of a step, median
    tokens_per_second: float  # useful
    peak_mb: float
    mfu: float | None  # share of the GPU's peak
    profile: str = ""


def tiny() -> Shape:
    """conf/model/tiny.yaml."""
    yaml = OmegaConf.load(config_dir() / "model" / "tiny.yaml")
    del yaml["defaults"]
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), yaml))
    assert isinstance(config, ModelConfig)
    return Shape(config, None, seq_length=1024, tiles=(1, 2, 5), text=(60, 0.8))


def mid() -> Shape:
    """Small towers, but the vocabulary of SmolLM2."""
    vision = VisionConfig(hidden_size=192, intermediate_size=768, num_layers=4, num_heads=4, tile_size=128)
    language = LanguageConfig(hidden_size=256, intermediate_size=768, num_layers=6, num_heads=4, num_kv_heads=2)
    image = {"image": replace(ModelConfig(tokenizer="tiny").image, max_img_size=512)}
    config = ModelConfig(tokenizer="tiny", vision=vision, language=language, pixel_shuffle_factor=2, **image)
    return Shape(config, SMOLLM2_VOCABULARY, seq_length=1024, tiles=(1, 2, 5), text=(60, 0.8))


def nanovlm_222m() -> Shape:
    """SigLIP-B/16-224 and SmolLM2-135M."""
    vision = VisionConfig(tile_size=224)
    language = LanguageConfig(hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9, num_kv_heads=3)
    image = {"image": replace(ModelConfig(tokenizer="tiny").image, max_img_size=224)}
    config = ModelConfig(tokenizer="tiny", vision=vision, language=language, pixel_shuffle_factor=2, **image)
    return Shape(config, SMOLLM2_VOCABULARY, seq_length=4096, tiles=(1, 2), text=(200, 0.8))


def nanovlm_460m() -> Shape:
    """SigLIP2-B/16-512 and SmolLM2-360M."""
    return Shape(ModelConfig(tokenizer="tiny"), SMOLLM2_VOCABULARY, seq_length=4096, tiles=(1, 5, 7), text=(200, 0.8))


SHAPES: dict[str, Callable[[], Shape]] = {f.__name__: f for f in (tiny, mid, nanovlm_222m, nanovlm_460m)}


def variants() -> list[Variant]:
    """Those that run here."""
    if not GPU:
        ours = [Variant("sdpa", Attention.sdpa), Variant("sdpa, recomputed", Attention.sdpa, recomputed=True)]
        return [Variant("reference", None), *ours]
    backends = [Attention.sdpa, Attention.flex, Attention.varlen]
    if find_spec("flash_attn"):
        backends.append(Attention.flash_attention_2)
    return [
        Variant("reference", None),
        *(Variant(backend.value, backend) for backend in backends),
        Variant("varlen, compiled", Attention.varlen, compiled=True),
        Variant("varlen, recomputed", Attention.varlen, recomputed=True),
    ]


# ---- data ----------------------------------------------------------------------------------------------


def make_batches(shape: Shape, model: PackedVLM, variant: Variant, count: int) -> list[Batch]:
    """Micro-batches of made-up samples, packed the variant's way."""
    rng = np.random.default_rng(SEED)
    reference = variant.attention is None
    packer: Packer = GreedyPacker(shape.seq_length) if reference else KnapsackPacker(shape.seq_length)
    samples: list[tuple[int, int]] = []  # tokens and tiles

    def arrive() -> Iterator[tuple[int, int, int]]:
        while True:
            tiles = int(rng.choice(shape.tiles))
            text = int(np.ceil(rng.lognormal(np.log(shape.text[0]), shape.text[1])))
            tokens = min(tiles * shape.model.tokens_per_tile + text, shape.seq_length - 1)
            samples.append((tokens, tiles))
            yield tokens, 1, tiles

    packs = islice(packer.pack(arrive()), count * PACKS)
    made = [[samples[number] for number in pack] for pack in packs]
    lay_out = reference_batch if reference else our_batch
    return [lay_out(made[start : start + PACKS], shape, model, rng) for start in range(0, len(made), PACKS)]


def our_batch(
    packs: Sequence[Sequence[tuple[int, int]]], shape: Shape, model: PackedVLM, rng: np.random.Generator
) -> Batch:
    """Samples side by side, padded on the right to the longest pack."""
    length = max(sum(tokens for tokens, _ in pack) for pack in packs)
    return _fill(packs, length, 0, shape, model, rng)


def reference_batch(
    packs: Sequence[Sequence[tuple[int, int]]], shape: Shape, model: PackedVLM, rng: np.random.Generator
) -> Batch:
    """A padding token after each sample, padded on the left to the whole length; positions run through the pack."""
    batch = _fill(packs, shape.seq_length, 1, shape, model, rng)
    return replace(batch, position_ids=torch.arange(shape.seq_length).repeat(len(packs), 1))


def _fill(
    packs: Sequence[Sequence[tuple[int, int]]],
    length: int,
    gap: int,
    shape: Shape,
    model: PackedVLM,
    rng: np.random.Generator,
) -> Batch:
    """Random ids; with a gap after each sample, and then on the left of all, there is padding."""
    image_id, vocabulary = model.hf.config.image_token_id, model.hf.config.text_config.vocab_size
    ids = rng.integers(300, vocabulary, (len(packs), length))
    ids[ids == image_id] = 0
    labels = np.full_like(ids, IGNORED_LABEL)
    segments, positions = np.full_like(ids, -1), np.zeros_like(ids)
    for row, pack in enumerate(packs):
        start = length - sum(tokens + gap for tokens, _ in pack) if gap else 0
        for number, (tokens, tiles) in enumerate(pack):
            end, image_end = start + tokens, start + tiles * shape.model.tokens_per_tile
            ids[row, start:image_end] = image_id
            learnt = slice(end - int((end - image_end) * LEARNT), end)
            labels[row, learnt] = ids[row, learnt]
            segments[row, start:end], positions[row, start:end] = number, np.arange(tokens)
            start = end + gap
    side, num_tiles = shape.model.vision.tile_size, sum(tiles for pack in packs for _, tiles in pack)
    return Batch(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(positions),
        segment_ids=torch.from_numpy(segments),
        tiles=torch.from_numpy(rng.integers(0, 256, (num_tiles, side, side, 3), np.uint8)),
        num_samples=sum(map(len, packs)),
        num_images=sum(map(len, packs)),
        num_pairs=sum(tokens * (tokens + 1) // 2 for pack in packs for tokens, _ in pack),
    )


# ---- steps ---------------------------------------------------------------------------------------------


def reference_loss(model: PackedVLM, batch: Batch) -> torch.Tensor:
    """The reference's: causal attention over whole packs but for padding, logits everywhere, the mean over labels."""
    hidden_BTD = model.hf.model.text_model(
        inputs_embeds=model.embed(batch.input_ids, batch.tiles),
        attention_mask=(batch.segment_ids >= 0).long(),
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    logits_BTV = model.hf.lm_head(hidden_BTD)
    targets_BT = shift_labels(batch.labels)
    return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED_LABEL)


def our_loss(model: PackedVLM, batch: Batch) -> torch.Tensor:
    """Ours."""
    return model(batch) / (shift_labels(batch.labels) != IGNORED_LABEL).sum()


def measure(name: str, variant: Variant, steps: int, with_profile: bool) -> Result:
    """Time and memory of a variant; run in a process of its own."""
    torch.set_num_threads(1)
    shape = SHAPES[name]()
    model = build(shape, variant)
    batches = make_batches(shape, model, variant, WARM_UP + steps)
    optimizer = build_optimizer(model.hf, OptimizerConfig())
    compute_loss = reference_loss if variant.attention is None else our_loss
    device = model.hf.device

    def step(batch: Batch) -> None:
        with torch.autocast("cuda", torch.bfloat16) if GPU else nullcontext():
            loss = compute_loss(model, batch.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if GPU:
            torch.cuda.synchronize()

    clock = time.perf_counter if GPU else time.process_time
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for batch in batches:
        started = clock()
        step(batch)
        seconds.append(clock() - started)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    timed = batches[WARM_UP:]
    works = [Work.of(batch) for batch in timed]
    total, tokens = sum(seconds[WARM_UP:]), sum(work.tokens for work in works)
    return Result(
        model=name,
        variant=variant.name,
        full=tokens / sum(batch.input_ids.numel() for batch in timed),
        seconds=float(np.median(seconds[WARM_UP:])),
        tokens_per_second=tokens / total,
        peak_mb=torch.cuda.max_memory_allocated() / 1e6 if GPU else grown_mb,
        mfu=share_of_peak(model, works, total),
        profile=profile_of(partial(step, timed[0])) if with_profile else "",
    )


def build(shape: Shape, variant: Variant) -> PackedVLM:
    """The model with random weights, the same for all variants, on the device."""
    torch.manual_seed(SEED)
    hf = build_model(shape.model, load_tokenizer("tiny"))
    if shape.vocabulary:
        hf.resize_token_embeddings(shape.vocabulary, mean_resizing=False)
    model = PackedVLM(hf, ImageLayout.from_config(shape.model), variant.attention or Attention.sdpa)
    wrap_layers(model, compiled=variant.compiled, recomputed=variant.recomputed)
    return model.to("cuda" if GPU else "cpu").train()


def share_of_peak(model: PackedVLM, works: Sequence[Work], seconds: float) -> float | None:
    """MFU: what the samples need, by what the GPU could have done; None without a known GPU."""
    peak = find_peak_flops(torch.cuda.get_device_name()) if GPU else None
    flops = sum(count_training_flops(model.hf.config, work, ("vision", "projector", "language")) for work in works)
    return flops / seconds / peak if peak else None


def profile_of(step: Callable[[], None]) -> str:
    """Where the time of a step goes, by operator."""
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if GPU else [])]
    with torch.profiler.profile(activities=kinds) as profile:
        step()
    order = "self_cuda_time_total" if GPU else "self_cpu_time_total"
    return profile.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=50)


def in_own_process(name: str, variant: Variant, steps: int, with_profile: bool) -> Result:
    """Measure in a fresh process, whose memory holds nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, variant, steps, with_profile).result()


def main() -> None:
    """Measure all variants of the models that suit the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    default = ["nanovlm_222m", "nanovlm_460m"] if GPU else ["tiny", "mid"]
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=default, metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--steps", type=int, default=20 if GPU else 6, metavar="N", help="timed steps")
    parser.add_argument("--profile", action="store_true", default=GPU, help="show where the time of a step goes")
    options = parser.parse_args()
    results = [
        in_own_process(name, variant, options.steps, options.profile)
        for name in options.models
        for variant in variants()
    ]
    show(results)
    if options.json:
        settings = {"seed": SEED, "packs": PACKS, "steps": options.steps}
        write_report(options.json, settings, ("torch", "transformers", "numpy"), results)


def show(results: Sequence[Result]) -> None:
    """The table of docs/benchmarks.md, and the profiles."""
    table = Table("model", "variant", "full", "s a step", "useful tokens/s", "by reference", "peak MB", "MFU")
    for one in results:
        base = next(r for r in results if (r.model, r.variant) == (one.model, "reference"))
        faster = f"{one.tokens_per_second / base.tokens_per_second:.2f} x"
        memory = f"{one.peak_mb:,.0f} ({one.peak_mb / base.peak_mb:.2f} x)"
        mfu = f"{one.mfu:.1%}" if one.mfu else "-"
        speed = f"{one.tokens_per_second:,.0f}"
        table.add_row(one.model, one.variant, f"{one.full:.3f}", f"{one.seconds:.3f}", speed, faster, memory, mfu)
    console = Console(width=120)
    console.print(torch.cuda.get_device_name() if GPU else "CPU", table)
    for one in results:
        if one.profile:
            console.print(f"{one.model}, {one.variant}", one.profile, sep="\n", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
