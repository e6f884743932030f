"""AdamW with one learning rate for each part, and the schedule that scales them all."""

import math

import torch
from transformers import Idefics3ForConditionalGeneration

from vlmkit.config import OptimizerConfig


def build_optimizer(hf: Idefics3ForConditionalGeneration, config: OptimizerConfig) -> torch.optim.AdamW:
    """One parameter group for each part, with its ``name`` and ``peak_lr``; a part with learning rate 0 is frozen."""
    parts = {
        "projector": (hf.model.connector, config.lr_projector),
        "vision": (hf.model.vision_model, config.lr_vision),
        "language": (hf.model.text_model, config.lr_language),  # its embedding is also the head
    }
    groups = []
    for name, (part, lr) in parts.items():
        part.requires_grad_(lr > 0)
        if lr > 0:
            groups.append({"name": name, "params": list(part.parameters()), "lr": lr, "peak_lr": lr})
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
