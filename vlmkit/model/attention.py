"""Attention inside a pack: every token sees its own sample up to itself, and nothing else."""

import torch


def block_causal_mask(segment_ids_BT: torch.Tensor) -> torch.Tensor:
    """Which key each query may attend to.

    Args:
        segment_ids_BT: int [B, T], equal for tokens of one sample. Padding is a segment of its own, so that no
            row of the mask is empty (softmax over nothing is NaN).

    Returns:
        bool [B, 1, T, T], True where query (row) may see key (column).
    """
    length = segment_ids_BT.shape[1]
    same_sample = segment_ids_BT[:, None, :, None] == segment_ids_BT[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids_BT.device).tril()
    return same_sample & causal
