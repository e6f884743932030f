"""One question to a checkpoint, about pictures or none; its answer streams as it comes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import TextStreamer

from vlmkit.config import GenerateConfig
from vlmkit.errors import ConfigError
from vlmkit.model.build import load_checkpoint
from vlmkit.model.packed import PackedVLM, Sampling
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import cut_tiles, load_image


class Answerer:
    """A checkpoint that answers: on a GPU in bf16 if there is one, else on the CPU in fp32."""

    def __init__(self, checkpoint: str) -> None:
        loaded = load_checkpoint(checkpoint)
        on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if on_gpu else "cpu")
        hf = loaded.model.to(self._device)
        if on_gpu:
            for parameter in hf.parameters():  # not what is computed: the angles of positions need float32
                parameter.data = parameter.data.to(torch.bfloat16)
        self._model = PackedVLM(hf, loaded.layout).eval()
        self._encoder = ChatEncoder(loaded.tokenizer, loaded.layout)

    def answer(self, pictures: Sequence[Path], config: GenerateConfig) -> str:
        """Answer the prompt about some pictures, and write the answer to standard output while it is made.

        Raises:
            BadSampleError: A picture cannot be read.
            ConfigError: Question and answer are longer than what the model can take.
        """
        images = [load_image(path, str(path)) for path in pictures]
        layout = self._encoder.layout
        prompt = self._encoder.encode_prompt(config.prompt, [layout.grid(*image.size) for image in images])
        longest = self._model.hf.config.text_config.max_position_embeddings
        if len(prompt) + config.max_new_tokens > longest:
            raise ConfigError(
                f"max_new_tokens={config.max_new_tokens}: must be at most {max(longest - len(prompt), 0)}: the "
                f"question has {len(prompt)} tokens, the model takes {longest} with the answer"
            )
        no_tiles = np.empty((0, layout.tile_size, layout.tile_size, 3), np.uint8)
        tiles = np.concatenate([no_tiles, *(cut_tiles(image, layout) for image in images)])
        torch.manual_seed(config.seed)
        sampling = Sampling(config.temperature, config.top_p) if config.temperature else None
        streamer = TextStreamer(self._encoder.tokenizer.hf, skip_prompt=True, skip_special_tokens=True)
        [ids] = self._model.generate(
            [prompt], torch.from_numpy(tiles).to(self._device), config.max_new_tokens, sampling, streamer
        )
        return self._encoder.tokenizer.decode(ids)
