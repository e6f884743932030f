"""AdamW with one learning rate for each part, the schedule that scales them all, and the gradient's norms."""

import math
from collections.abc import Mapping

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import Idefics3ForConditionalGeneration

from vlmkit.config import OptimizerConfig
from vlmkit.distributed import whole
from vlmkit.model.build import parameters_of


def freeze_parts(hf: Idefics3ForConditionalGeneration, config: OptimizerConfig) -> None:
    """Parts with learning rate 0 need no gradient from here on; DDP wants to know that before it wraps a model."""
    rates = _peak_rates(config)
    for name, parameters in parameters_of(hf).items():
        for parameter in parameters:
            parameter.requires_grad_(rates[name] > 0)


def build_optimizer(hf: Idefics3ForConditionalGeneration, config: OptimizerConfig) -> torch.optim.AdamW:
    """One parameter group for each part that is trained, with its ``name`` and ``peak_lr``."""
    parameters = parameters_of(hf)
    groups = [
        {"name": name, "params": parameters[name], "lr": lr, "peak_lr": lr}
        for name, lr in _peak_rates(config).items()
        if lr > 0
    ]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay)


def lr_scale(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate at a step (from 1): linear warm-up, then half a cosine to min_lr_ratio."""
    warmup = round(config.warmup_ratio * max_steps)
    if step <= warmup:
        return step / warmup
    progress = (step - warmup) / max(max_steps - warmup, 1)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rates(optimizer: torch.optim.Optimizer, scale: float) -> dict[str, float]:
    """Set every group's learning rate to this share of its peak; returns them by part."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def gradient_norms(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The gradient's L2 norm for each part; every process must ask, as each may hold a piece of it."""
    norms = {
        group["name"]: whole(get_total_norm([p.grad for p in group["params"] if p.grad is not None]))
        for group in optimizer.param_groups
    }
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))


def clip_gradients(optimizer: torch.optim.Optimizer, norms: Mapping[str, float], max_norm: float) -> float:
    """Scale the whole gradient down to ``max_norm`` if it is longer; returns how long it was."""
    norm = math.hypot(*norms.values())
    if norm > max_norm:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        clip_grads_with_norm_(parameters, max_norm, torch.tensor(norm))
    return norm


def _peak_rates(config: OptimizerConfig) -> dict[str, float]:
    return {"projector": config.lr_projector, "vision": config.lr_vision, "language": config.lr_language}
