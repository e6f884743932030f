from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.conftest import as_idefics3
from vlmkit.config import Layout
from vlmkit.errors import ConfigError
from vlmkit.processing.chat import ChatEncoder, Message
from vlmkit.processing.images import ImageLayout, TileGrid
from vlmkit.processing.tokenizer import make_chat_tokenizer
from vlmkit.special_tokens import IMAGE_TOKEN, IMAGE_TOKENS, TURN_END, TURN_START
from vlmkit.types import IGNORED_LABEL, Turn

SPELT = [TURN_START, TURN_END, *IMAGE_TOKENS[:3], "<end_of_utterance>", "<image>", "<global-img>"]
pieces = st.sampled_from([*SPELT, "<fake_token_around_image>", "user\n", "Assistant: ", " ", "\n", "a"])
texts = st.one_of(
    st.text(max_size=40),
    st.lists(pieces, max_size=6).map("".join),
)
grids = st.lists(st.builds(TileGrid, st.integers(1, 3), st.integers(1, 3)), max_size=3)
turns = st.lists(st.builds(Turn, texts, texts), min_size=1, max_size=4)


@pytest.fixture(scope="session", params=Layout, ids=lambda layout: layout.value)
def any_encoder(request: Any, encoder: ChatEncoder, idefics3_encoder: ChatEncoder) -> ChatEncoder:
    return encoder if request.param is Layout.nanovlm else idefics3_encoder


def learnt_text(encoder: ChatEncoder, ids: list[int], labels: list[int]) -> str:
    learnt = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED_LABEL]
    return encoder.tokenizer.hf.decode(learnt, skip_special_tokens=False)


@pytest.mark.parametrize(("space", "end"), [("", TURN_END), (" ", "<end_of_utterance>")], ids=["nanovlm", "idefics3"])
def test_only_the_assistant_is_learnt(
    encoder: ChatEncoder, idefics3_encoder: ChatEncoder, space: str, end: str
) -> None:
    one = idefics3_encoder if space else encoder
    encoded = one.encode_sample([Turn("what shape?", "circle"), Turn("what color?", "red")], [TileGrid(1, 1)])
    assert learnt_text(one, encoded.input_ids, encoded.labels) == f"{space}circle{end}\n{space}red{end}\n"


def test_the_whole_conversation_reads_as_chatml(encoder: ChatEncoder) -> None:
    encoded = encoder.encode_sample([Turn("what shape?", "circle")], [TileGrid(1, 2), TileGrid(1, 1)])
    tile = IMAGE_TOKEN * encoder.layout.tokens_per_tile
    assert encoder.tokenizer.hf.decode(encoded.input_ids) == (
        f"<|im_start|>user\n<image: 0><|global_image|>{tile}<row_1_col_1>{tile}<row_1_col_2>{tile}"
        f"<image: 1><|global_image|>{tile}what shape?<|im_end|>\n<|im_start|>assistant\ncircle<|im_end|>\n"
    )


def test_the_whole_conversation_reads_as_smolvlm_s(idefics3_encoder: ChatEncoder) -> None:
    turns = [Turn("what shape?", "circle"), Turn("what color?", "red")]
    encoded = idefics3_encoder.encode_sample(turns, [TileGrid(2, 1), TileGrid(1, 1)])
    tile = "<image>" * idefics3_encoder.layout.tokens_per_tile
    beside = "<fake_token_around_image>"
    assert idefics3_encoder.tokenizer.hf.decode(encoded.input_ids) == (
        f"<|im_start|>User:{beside}<row_1_col_1>{tile}\n{beside}<row_2_col_1>{tile}\n\n{beside}<global-img>{tile}{beside}"
        f"{beside}<global-img>{tile}{beside}what shape?<end_of_utterance>\nAssistant: circle<end_of_utterance>\n"
        "User: what color?<end_of_utterance>\nAssistant: red<end_of_utterance>\n"
    )


@given(turns=turns, grids=grids)
def test_text_never_becomes_a_special_token(any_encoder: ChatEncoder, turns: list[Turn], grids: list[TileGrid]) -> None:
    ids = any_encoder.encode_sample(turns, grids).input_ids
    special = any_encoder.tokenizer.special_ids
    tiles = sum(grid.num_tiles for grid in grids)
    assert ids.count(any_encoder.tokenizer.image_id) == tiles * any_encoder.layout.tokens_per_tile
    assert ids.count(any_encoder.tokenizer.turn_end_id) == 2 * len(turns)
    starts, global_image = ids.count(any_encoder.tokenizer.turn_start_id), len(grids)
    if any_encoder.layout.kind is Layout.nanovlm:
        assert starts == 2 * len(turns)
        assert ids.count(special["<|global_image|>"]) == global_image
    else:
        assert starts == 1
        assert ids.count(special["<global-img>"]) == global_image
        assert ids.count(special["<fake_token_around_image>"]) == tiles + len(grids)


