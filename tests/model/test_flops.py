from dataclasses import replace

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.model.test_packed import batch_of
from vlmkit.config import ModelConfig
from vlmkit.model.build import build_model
from vlmkit.model.flops import Work, count_training_flops, find_peak_flops
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer

PARTS = ("vision", "projector", "language")


@pytest.mark.parametrize(
    "trained", [PARTS, ("language",), ("projector",), ("projector", "language"), ("vision", "language")], ids="+".join
)
def test_the_count_is_that_of_torch(
    trained: tuple[str, ...],
    tiny_model_config: ModelConfig,
    tokenizer: ChatTokenizer,
    layout: ImageLayout,
    encoder: ChatEncoder,
) -> None:
    language = replace(tiny_model_config.language, num_kv_heads=2)
    model = PackedVLM(build_model(replace(tiny_model_config, language=language), tokenizer), layout)
    parts = (model.hf.model.vision_model, model.hf.model.connector, model.hf.model.text_model)
    for name, part in zip(PARTS, parts, strict=True):
        part.requires_grad_(name in trained)
    batch = batch_of(encoder, [0, 1, 2], [3])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # which the counter can look into
        model(batch).backward()
    packs, length = batch.input_ids.shape
    computed = Work(
        packs * length, packs * length**2, len(batch.tiles), Work.of(batch).labelled
    )  # the mask's zeros too
    ours = count_training_flops(model.hf.config, computed, trained)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_padding_and_pairs_of_different_samples_are_not_counted(encoder: ChatEncoder) -> None:
    alone = [batch_of(encoder, [number]) for number in range(3)]
    lengths = [one.input_ids.shape[1] for one in alone]
    work = Work.of(batch_of(encoder, [0, 1], [2]))
    assert work.tokens == sum(lengths)
    assert work.pairs == sum(length * (length + 1) // 2 for length in lengths)
    assert work.labelled == sum(int((one.labels != -100).sum()) for one in alone)
    assert work.tiles == sum(len(one.tiles) for one in alone)


def test_peaks_are_found_by_the_name_that_torch_gives() -> None:
    assert find_peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert find_peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert find_peak_flops("NVIDIA H100 PCIe") == 756e12
    assert find_peak_flops("NVIDIA GH200 480GB") == 989e12
    assert find_peak_flops("NVIDIA L40S") == 362e12
    assert find_peak_flops("NVIDIA L40") is None
    assert find_peak_flops("NVIDIA GeForce RTX 3090") is None
