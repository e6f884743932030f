"""Requests are answered in batches, whatever becomes of single ones; a killed cell goes on alike."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmkit.errors import UserError
from vlmkit.evaluation.answering import Answered, Request, answer_all
from vlmkit.model.answer import Answer, GenerationSettings, Loglikelihood, Picture, Prompt, Question
from vlmkit.processing.images import digest_picture

SETTINGS = GenerationSettings(8)


@dataclass
class MadeUp:
    """It says what it was asked, and its seed; it remembers the sizes of the batches, and has so much memory."""

    memory: int = 1000
    batches: list[list[int]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def prepare(self, question: Question, wanted: GenerationSettings | str) -> Prompt:
        self.threads.add(threading.current_thread().name)
        if "unanswerable" in question.text:
            raise UserError("too\nlong")
        pictures = tuple(Picture(digest_picture(each), torch.empty(0).numpy()) for each in question.pictures)
        return Prompt(list(question.text.encode()), pictures, 100)

    def answer(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, seeds: Sequence[int] = ()
    ) -> list[Answer]:
        self.batches.append([len(prompt.ids) for prompt in prompts])
        if len(prompts) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        drawn = [f" {seed}" if settings.temperature else "" for seed in seeds]
        return [
            Answer(bytes(prompt.ids).decode() + own, "end", len(prompt.ids), 1)
            for prompt, own in zip(prompts, drawn, strict=True)
        ]

    def loglikelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Loglikelihood]:
        return [
            Loglikelihood(-len(text), text in bytes(p.ids).decode())
            for p, text in zip(prompts, continuations, strict=True)
        ]


def request(index: int, text: str, settings: GenerationSettings | None = SETTINGS, **more: str) -> Request:
    return Request(index, lambda: Question.about((), text), settings, **more)


def answers(batches: list[list[Answered]]) -> dict[int, Answered]:
    """All of them, each of which came once."""
    found = [answered for batch in batches for answered in batch]
    assert len({answered.index for answered in found}) == len(found)
    return {answered.index: answered for answered in found}


words = st.lists(st.text("ab ", max_size=12), min_size=1, max_size=30)
DRAWN = replace(SETTINGS, temperature=1.0)


@given(texts=words, batch_size=st.integers(1, 4), data=st.data())
def test_what_goes_on_after_a_kill_ends_as_if_nothing_had_happened(
    texts: list[str], batch_size: int, data: st.DataObject
) -> None:
    requests = [request(index, text, DRAWN if "b" in text else SETTINGS) for index, text in enumerate(texts)]
    whole = answers(list(answer_all(requests, MadeUp(), batch_size, seed=7)))
    assert whole.keys() == set(range(len(texts)))
    done = data.draw(st.sets(st.sampled_from(range(len(texts)))))
    rest = answers(list(answer_all(requests, MadeUp(), batch_size, seed=7, done=done)))
    assert rest == {index: answered for index, answered in whole.items() if index not in done}


def test_windows_that_are_done_are_not_even_loaded() -> None:
    def load(index: int) -> Callable[[], Question]:
        def loaded() -> Question:
            assert index >= 8
            return Question.about((), "what?")

        return loaded

    requests = [Request(index, load(index), SETTINGS) for index in range(13)]
    batches = list(answer_all(requests, MadeUp(), 2, done={*range(8), 9}))
    assert sorted(answers(batches)) == [8, 10, 11, 12]
    assert all(answered.error is None for answered in answers(batches).values())


def test_a_batch_has_like_lengths_and_the_same_settings() -> None:
    texts = ["x" * length for length in (5, 90, 7, 80, 6, 3, 85, 4)]
    model = MadeUp()
    requests = [request(index, text, DRAWN if len(text) == 6 else SETTINGS) for index, text in enumerate(texts)]
    list(answer_all(requests, model, 3))
    assert model.batches == [[90, 85, 80], [7, 5, 4], [3], [6]]


def test_each_request_draws_for_itself_whatever_is_in_its_batch() -> None:
    requests = [request(index, "the same", DRAWN) for index in range(4)]
    drawn = [
        [each.answer.text for _, each in sorted(answers(batches).items()) if each.answer]
        for batches in (
            list(answer_all(requests, MadeUp(), 2, seed=0)),
            list(answer_all(requests, MadeUp(), 3, seed=0)),
            [*answer_all(requests[::2], MadeUp(), 2, seed=0), *answer_all(requests[1::2], MadeUp(), 2, seed=0)],
            list(answer_all(requests, MadeUp(), 2, seed=1)),
        )
    ]
    assert drawn[0] == drawn[1] == drawn[2]
    assert len({*drawn[0], *drawn[3]}) == 8


def test_a_request_that_fails_is_an_error_and_its_neighbours_are_answered() -> None:
    def foreign() -> Question:
        raise KeyError("no such\ncolumn")

    requests = [
        request(0, "first"),
        Request(1, foreign, SETTINGS),
        request(2, "unanswerable"),
        request(3, "last"),
        request(4, "the last is", None, continuation="last"),
    ]
    found = answers(list(answer_all(requests, MadeUp(), 8)))
    assert found[1] == Answered(1, error=r"KeyError: 'no such\ncolumn'")
    assert found[2] == Answered(2, error="UserError: too long", prompt_text="unanswerable")
    assert [found[index].answer.text for index in (0, 3)] == ["first", "last"]  # type: ignore[union-attr]
    assert found[4].loglikelihood == Loglikelihood(-4, True)
    assert (found[4].prompt_text, found[4].input_tokens, found[4].answer) == ("the last is", 11, None)


def test_a_batch_that_is_too_large_for_the_gpu_is_halved() -> None:
    requests = [request(index, "x" * (9 - index)) for index in range(5)]
    model = MadeUp(memory=2)
    found = answers(list(answer_all(requests, model, 5)))
    assert model.batches == [[9, 8, 7, 6, 5], [9, 8], [7, 6, 5], [7], [6, 5]]
    assert all(answered.error is None for answered in found.values())


def test_a_sample_that_alone_is_too_large_for_the_gpu_is_an_error() -> None:
    found = answers(list(answer_all([request(0, "a"), request(1, "bc")], MadeUp(memory=0), 2)))
    assert {answered.error for answered in found.values()} == {"OutOfMemoryError: CUDA out of memory"}


class Failing(MadeUp):
    """It fails for a batch that has one of its words."""

    words: tuple[str, ...] = ("odd",)

    def answer(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, seeds: Sequence[int] = ()
    ) -> list[Answer]:
        found = super().answer(prompts, settings, seeds)
        if any(word in answer.text for word in self.words for answer in found):
            raise RuntimeError("shapes do\nnot match")
        return found


@pytest.mark.parametrize("batch_size", [1, 6])
def test_a_sample_that_the_model_fails_for_is_an_error_and_its_neighbours_are_answered(batch_size: int) -> None:
    texts = ["what?", "odd", "which one?", "who is it?", "where?", "odd too"]
    found = answers(list(answer_all([request(*each) for each in enumerate(texts)], Failing(), batch_size)))
    errors = [index for index, answered in found.items() if answered.error == "RuntimeError: shapes do not match"]
    assert sorted(errors) == [1, 5]
    assert all(found[index].answer.text == texts[index] for index in (0, 2, 3, 4))  # type: ignore[union-attr]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_model_that_fails_for_all_is_not_asked_to_the_end(batch_size: int) -> None:
    model = Failing()
    running = answer_all([request(index, f"odd {index}") for index in range(64)], model, batch_size)
    with pytest.raises(RuntimeError, match="shapes do\nnot match"):
        list(running)
    assert sum(map(len, model.batches)) <= 12


def test_the_next_window_is_prepared_while_one_is_answered_and_no_more() -> None:
    loaded: list[int] = []
    model = MadeUp()

    def load(index: int) -> Callable[[], Question]:
        return lambda: (loaded.append(index), Question.about((), "what?"))[1]

    running = answer_all([Request(index, load(index), SETTINGS) for index in range(16)], model, 1)
    next(running)
    running.close()  # waits for what is being prepared
    assert set(range(4)) <= set(loaded) <= set(range(8))
    assert threading.current_thread().name not in model.threads


def test_ctrl_c_passes() -> None:
    class Interrupted(MadeUp):
        def answer(
            self, prompts: Sequence[Prompt], settings: GenerationSettings, seeds: Sequence[int] = ()
        ) -> list[Answer]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(answer_all([request(0, "what?")], Interrupted(), 1))


def test_what_was_asked_is_told_with_the_digests_of_its_pictures() -> None:
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    asked = Question.about([red, blue, red], "which differs?")
    [[answered]] = answer_all([Request(0, lambda: asked, SETTINGS)], MadeUp(), 1)
    assert answered.prompt_text == "<image><image><image>which differs?"
    first, second, third = answered.pictures
    assert first == third != second
