"""The tokens that stand for something else than text, as strings, and the chat templates that are written with them."""

from dataclasses import dataclass

from vlmkit.config import Layout

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"


def grid_token(row: int, col: int) -> str:
    """What stands before a tile, from row 1 and column 1 on."""
    return f"<row_{row}_col_{col}>"


def grid_tokens(layout: Layout) -> tuple[str, ...]:
    """All of them, row by row."""
    sides = range(1, layout.max_grid_side + 1)
    return tuple(grid_token(row, col) for row in sides for col in sides)


IMAGE_TOKEN = "<|image|>"
GLOBAL_IMAGE_TOKEN = "<|global_image|>"
IMAGE_TOKENS = (IMAGE_TOKEN, GLOBAL_IMAGE_TOKEN, *grid_tokens(Layout.nanovlm))
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


IDEFICS3_TURN_END = "<end_of_utterance>"
IDEFICS3_IMAGE_TOKEN = "<image>"
IDEFICS3_GLOBAL_IMAGE_TOKEN = "<global-img>"
IDEFICS3_BESIDE_TILE_TOKEN = "<fake_token_around_image>"
# That of SmolVLM, except that contents may be a string too.
IDEFICS3_CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
    "{% if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The special tokens of a layout, and the template that is written with them."""

    turn_start: str
    turn_end: str
    image: str  # stands for one feature of a tile
    of_pictures: tuple[str, ...]  # that one too
    chat_template: str


LAYOUT_TOKENS = {
    Layout.nanovlm: SpecialTokens(TURN_START, TURN_END, IMAGE_TOKEN, IMAGE_TOKENS, CHAT_TEMPLATE),
    Layout.idefics3: SpecialTokens(
        TURN_START,
        IDEFICS3_TURN_END,
        IDEFICS3_IMAGE_TOKEN,
        (
            *grid_tokens(Layout.idefics3),
            IDEFICS3_GLOBAL_IMAGE_TOKEN,
            IDEFICS3_BESIDE_TILE_TOKEN,
            IDEFICS3_IMAGE_TOKEN,
        ),
        IDEFICS3_CHAT_TEMPLATE,
    ),
}
