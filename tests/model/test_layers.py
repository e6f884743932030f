from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from tests.model.test_packed import batch_of
from vlmkit.config import ModelConfig
from vlmkit.model.build import build_model
from vlmkit.model.layers import wrap_layers
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.types import Batch


@pytest.fixture
def models(
    tiny_model_config: ModelConfig, tokenizer: ChatTokenizer, layout: ImageLayout
) -> tuple[PackedVLM, PackedVLM]:
    """Two with the same weights."""

    def build() -> PackedVLM:
        torch.manual_seed(0)
        return PackedVLM(build_model(tiny_model_config, tokenizer), layout)

    return build(), build()


def loss_and_gradient(model: PackedVLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    loss = model(batch)
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def kept_elements(model: PackedVLM, batch: Batch) -> int:
    """What the forward pass keeps for the backward pass, weights left out."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    return sum(size for place, size in kept.items() if place not in weights)


def test_recomputed_layers_have_the_same_loss_and_gradients_and_keep_less(
    models: tuple[PackedVLM, PackedVLM], encoder: ChatEncoder
) -> None:
    plain, recomputed = models
    wrap_layers(recomputed, compiled=False, recomputed=True)
    assert recomputed.state_dict().keys() == plain.state_dict().keys()
    batch = batch_of(encoder, [0, 1, 2], [3])
    torch.testing.assert_close(loss_and_gradient(recomputed, batch), loss_and_gradient(plain, batch), rtol=0, atol=0)
    assert kept_elements(recomputed, batch) < 0.4 * kept_elements(plain, batch)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler hides it later
@pytest.mark.parametrize("recomputed", [False, True], ids=["", "recomputed"])
def test_compiled_layers_have_the_same_losses_and_gradients_whatever_the_sizes(
    recomputed: bool, models: tuple[PackedVLM, PackedVLM], encoder: ChatEncoder, fresh_compiler: None
) -> None:
    plain, compiled = models
    wrap_layers(compiled, compiled=True, recomputed=recomputed)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for packs in ([0, 1, 2], [3]), ([0], [3, 1]), ([0, 3], [0, 2], [1]), ([1], [1, 1], [2]):
        batch = batch_of(encoder, *packs)
        torch.testing.assert_close(
            loss_and_gradient(compiled, batch), loss_and_gradient(plain, batch), rtol=1e-4, atol=1e-4
        )
    assert counters["stats"]["unique_graphs"] == 2  # one for the layers of each tower
    prompts = [batch.input_ids[0, :20].tolist(), batch.input_ids[0, :9].tolist()]
    answers = [model.eval().generate(prompts, batch.tiles[:0], max_new_tokens=4) for model in models]
    assert answers[0] == answers[1]
    assert counters["stats"]["unique_graphs"] == 2  # generating compiles nothing
