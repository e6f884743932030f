"""Answers are those of plain transformers, whatever stands beside a question in its batch."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from vlmkit.config import ModelConfig
from vlmkit.errors import BadSampleError, ConfigError, UserError
from vlmkit.model.answer import Answer, Answerer, ChatMessage, GenerationSettings, Prompt, Question, load_answerer
from vlmkit.model.build import build_model, load_checkpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout, digest_picture
from vlmkit.processing.processor import save_processor

GREEDY = GenerationSettings(12)


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


QUESTIONS = [
    Question.about([picture(0)], "what shape is in the image?"),
    Question.about([], "is there a circle?"),
    Question.about([picture(1, (200, 90)), picture(2)], "which of the two is larger, and what colour has it?"),
    Question(
        (
            ChatMessage("system", ("Be brief.",)),
            ChatMessage("user", ("left ", picture(2), " right ", picture(0))),
            ChatMessage("assistant", ("a circle",)),
            ChatMessage("user", ("and the other?",)),
        )
    ),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_model_config: ModelConfig, encoder: ChatEncoder) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    model = build_model(tiny_model_config, encoder.tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # answers that vary, and depend on the pictures
    model.save_pretrained(folder)
    save_processor(folder, encoder.tokenizer, encoder.layout)
    return folder


@pytest.fixture(scope="module")
def answerer(checkpoint: Path) -> Answerer:
    return load_answerer(str(checkpoint))


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(checkpoint).eval()


def ask(answerer: Answerer, questions: list[Question], settings: GenerationSettings, seed: int = 0) -> list[Answer]:
    seeds = range(seed, seed + len(questions))
    return answerer.answer([answerer.prepare(question, settings) for question in questions], settings, seeds)


def inputs(prompt: Prompt, layout: ImageLayout) -> dict[str, torch.Tensor]:
    """What plain transformers takes."""
    ids = torch.tensor([prompt.ids])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if prompt.pictures:
        tiles = torch.from_numpy(np.concatenate([picture.tiles for picture in prompt.pictures]))
        given["pixel_values"] = ((tiles.permute(0, 3, 1, 2) / 255 - layout.mean) / layout.std)[None]
    return given


def plain_answer(plain: Any, encoder: ChatEncoder, prompt: Prompt, **how: Any) -> str:
    ids = plain.generate(**inputs(prompt, encoder.layout), max_new_tokens=12, **how)[0, len(prompt.ids) :]
    return encoder.tokenizer.hf.decode(ids, skip_special_tokens=True)


def said_first(answerer: Answerer, encoder: ChatEncoder) -> tuple[Question, str]:
    """A question whose answer starts with a token that is a word of its own, and this word."""
    first = [answer.text for answer in ask(answerer, QUESTIONS, GenerationSettings(1))]
    return next(
        (question, word)
        for question, word in zip(QUESTIONS, first, strict=True)
        if len(encoder.tokenizer.encode_text(word)) == 1 and word.strip() == word
    )


@pytest.mark.parametrize("question", QUESTIONS, ids=["picture", "text", "pictures", "interleaved"])
@pytest.mark.parametrize(
    "settings",
    [GREEDY, replace(GREEDY, num_beams=3), replace(GREEDY, num_beams=2, temperature=1.5, top_p=0.8)],
    ids=["greedy", "beams", "drawn beams"],
)
def test_an_answer_is_that_of_plain_transformers(
    answerer: Answerer, plain: Any, encoder: ChatEncoder, question: Question, settings: GenerationSettings
) -> None:
    drawn = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if settings.temperature else {}
    prompt = answerer.prepare(question, settings)
    torch.manual_seed(5)
    theirs = plain_answer(plain, encoder, prompt, num_beams=settings.num_beams, do_sample=bool(drawn), **drawn)
    [ours] = answerer.answer([prompt], settings, [5])
    assert ours.text == theirs
    assert len(set(theirs)) > 2


@pytest.mark.parametrize("num_beams", [1, 2])
def test_stop_strings_end_each_answer_where_transformers_ends_it(
    answerer: Answerer, plain: Any, encoder: ChatEncoder, num_beams: int
) -> None:
    settings = replace(GREEDY, num_beams=num_beams)
    free = ask(answerer, QUESTIONS, settings)
    # Not from halves of characters, which transformers does not look for.
    until = (*(re.findall("[a-z]{2}", answer.text)[-1] for answer in (free[0], free[2])), "never said")
    stopped = ask(answerer, QUESTIONS, replace(settings, until=until))
    assert any(answer.finish == "until" for answer in stopped)
    assert any(answer.finish != "until" for answer in stopped)
    for question, answer in zip(QUESTIONS, stopped, strict=True):
        theirs = plain_answer(
            plain,
            encoder,
            answerer.prepare(question, settings),
            num_beams=num_beams,
            do_sample=False,
            stop_strings=list(until),
            tokenizer=encoder.tokenizer.hf,
        )
        places = [place for string in until if (place := theirs.find(string)) >= 0]
        assert answer.text == theirs[: min(places, default=None)]
        assert (answer.finish == "until") == bool(places)


def test_a_batch_answers_as_each_question_alone(answerer: Answerer) -> None:
    for settings in (GREEDY, replace(GREEDY, num_beams=2), replace(GREEDY, until=("a", "e"))):
        alone = [answer for question in QUESTIONS for answer in ask(answerer, [question], settings)]
        assert ask(answerer, QUESTIONS, settings) == alone


def test_drawn_answers_are_those_of_their_seed_and_leave_the_global_one_alone(answerer: Answerer) -> None:
    drawn = GenerationSettings(12, temperature=1.0)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (ask(answerer, QUESTIONS, drawn, seed) for seed in (1, 1, 2))
    assert first == again != other
    ask(answerer, QUESTIONS, replace(drawn, num_beams=2))
    assert torch.rand(1) == expected


def test_a_drawn_answer_does_not_depend_on_its_batch(answerer: Answerer) -> None:
    drawn = GenerationSettings(12, temperature=1.5)
    questions = QUESTIONS * 6
    whole = ask(answerer, questions, drawn)
    assert whole == ask(answerer, questions[:12], drawn, 0) + ask(answerer, questions[12:], drawn, 12)
    assert len({answer.text for answer in whole}) > 20


def test_an_answer_says_why_it_ended_and_how_long_it_is(
    answerer: Answerer, checkpoint: Path, encoder: ChatEncoder
) -> None:
    [cut] = ask(answerer, QUESTIONS[:1], GREEDY)
    assert (cut.finish, cut.output_tokens) == ("length", 12)
    assert cut.input_tokens == len(answerer.prepare(QUESTIONS[0], GREEDY).ids)
    # Where it would have begun with a certain token the end of the turn becomes likelier.
    hf = load_checkpoint(str(checkpoint)).model
    question, word = said_first(answerer, encoder)
    [first] = encoder.tokenizer.encode_text(word)
    head = hf.lm_head.weight.detach().clone()
    head[encoder.tokenizer.turn_end_id] = head[first] * 1.5
    hf.lm_head.weight = torch.nn.Parameter(head)  # no longer that of the embedding
    silent = Answerer(PackedVLM(hf, encoder.layout), encoder)
    [ended] = ask(silent, [question], GREEDY)
    assert (ended.text, ended.finish, ended.output_tokens) == ("", "end", 0)


def test_loglikelihoods_are_those_of_plain_logits(answerer: Answerer, plain: Any, encoder: ChatEncoder) -> None:
    question, word = said_first(answerer, encoder)
    questions, texts = [*QUESTIONS, question], ["a circle", " red", "two", "no", word]
    prompts = [answerer.prepare(question, text) for question, text in zip(questions, texts, strict=True)]
    together = answerer.loglikelihood(prompts, texts)
    for prompt, text, found in zip(prompts, texts, together, strict=True):
        ids = encoder.tokenizer.encode_text(text.strip())
        given = inputs(prompt, encoder.layout)
        whole = torch.tensor([[*prompt.ids, *ids]])
        with torch.no_grad():
            logits = plain(**given | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}).logits[0]
        chosen = logits[len(prompt.ids) - 1 : -1].log_softmax(-1)[range(len(ids)), ids]
        assert found.logprob == pytest.approx(chosen.sum().item(), abs=1e-4)
        assert found.is_greedy == (logits[len(prompt.ids) - 1 : -1].argmax(-1).tolist() == ids)
    assert [found.is_greedy for found in together] == [False, False, False, False, True]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_has_no_likelihood(answerer: Answerer, text: str) -> None:
    """It would be 1, and an empty choice would win."""
    with pytest.raises(UserError, match="the text whose likelihood is wanted is empty"):
        answerer.prepare(QUESTIONS[0], text)


def test_a_picture_that_several_ask_about_is_looked_at_once(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [Question.about([picture(1, (200, 90))], text) for text in ("what shape?", "what colour?")]
    questions = [*same, QUESTIONS[2]]
    alone = [answer for question in questions for answer in ask(answerer, [question], GREEDY)]
    seen: list[int] = []
    look = PackedVLM.encode_tiles
    monkeypatch.setattr(PackedVLM, "encode_tiles", lambda self, tiles: (seen.append(len(tiles)), look(self, tiles))[1])
    monkeypatch.setattr("vlmkit.model.packed.TILES_AT_ONCE", 4)
    assert ask(answerer, questions, GREEDY) == alone
    prompt = answerer.prepare(QUESTIONS[2], GREEDY)
    distinct = sum(len(picture.tiles) for picture in prompt.pictures)
    assert sum(seen) == distinct > 4 >= max(seen)


# ---- what does not fit ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(checkpoint: Path) -> Answerer:
    """It takes no more than 120 tokens; pictures have up to 4 x 4 tiles of 16 tokens and one more."""
    answerer = load_answerer(str(checkpoint))
    layout = replace(answerer._encoder.layout, max_img_size=256)
    answerer._model.hf.config.text_config.max_position_embeddings = 120
    return Answerer(answerer._model, ChatEncoder(answerer._encoder.tokenizer, layout))


def test_pictures_get_smaller_until_the_answer_has_room(short: Answerer) -> None:
    whole = Question.about([picture(0, (64, 64))], "what?")
    large = Question.about([picture(0, (250, 250))], "what?")
    both = Question.about([picture(0, (250, 120)), picture(1, (64, 64))], "what?")
    prompts = [short.prepare(question, GREEDY) for question in (whole, large, both)]
    assert [prompt.shrunk for prompt in prompts] == [False, True, True]
    tiles = [[len(picture.tiles) for picture in prompt.pictures] for prompt in prompts]
    assert tiles == [[1], [5], [3, 1]]  # 2 x 2 and 1 x 2, each with the whole picture in one more
    assert all(len(prompt.ids) + prompt.room == 120 for prompt in prompts)
    assert all(prompt.room >= GREEDY.max_new_tokens for prompt in prompts)
    assert prompts[1].pictures[0].digest == digest_picture(picture(0, (250, 250)))


def test_an_answer_has_the_room_that_is_left(short: Answerer) -> None:
    settings = GenerationSettings(500)
    questions = [Question.about([picture(number)], "what? " * 3 * number) for number in range(3)]
    prompts = [short.prepare(question, settings) for question in questions]
    answers = short.answer(prompts, settings)
    assert [answer.finish for answer in answers] == ["length"] * 3
    assert [answer.output_tokens for answer in answers] == [prompt.room for prompt in prompts]
    assert answers == [short.answer([prompt], settings)[0] for prompt in prompts]


def test_what_does_not_fit_even_then_is_an_error_with_both_numbers(short: Answerer) -> None:
    many = Question.about([picture(number) for number in range(6)], "what?")
    with pytest.raises(UserError, match=r"\d{3} tokens with one tile for each of its 6 pictures .* takes 120 together"):
        short.prepare(many, GREEDY)
    text = Question.about([], "what? " * 200)
    with pytest.raises(UserError, match=r"the question has \d+ tokens and its answer needs 12; the model takes 120"):
        short.prepare(text, GREEDY)


def test_a_picture_without_pixels_is_an_error(answerer: Answerer) -> None:
    with pytest.raises(BadSampleError, match="it has no pixels"):
        answerer.prepare(Question.about([Image.new("RGB", (0, 5))], "what?"), GREEDY)


def test_pictures_of_other_modes_are_asked_about(answerer: Answerer) -> None:
    grey = picture(0).convert("L")
    prompts = [answerer.prepare(Question.about([each], "?"), GREEDY) for each in (grey, grey.convert("RGB"))]
    assert prompts[0].pictures[0].digest == prompts[1].pictures[0].digest


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be 1 or more"),
        ({"num_beams": 0}, "num_beams=0: must be 1 or more"),
        ({"temperature": -0.1}, "temperature=-0.1: must be 0 or more"),
        ({"top_p": 1.1}, "top_p=1.1: must be between 0 and 1"),
        ({"until": ("x", "")}, r"until=\['x', ''\]: must be strings that are not empty"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(GREEDY, **wrong)
