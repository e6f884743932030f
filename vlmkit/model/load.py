"""A checkpoint as what is needed to ask it: the transformers model, its tokenizer and its image layout."""

import json

from safetensors import SafetensorError
from transformers import Idefics3ForConditionalGeneration

from vlmkit.errors import UserError
from vlmkit.local_files import find_checkpoint
from vlmkit.paths import PROCESSOR
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer, load_tokenizer


def load_checkpoint(name: str) -> tuple[Idefics3ForConditionalGeneration, ChatTokenizer, ImageLayout]:
    """Load a checkpoint of vlmkit, in fp32 on the CPU.

    Args:
        name: Its folder, or a run directory: its newest checkpoint.

    Raises:
        UserError: It is not one, or is damaged.
    """
    folder = find_checkpoint(name)
    try:
        layout = ImageLayout(**json.loads((folder / PROCESSOR).read_text()))
        model = Idefics3ForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"ckpt={folder}: cannot load this checkpoint: {reason}") from error
    return model, load_tokenizer(str(folder)), layout