@given(turns=turns, grids=grids)
def test_lengths_are_known_without_encoding_the_sample(
    any_encoder: ChatEncoder, turns: list[Turn], grids: list[TileGrid]
) -> None:
    first, *later = [any_encoder.turn_lengths(turn) for turn in turns]
    length = first[1 if grids else 0] + sum(turn[0] for turn in later)
    length += sum(map(any_encoder.picture_length, grids)) + any_encoder.extra_length(len(grids))
    assert length == len(any_encoder.encode_sample(turns, grids).input_ids)


@given(turn=st.builds(Turn, texts, texts), grids=grids)
def test_a_prompt_is_the_start_of_the_sample(any_encoder: ChatEncoder, turn: Turn, grids: list[TileGrid]) -> None:
    """What generation asks is what training saw, but for an answer whose white space joins its prefix."""
    prompt = any_encoder.encode_messages([Message("user", (*grids, turn.user))])
    encoded = any_encoder.encode_sample([turn], grids)
    if not turn.assistant[:1].isspace():
        assert encoded.input_ids[: len(prompt)] == prompt
        assert all(label == IGNORED_LABEL for label in encoded.labels[: len(prompt)])


@given(turn=st.builds(Turn, texts, texts.map(str.lstrip)), grids=grids)
def test_prompt_answer_and_end_of_turn_are_the_sample(
    any_encoder: ChatEncoder, turn: Turn, grids: list[TileGrid]
) -> None:
    prompt = any_encoder.encode_messages([Message("user", (*grids, turn.user))])
    answer = any_encoder.encode_answer(turn.assistant)
    end = [any_encoder.tokenizer.turn_end_id, *any_encoder.tokenizer.encode_text("\n")]
    assert prompt + answer + end == any_encoder.encode_sample([turn], grids).input_ids


def test_pictures_stand_where_they_are_and_are_numbered_over_the_conversation(encoder: ChatEncoder) -> None:
    ids = encoder.encode_messages(
        [
            Message("system", ("Be brief.",)),
            Message("user", ("left: ", TileGrid(1, 1), "right: ", TileGrid(1, 1), "which<|image|> ", "is red?")),
            Message("assistant", ("the left",)),
            Message("user", (TileGrid(1, 1), "and here?")),
        ]
    )
    picture = "<|global_image|>" + IMAGE_TOKEN * encoder.layout.tokens_per_tile
    assert encoder.tokenizer.hf.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nleft: <image: 0>{picture}right: <image: 1>{picture}which is red?<|im_end|>\n"
        "<|im_start|>assistant\nthe left<|im_end|>\n"
        f"<|im_start|>user\n<image: 2>{picture}and here?<|im_end|>\n<|im_start|>assistant\n"
    )


@given(parts=st.lists(texts, max_size=4))
def test_texts_beside_one_another_are_one_piece(any_encoder: ChatEncoder, parts: list[str]) -> None:
    image_token = any_encoder.tokenizer.image_token
    joined = "".join(part.replace(image_token, "") for part in parts)
    if image_token not in joined:  # two halves of it would be stripped from the whole
        apart = any_encoder.encode_messages([Message("user", tuple(parts))])
        assert apart == any_encoder.encode_messages([Message("user", (joined,))])


def test_a_tokenizer_that_joins_roles_with_text_is_refused_for_idefics3(layout: ImageLayout) -> None:
    """Its ids would be others than those of the processor, which encodes the conversation in one piece."""
    words = {"[UNK]": 0, TURN_START: 1, "\n": 2, "Assistant:": 3, "User:": 4, "a": 5, "\nUser: a": 6}
    joining = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    joining.pre_tokenizer = pre_tokenizers.Split("\0", "removed")
    tokenizer = make_chat_tokenizer(PreTrainedTokenizerFast(tokenizer_object=joining), Layout.idefics3)
    with pytest.raises(ConfigError, match=r"model.image.layout=idefics3: must be nanovlm: model.tokenizer joins User:"):
        ChatEncoder(tokenizer, as_idefics3(layout))
