"""The test at the end of a run: answer the dataset's test questions by generating, and count exact matches.

Beside it stands what can be known without looking: for each question the most frequent answer that the dataset's
training part (held-out samples included) gives to the same text. A model below that has learnt nothing from pictures.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from vlmkit.data.rows import Row
from vlmkit.data.sources import Question
from vlmkit.distributed import Ranks
from vlmkit.interrupt import StopSignal
from vlmkit.model.answer import Answerer, GenerationSettings
from vlmkit.model.answer import Question as Asked
from vlmkit.model.build import load_checkpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.paths import RunPaths, whole_file
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout, image_size, load_image
from vlmkit.tracking.console import Screen

TILES_AT_ONCE = 256  # of the questions that are answered together
SPARE_TOKENS = 4  # an answer may be so much longer than the longest right one before it is cut off


@dataclass(frozen=True, slots=True)
class Answered:
    """A question of the test, what the model said, and whether it is exactly one of the right answers."""

    image: str
    question: str
    answer: str
    right_answers: tuple[str, ...]
    correct: bool


@dataclass(frozen=True, slots=True)
class TestResult:
    """Share of exact matches, and the same for answers given from the question alone."""

    global_step: int
    n: int
    exact_match: float
    question_only: float
    answered: tuple[Answered, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """What the trackers get."""
        return {"test_exact_match": self.exact_match, "test_question_only": self.question_only}

    def __str__(self) -> str:
        return (
            f"exact match on {self.n:,} test questions: {self.exact_match:.4f}"
            f"   (from the question alone: {self.question_only:.4f})"
        )


def run_test(
    paths: RunPaths,
    step: int,
    test: Sequence[Question],
    train: Iterable[Row],
    ranks: Ranks,
    screen: Screen,
    stop: StopSignal,
) -> TestResult | None:
    """Answer the test questions of a dataset with a checkpoint, each process its share, and save the result.

    The checkpoint as it lies there, not the model in memory: that may be spread over the processes, and this way it is
    the thing itself that is tested.

    Args:
        paths: The run.
        step: Of the checkpoint.
        test: The questions.
        train: The rows that the answers from the question alone are taken from.
        ranks: The processes.
        screen: Shows progress.
        stop: A signal leaves the test unfinished.

    Returns:
        The result on every process; None if a signal came before all questions were answered.
    """
    loaded = load_checkpoint(str(paths.checkpoint(step)))
    model = PackedVLM(loaded.model, loaded.layout).to(ranks.device)
    answerer = Answerer(model, ChatEncoder(loaded.tokenizer, loaded.layout))
    longest = max(len(loaded.tokenizer.encode_text(text)) for question in test for text in question.answers)
    own = test[ranks.rank :: ranks.world_size]
    groups = grouped(own, loaded.layout)
    answered: list[Answered] = []
    for questions in screen.watch("answering the test questions")(groups):
        if stop.received:
            break
        answered += answer_questions(answerer, questions, longest + SPARE_TOKENS)
    if stop.reached_any(ranks):
        return None
    answered = ranks.gather(answered)
    result = TestResult(
        global_step=step,
        n=len(answered),
        exact_match=sum(answer.correct for answer in answered) / len(answered),
        question_only=question_only_exact_match(train, test),
        answered=tuple(answered),
    )
    ranks.run_on_main(lambda: save_test(paths, result))
    return result


def grouped(questions: Sequence[Question], layout: ImageLayout) -> list[list[Question]]:
    """The questions in order, as many together as have TILES_AT_ONCE tiles, or one that alone has more."""
    groups: list[list[Question]] = []
    room = 0
    for question in questions:
        tiles = layout.grid(*image_size(question.image, question.text)).num_tiles
        if tiles > room:
            groups.append([])
            room = TILES_AT_ONCE
        groups[-1].append(question)
        room -= tiles
    return groups


def answer_questions(answerer: Answerer, questions: Sequence[Question], max_new_tokens: int) -> list[Answered]:
    """Greedy answers to some questions at once."""
    settings = GenerationSettings(max_new_tokens)
    asked = [Asked.about([load_image(question.image, question.text)], question.text) for question in questions]
    answers = answerer.answer([answerer.prepare(each, settings) for each in asked], settings)
    return [_check(question, answer.text.strip()) for question, answer in zip(questions, answers, strict=True)]


def question_only_exact_match(train: Iterable[Row], questions: Sequence[Question]) -> float:
    """Exact match of answering each question with the most frequent training answer to the same text.

    A text that training does not have gets the most frequent answer of all; ties go to the answer met first.
    """
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for row in train:
        for text in row["texts"]:
            by_text[text["user"]][text["assistant"]] += 1
            overall[text["assistant"]] += 1
    guesses = (by_text.get(question.text, overall).most_common(1)[0][0] for question in questions)
    return sum(guess in question.answers for guess, question in zip(guesses, questions, strict=True)) / len(questions)


def save_test(paths: RunPaths, result: TestResult) -> None:
    """Write RUN/test/step_N.json and, before it, every answer beside it."""
    with whole_file(paths.test_samples(result.global_step)) as temporary, temporary.open("w", encoding="utf-8") as file:
        for answer in result.answered:
            file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
    summary = {name: value for name, value in asdict(result).items() if name != "answered"}
    with whole_file(paths.test(result.global_step)) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")


def load_test(paths: RunPaths, step: int) -> TestResult | None:
    """The saved result of a step, without its answers; None if the test was not run."""
    path = paths.test(step)
    return TestResult(**json.loads(path.read_text())) if path.exists() else None


def _check(question: Question, answer: str) -> Answered:
    image = str(question.image) if not isinstance(question.image, bytes) else "(in the dataset)"
    return Answered(image, question.text, answer, question.answers, answer in question.answers)
