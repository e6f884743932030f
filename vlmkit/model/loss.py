"""The loss: summed over labelled tokens, so that the caller can divide by all of the global batch."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from vlmkit.types import IGNORED_LABEL

CHUNK = 1024  # labelled tokens whose logits exist at the same time; docs/benchmarks.md has what other numbers cost


def shift_labels(labels_BT: torch.Tensor) -> torch.Tensor:
    """The label that each position predicts: that of the next token. The only place where labels are shifted."""
    return pad(labels_BT[:, 1:], (0, 1), value=IGNORED_LABEL)


def summed_loss(hidden_BTD: torch.Tensor, labels_BT: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over labelled tokens; logits are computed for those alone, a chunk at a time.

    The gradients are computed along with the loss, so no logits are kept for the backward pass: memory does not grow
    with labelled tokens times vocabulary, and nothing is computed twice. Under autocast logits are multiplied out in
    its type; their softmax and the sums over chunks are always in float32 or wider.

    Args:
        hidden_BTD: float [B, T, D], the last hidden states.
        labels_BT: int64 [B, T], unshifted, IGNORED_LABEL where nothing is learnt.
        head_VD: float [V, D], the weight that makes logits of hidden states; there is no bias.

    Returns:
        Scalar, float32 (float64 for float64 states); 0 with a gradient (of 0) if nothing is labelled.
    """
    targets_BT = shift_labels(labels_BT)
    learnt = targets_BT != IGNORED_LABEL
    head_VD = head_VD if torch.is_grad_enabled() else head_VD.detach()
    loss: torch.Tensor = _ChunkedLoss.apply(hidden_BTD[learnt], head_VD, targets_BT[learnt])
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy whose forward computes the gradients too: of a logit, its probability - 1 if it is right."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, head_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """The loss; its gradients, of what needs one, are kept for ``backward``."""
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        hidden_needs, head_needs, _ = ctx.needs_input_grad
        hidden_grad_ND = torch.empty_like(hidden_ND) if hidden_needs else None
        head_grad_VD = torch.zeros_like(head_VD, dtype=wide) if head_needs else None
        loss = hidden_ND.new_zeros((), dtype=wide)
        narrow = _product_dtype(hidden_ND)
        head_VD = head_VD.to(narrow)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(targets_N), CHUNK):
                chunk = slice(start, start + CHUNK)
                hidden_CD, right_C1 = hidden_ND[chunk].to(narrow), targets_N[chunk, None]
                log_probs_CV = (hidden_CD @ head_VD.T).to(wide).log_softmax(1)
                loss -= log_probs_CV.gather(1, right_C1).sum()
                if hidden_needs or head_needs:
                    grad_CV = log_probs_CV.exp_()
                    grad_CV.scatter_add_(1, right_C1, grad_CV.new_full((1, 1), -1).expand_as(right_C1))
                    grad_CV = grad_CV.to(narrow)
                if hidden_grad_ND is not None:
                    hidden_grad_ND[chunk] = grad_CV @ head_VD
                if head_grad_VD is not None:
                    head_grad_VD += grad_CV.T @ hidden_CD
        ctx.save_for_backward(hidden_grad_ND, head_grad_VD)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        """What ``forward`` kept, times the gradient of the loss."""
        hidden_grad_ND, head_grad_VD = (None if grad is None else grad * loss_grad for grad in ctx.saved_tensors)
        return hidden_grad_ND, head_grad_VD, None


def _product_dtype(hidden: torch.Tensor) -> torch.dtype:
    """The type in which products of these states are computed: autocast's if it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
