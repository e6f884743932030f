"""The forward pass over packs: what is trained, and what answers questions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers import Idefics3ForConditionalGeneration
from transformers.generation.streamers import BaseStreamer

from vlmkit.config import Attention
from vlmkit.model.attention import arrange, attending_with, set_attention
from vlmkit.model.loss import summed_loss
from vlmkit.processing.images import ImageLayout
from vlmkit.types import Batch


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn from the model's probabilities."""

    temperature: float  # above 0; 1: the probabilities as they are
    top_p: float  # from the likeliest tokens that have so much probability together
    top_k: int = 0  # no other limit; transformers has one of 50 by default


class PackedVLM(nn.Module):
    """Idefics3 on packs. Its forward gives the summed loss; ``hf`` is the plain transformers model inside.

    Tiles go to the vision tower directly: Idefics3's own path takes an all-black tile for padding and drops it.
    """

    def __init__(
        self, hf: Idefics3ForConditionalGeneration, layout: ImageLayout, attention: Attention = Attention.sdpa
    ) -> None:
        """Take over a model: its text part attends with ``attention`` (see ``choose_attention``) from now on."""
        super().__init__()
        self.hf = hf
        self._attention = attention
        set_attention(hf.model.text_model, attention)
        self._mean, self._std = layout.mean, layout.std

    @property
    def blocks(self) -> list[nn.Module]:
        """Its layers: of the vision tower, then of the language model."""
        return [*self.hf.model.vision_model.encoder.layers, *self.hf.model.text_model.layers]

    def forward(self, batch: Batch) -> torch.Tensor:
        """Loss summed over the labelled tokens of the micro-batch: float32 scalar."""
        batch, told = arrange(batch, self._attention)
        hidden_BTD = self.hf.model.text_model(
            inputs_embeds=self.embed(batch.input_ids, batch.tiles),
            position_ids=batch.position_ids,
            use_cache=False,
            **told,
        ).last_hidden_state
        return summed_loss(hidden_BTD, batch.labels, self.hf.lm_head.weight)

    def embed(self, input_ids_BT: torch.Tensor, tiles_IHWC: torch.Tensor) -> torch.Tensor:
        """Embeddings of the tokens, with the pictures' features at the image tokens: float [B, T, D].

        Args:
            input_ids_BT: int64 [B, T]
            tiles_IHWC: uint8 [I, H, W, 3], in the order of their tokens.
        """
        embeddings_BTD = self.hf.get_input_embeddings()(input_ids_BT)
        if not len(tiles_IHWC):
            return embeddings_BTD + self._nothing_seen(tiles_IHWC)
        features_IKD = self.encode_tiles(tiles_IHWC)
        is_image = input_ids_BT == self.hf.config.image_token_id
        num_tokens, num_features = int(is_image.sum()), features_IKD.shape[0] * features_IKD.shape[1]
        if num_tokens != num_features:
            raise ValueError(
                f"{num_tokens} image tokens but {num_features} image features: "
                "tokenizer and model disagree about tokens per tile?"
            )
        return embeddings_BTD.masked_scatter(is_image[..., None], features_IKD.to(embeddings_BTD.dtype))

    def _nothing_seen(self, tiles_IHWC: torch.Tensor) -> torch.Tensor:
        """Zero, from a look at a black tile: processes wait for each other's weights or gradients of all parts."""
        return self.encode_tiles(tiles_IHWC.new_zeros(1, *tiles_IHWC.shape[1:])).sum() * 0

    def encode_tiles(self, tiles_IHWC: torch.Tensor) -> torch.Tensor:
        """Features of tiles: uint8 [I, H, W, 3] → float [I, K, D]."""
        pixels = (tiles_IHWC.permute(0, 3, 1, 2).to(self.hf.dtype) / 255 - self._mean) / self._std
        states = self.hf.model.vision_model(pixel_values=pixels).last_hidden_state
        return self.hf.model.connector(states)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tiles_IHWC: torch.Tensor,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        streamer: BaseStreamer | None = None,
    ) -> list[list[int]]:
        """Answers to prompts of any lengths, each up to its end of turn (left out) or the limit.

        Args:
            prompts: Token ids, as ``ChatEncoder.encode_prompt`` makes them.
            tiles_IHWC: uint8 [I, H, W, 3], the tiles of all prompts in order.
            max_new_tokens: Longest answer in tokens.
            sampling: How tokens are drawn, with torch's global random state; None: always the likeliest.
            streamer: Is given the tokens as they come; for one prompt.
        """
        eos = self.hf.config.text_config.eos_token_id
        device = tiles_IHWC.device
        longest = max(map(len, prompts))
        input_ids = torch.full((len(prompts), longest), eos, device=device)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            attention_mask[row, longest - len(prompt) :] = 1
        text_model = self.hf.model.text_model
        # Other backends know packs only, and no cache; compiled layers would be compiled anew for every state of it.
        with attending_with(text_model, Attention.sdpa), torch.compiler.set_stance("force_eager"):
            answers = self.hf.generate(
                inputs_embeds=self.embed(input_ids, tiles_IHWC),
                attention_mask=attention_mask,  # explicit: the pad token is also a token of the prompt
                max_new_tokens=max_new_tokens,
                do_sample=sampling is not None,
                **(asdict(sampling) if sampling else {}),
                streamer=streamer,
                eos_token_id=eos,
                pad_token_id=eos,
            ).tolist()
        return [answer[: answer.index(eos)] if eos in answer else answer for answer in answers]
