import pytest

from vlmkit.config import ModelConfig, OptimizerConfig
from vlmkit.model.build import build_model
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.training.optim import build_optimizer, freeze_parts, lr_scale


def test_the_rate_warms_up_and_falls_to_a_tenth() -> None:
    config = OptimizerConfig(warmup_ratio=0.03, min_lr_ratio=0.1)
    rates = [lr_scale(step, 1000, config) for step in range(1, 1001)]
    assert rates[0] == pytest.approx(1 / 30)
    assert rates[29] == max(rates) == 1
    assert rates[29:] == sorted(rates[29:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[(30 + 1000) // 2 - 1] == pytest.approx(0.55, abs=1e-3)


def test_every_parameter_has_the_rate_of_its_part_and_zero_freezes(
    tiny_model_config: ModelConfig, tokenizer: ChatTokenizer
) -> None:
    hf = build_model(tiny_model_config, tokenizer)
    config = OptimizerConfig(lr_projector=1.0, lr_vision=0.0, lr_language=3.0)
    freeze_parts(hf, config)
    optimizer = build_optimizer(hf, config)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in hf.named_parameters():
        part = 0.0 if "vision_model" in name else 1.0 if "connector" in name else 3.0
        assert rate.get(id(parameter), 0.0) == part, name
        assert parameter.requires_grad == (part > 0)
