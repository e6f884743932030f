"""The forward pass over packs: what is trained, and what answers questions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Idefics3ForConditionalGeneration, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from vlmkit.config import Attention
from vlmkit.model.attention import arrange, attending_with, set_attention
from vlmkit.model.drawing import draws
from vlmkit.model.loss import summed_loss
from vlmkit.model.stopping import AnswerEnds, StopStrings
from vlmkit.processing.images import ImageLayout
from vlmkit.types import Batch

TILES_AT_ONCE = 64  # are looked at together where nothing is learnt


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn from the model's probabilities."""

    temperature: float  # above 0; 1: the probabilities as they are
    top_p: float  # from the likeliest tokens that have so much probability together
    seeds: Sequence[int]  # of each prompt's random numbers; with several beams the first counts, for all


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
        if not len(tiles_IHWC):
            return self.hf.get_input_embeddings()(input_ids_BT) + self._nothing_seen(tiles_IHWC)
        return self._embed(input_ids_BT, self.encode_tiles(tiles_IHWC))

    def _embed(self, input_ids_BT: torch.Tensor, features_IKD: torch.Tensor) -> torch.Tensor:
        embeddings_BTD = self.hf.get_input_embeddings()(input_ids_BT)
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
        pixels = (tiles_IHWC.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std  # rounded once, at the end
        states = self.hf.model.vision_model(pixel_values=pixels.to(self.hf.dtype)).last_hidden_state
        return self.hf.model.connector(states)

    def see(self, tiles_IHWC: torch.Tensor, order: Sequence[int] | None = None) -> torch.Tensor:
        """Features of the tiles of some prompts, for where nothing is learnt: float [J, K, D].

        Args:
            tiles_IHWC: uint8 [I, H, W, 3], on any device; TILES_AT_ONCE of them go through the vision tower together.
            order: Which of them stands at each of J places; None: each once, in order. So a picture that several
                prompts ask about is looked at once.
        """
        device = self.hf.device
        if not len(tiles_IHWC):
            return torch.empty(0, 0, self.hf.config.text_config.hidden_size, device=device)
        features_IKD = torch.cat([self.encode_tiles(tiles.to(device)) for tiles in tiles_IHWC.split(TILES_AT_ONCE)])
        return features_IKD if order is None else features_IKD[torch.tensor(order, device=device)]

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tiles_IHWC: torch.Tensor,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None = None,
        streamer: BaseStreamer | None = None,
        *,
        order: Sequence[int] | None = None,
        num_beams: int = 1,
        until: StopStrings | None = None,
    ) -> list[list[int]]:
        """Answers to prompts of any lengths, each up to its end of turn (left out), a stop string or the limit.

        An answer that has fewer tokens than the limit has come to its end, or to a stop string, which its tokens hold.

        Args:
            prompts: Token ids, as ``ChatEncoder.encode_messages`` makes them.
            tiles_IHWC: uint8 [I, H, W, 3], the tiles of all prompts, see ``order``.
            max_new_tokens: Longest answer in tokens: of all, or of each.
            sampling: How tokens are drawn; None: always the likeliest.
            streamer: Is given the tokens as they come; for one prompt and one beam.
            order: As ``see`` takes it; None: the tiles are in the order of the prompts.
            num_beams: So many answers to each are followed at a time, and the likeliest is taken.
            until: Where else an answer ends.
        """
        eos = self.hf.config.text_config.eos_token_id
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        input_ids, attention_mask = self._padded(prompts, on_left=True)
        with self._answering(), self._drawing(sampling, num_beams) as told:
            answers = self.hf.generate(
                inputs_embeds=self._embed(input_ids, self.see(tiles_IHWC, order)),
                attention_mask=attention_mask,  # explicit: the pad token is also a token of the prompt
                max_new_tokens=max(limits),
                stopping_criteria=StoppingCriteriaList([AnswerEnds(limits, until, input_ids.device)]),
                num_beams=num_beams,
                **told,
                streamer=streamer,
                eos_token_id=eos,
                pad_token_id=eos,
            ).tolist()
        # Behind its end an answer is filled up to the longest one of the batch.
        return [
            answer[: min(answer.index(eos) if eos in answer else len(answer), limit)]
            for answer, limit in zip(answers, limits, strict=True)
        ]

    @torch.no_grad()
    def loglikelihood(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        tiles_IHWC: torch.Tensor,
        order: Sequence[int] | None = None,
    ) -> list[tuple[float, bool]]:
        """How likely each prompt goes on with its continuation: the logarithm, and if it is the likeliest throughout.

        Args:
            prompts: Token ids, as for ``generate``; none of them empty.
            continuations: Token ids, one for each prompt.
            tiles_IHWC: As for ``generate``.
            order: As for ``generate``.
        """
        rows = [[*prompt, *continuation] for prompt, continuation in zip(prompts, continuations, strict=True)]
        input_ids, _ = self._padded(rows, on_left=False)  # what is on the right of a token it does not see
        with self._answering():
            hidden_BTD = self.hf.model.text_model(
                inputs_embeds=self._embed(input_ids, self.see(tiles_IHWC, order)), use_cache=False
            ).last_hidden_state
        results = []
        for hidden_TD, prompt, row in zip(hidden_BTD, prompts, rows, strict=True):
            target_N = torch.tensor(row[len(prompt) :], device=hidden_TD.device, dtype=torch.long)
            logits_NV = self.hf.lm_head(hidden_TD[len(prompt) - 1 : len(row) - 1]).float()
            chosen_N = logits_NV.log_softmax(-1).gather(-1, target_N[:, None])
            is_greedy = bool((logits_NV.argmax(-1) == target_N).all())
            results.append((chosen_N.double().sum().item(), is_greedy))
        return results

    def _padded(self, rows: Sequence[Sequence[int]], on_left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids of rows of any lengths, and where they are not padding: int64 [B, T] each."""
        longest = max(map(len, rows))
        input_ids = torch.full((len(rows), longest), self.hf.config.text_config.eos_token_id)
        mask = torch.zeros_like(input_ids)
        for number, row in enumerate(rows):
            place = slice(longest - len(row), longest) if on_left else slice(len(row))
            input_ids[number, place] = torch.tensor(row)
            mask[number, place] = 1
        return input_ids.to(self.hf.device), mask.to(self.hf.device)

    @contextmanager
    def _drawing(self, sampling: Sampling | None, num_beams: int) -> Iterator[dict[str, Any]]:
        """What transformers is told of how tokens are drawn."""
        if sampling is None:
            yield {"do_sample": False}
        elif num_beams == 1:
            yield {"do_sample": False, "logits_processor": draws(sampling.temperature, sampling.top_p, sampling.seeds)}
        else:  # beams are drawn by transformers, for the batch as a whole, with torch's global random state
            device = self.hf.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(sampling.seeds[0])
                # top_k=0: no other limit; transformers has one of 50 by default.
                yield {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Attend as answers need it.

        Other backends know packs only, and no cache; compiled layers would be compiled anew for every state of it.
        """
        with attending_with(self.hf.model.text_model, Attention.sdpa), torch.compiler.set_stance("force_eager"):
            yield
