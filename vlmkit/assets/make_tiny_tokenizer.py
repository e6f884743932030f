"""Make vlmkit/assets/tiny_tokenizer: a byte-level BPE of 512 tokens, ChatML and the image tokens.

    python -m vlmkit.assets.make_tiny_tokenizer

It is trained on the training questions and answers of easy-VQA; any other text falls apart into bytes, never into
unknown tokens. The result is the same on every run.
"""

from collections.abc import Iterator

import easy_vqa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vlmkit.paths import assets_dir
from vlmkit.special_tokens import CHAT_TEMPLATE, IMAGE_TOKENS, TURN_END, TURN_START

TEXT_TOKENS = 512
END_OF_TEXT = "<|endoftext|>"


def texts() -> Iterator[str]:
    """Every message of the training part, with its role."""
    questions, answers, _ = easy_vqa.get_train_questions()
    for question, answer in zip(questions, answers, strict=True):
        yield f"user\n{question}"
        yield f"assistant\n{answer}"


def main() -> None:
    """Train the tokenizer and write it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKENS,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=TURN_START,
        eos_token=TURN_END,
        pad_token=TURN_END,
        unk_token=END_OF_TEXT,
        extra_special_tokens=list(IMAGE_TOKENS),
        clean_up_tokenization_spaces=False,
    )
    hf.chat_template = CHAT_TEMPLATE
    hf.save_pretrained(assets_dir() / "tiny_tokenizer")


if __name__ == "__main__":
    main()
