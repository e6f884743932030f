"""The loss: summed over labelled tokens, so that the caller can divide by all of the global batch."""

import torch
from torch import nn

from vlmkit.types import IGNORED_LABEL

CHUNK = 4096  # labelled tokens whose logits exist at the same time


def shift_labels(labels_BT: torch.Tensor) -> torch.Tensor:
    """The label that each position predicts: that of the next token. The only place where labels are shifted."""
    return torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED_LABEL)


def summed_loss(hidden_BTD: torch.Tensor, labels_BT: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Cross-entropy summed over labelled tokens; logits are computed for those alone, a chunk at a time.

    Args:
        hidden_BTD: float [B, T, D], the last hidden states.
        labels_BT: int64 [B, T], unshifted, IGNORED_LABEL where nothing is learnt.
        head: From D to logits over V.

    Returns:
        Scalar, float32 (float64 for float64 states); 0 with a gradient (of 0) if nothing is labelled.
    """
    dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)
    targets_BT = shift_labels(labels_BT)
    learnt = targets_BT != IGNORED_LABEL
    hidden_ND, targets_N = hidden_BTD[learnt], targets_BT[learnt]
    loss = hidden_BTD.new_zeros((), dtype=dtype) if len(targets_N) else hidden_BTD.to(dtype).sum() * 0
    for hidden, targets in zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), strict=True):
        loss = loss + nn.functional.cross_entropy(head(hidden).to(dtype), targets, reduction="sum")
    return loss
