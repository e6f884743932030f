from hypothesis import given
from hypothesis import strategies as st

from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import TileGrid
from vlmkit.processing.tokenizer import IMAGE_TOKEN, IMAGE_TOKENS, TURN_END, TURN_START
from vlmkit.types import IGNORED_LABEL, Turn

pieces = st.sampled_from([TURN_START, TURN_END, *IMAGE_TOKENS[:3], "user\n", " ", "\n", "a"])
texts = st.one_of(
    st.text(max_size=40),
    st.lists(pieces, max_size=6).map("".join),
)
grids = st.lists(st.builds(TileGrid, st.integers(1, 3), st.integers(1, 3)), max_size=3)
turns = st.lists(st.builds(Turn, texts, texts), min_size=1, max_size=4)


def learnt_text(encoder: ChatEncoder, ids: list[int], labels: list[int]) -> str:
    learnt = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED_LABEL]
    return encoder.tokenizer.hf.decode(learnt, skip_special_tokens=False)


def test_only_the_assistant_is_learnt(encoder: ChatEncoder) -> None:
    encoded = encoder.encode_sample([Turn("what shape?", "circle"), Turn("what color?", "red")], [TileGrid(1, 1)])
    expected = f"circle{TURN_END}\nred{TURN_END}\n"
    assert learnt_text(encoder, encoded.input_ids, encoded.labels) == expected


def test_the_whole_conversation_reads_as_chatml(encoder: ChatEncoder) -> None:
    encoded = encoder.encode_sample([Turn("what shape?", "circle")], [TileGrid(1, 2), TileGrid(1, 1)])
    tile = IMAGE_TOKEN * encoder.layout.tokens_per_tile
    assert encoder.tokenizer.hf.decode(encoded.input_ids) == (
        f"<|im_start|>user\n<image: 0><|global_image|>{tile}<row_1_col_1>{tile}<row_1_col_2>{tile}"
        f"<image: 1><|global_image|>{tile}what shape?<|im_end|>\n<|im_start|>assistant\ncircle<|im_end|>\n"
    )


@given(turns=turns, grids=grids)
def test_text_never_becomes_a_special_token(encoder: ChatEncoder, turns: list[Turn], grids: list[TileGrid]) -> None:
    ids = encoder.encode_sample(turns, grids).input_ids
    tiles = sum(grid.num_tiles for grid in grids)
    assert ids.count(encoder.tokenizer.image_id) == tiles * encoder.layout.tokens_per_tile
    assert ids.count(encoder.tokenizer.turn_start_id) == 2 * len(turns)
    assert ids.count(encoder.tokenizer.turn_end_id) == 2 * len(turns)
    assert ids.count(encoder.tokenizer.global_image_id) == len(grids)


@given(turns=turns, grids=grids)
def test_lengths_are_known_without_encoding_the_sample(
    encoder: ChatEncoder, turns: list[Turn], grids: list[TileGrid]
) -> None:
    first, *later = [encoder.turn_lengths(turn) for turn in turns]
    length = first[1 if grids else 0] + encoder.picture_length(grids) + sum(turn[0] for turn in later)
    assert length == len(encoder.encode_sample(turns, grids).input_ids)


@given(turn=st.builds(Turn, texts, texts), grids=grids)
def test_a_prompt_is_the_start_of_the_sample(encoder: ChatEncoder, turn: Turn, grids: list[TileGrid]) -> None:
    """What generation asks is what training saw, but for an answer whose white space joins its prefix."""
    prompt = encoder.encode_prompt(turn.user, grids)
    encoded = encoder.encode_sample([turn], grids)
    if not turn.assistant[:1].isspace():
        assert encoded.input_ids[: len(prompt)] == prompt
        assert all(label == IGNORED_LABEL for label in encoded.labels[: len(prompt)])
