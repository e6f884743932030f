"""What can be done to each layer of both towers: compile it, or compute it twice to save memory.

Both replace a layer's ``forward`` and no module, so parameters keep their names and checkpoints stay what they are.
"""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from vlmkit.model.packed import PackedVLM


def wrap_layers(model: PackedVLM, *, compiled: bool, recomputed: bool) -> None:
    """Change how the layers of both towers are computed; call it before the model is spread over processes.

    Args:
        model: Its layers are changed in place.
        compiled: ``trainer.compile``: at its first call, for any number of tokens and tiles. The layers of a tower
            share what is compiled, so starting takes as long as for one layer.
        recomputed: ``trainer.activation_checkpointing``: only the input of a layer is kept, and the layer computed
            again in the backward pass. Nothing in these models is random, so no random state is kept.
    """
    for layer in model.blocks:
        if compiled:
            layer.forward = torch.compile(layer.forward, dynamic=True)
        if recomputed:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
