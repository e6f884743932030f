"""Data of the suites' tasks with the columns that the real ones have, and models that say what a test wants.

Every question has a number, ``#7``, by which a made-up model knows it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PillowImage

from vlmkit.errors import UserError
from vlmkit.model.answer import Answer, GenerationSettings, Loglikelihood, Picture, Prompt, Question
from vlmkit.processing.images import digest_picture

TEXT, NUMBER, TEXTS = Value("string"), Value("int64"), List(Value("string"))
NO_TILES = np.empty((0, 1, 1, 3), np.uint8)


def picture(number: int, mode: str = "RGB") -> PillowImage.Image:
    """A picture of its own for each number."""
    return PillowImage.new("RGB", (8 + number, 8), (number * 7 % 256, 40, 90)).convert(mode)


@dataclass(frozen=True)
class MadeUpTask:
    """Rows of a task, what a perfect and a wrong model answer to each, and the scores of both."""

    split: str
    features: Features
    rows: list[dict[str, Any]]
    right: list[str]
    wrong: list[str]
    best: dict[str, float]  # metric → score when all is right; when all is wrong it is 0

    def save(self, folder: Path) -> None:
        """Write it where ``eval_suite.local_data`` is to find it."""
        DatasetDict({self.split: Dataset.from_list(self.rows, features=self.features)}).save_to_disk(folder)


def mmstar() -> MadeUpTask:
    parts = [("math", "geometry"), ("math", "geometry"), ("math", "statistical reasoning"),
             ("logical reasoning", "diagram reasoning"), ("coarse perception", "image emotion"),
             ("science & technology", "geography & earth science & agriculture")]  # fmt: skip
    rows = [
        {"index": n, "question": f"#{n} Which?\nOptions: A: one, B: two, C: three, D: four", "image": picture(n // 2),
         "answer": "ABCD"[n % 4], "category": category, "l2_category": l2, "meta_info": "{}"}
        for n, (category, l2) in enumerate(parts)
    ]  # fmt: skip
    features = Features(
        {"index": NUMBER, "question": TEXT, "image": Image(), "answer": TEXT, "category": TEXT, "l2_category": TEXT,
         "meta_info": TEXT}
    )  # fmt: skip
    best = dict.fromkeys(["average", *{category for category, _ in parts}], 1.0)
    right = [row["answer"] for row in rows]
    return MadeUpTask("val", features, rows, right, ["BCDA"["ABCD".index(r)] for r in right], best)


def mmmu_val() -> MadeUpTask:
    def row(n: int, subject: str, question: str, kind: str, answer: str, pictures: int) -> dict[str, Any]:
        options = "['one', 'two', 'three', 'four']" if kind == "multiple-choice" else "[]"
        images = {f"image_{k}": picture(n + k, "L") if k <= pictures else None for k in range(1, 8)}
        return images | {
            "id": f"validation_{subject}_{n}", "question": f"#{n} {question}", "options": options, "explanation": "",
            "img_type": "['Charts']", "answer": answer, "topic_difficulty": "Easy", "question_type": kind,
            "subfield": "any",
        }  # fmt: skip

    rows = [
        row(0, "Art", "What is in <image 1>?", "multiple-choice", "A", 1),
        row(1, "Art", "Compare <image 1> with <image 2>, then <image 1> again.", "multiple-choice", "C", 2),
        row(2, "Math", "How many are in <image 1>?", "open", "42", 1),
        row(3, "Math", "What is the name in <image 1>?", "open", "['Euler', 'Leonhard Euler']", 1),
        row(4, "Physics", "Which of these: <image 1>?", "multiple-choice", "D", 1),
    ]
    columns = ("id", "question", "options", "explanation", "img_type", "answer", "topic_difficulty", "question_type",
               "subfield")  # fmt: skip
    features = Features(dict.fromkeys(columns, TEXT) | {f"image_{k}": Image() for k in range(1, 8)})
    right = ["A", "(C)", "The answer is 42.", "['Euler', 'Leonhard Euler']", "D"]
    return MadeUpTask("validation", features, rows, right, ["B", "B", "7", "Gauss", "A"], {"mmmu_acc": 1.0})


def ocrbench() -> MadeUpTask:
    kinds = ["Regular Text Recognition", "Scene Text-centric VQA", "Key Information Extraction",
             "Handwritten Mathematical Expression Recognition"]  # fmt: skip
    answers = [["CAFE", "café"], ["Main Street"], ["total: 12.50"], ["x ^ 2 + 1"]]
    rows = [
        {"dataset": "HME100k" if n == 3 else "SROIE", "question": f"#{n} What is written?", "question_type": kind,
         "answer": answer, "image": picture(n)}
        for n, (kind, answer) in enumerate(zip(kinds, answers, strict=True))
    ]  # fmt: skip
    features = Features({"dataset": TEXT, "question": TEXT, "question_type": TEXT, "answer": TEXTS, "image": Image()})
    right = ["it says cafe", "main street", "Total: 12.50", "x^2+1"]
    return MadeUpTask("test", features, rows, right, ["bar"] * 4, {"ocrbench_accuracy": 4 / 1000})


def textvqa_val() -> MadeUpTask:
    answers = [["nokia"] * 10, ["stop"] * 4 + ["stop sign"] * 6, ["12:30"] * 10]
    rows = [
        {"image_id": f"i{n // 2}", "question_id": n, "question": f"#{n} what does it say?", "question_tokens": ["what"],
         "image": picture(n // 2), "image_width": 8, "image_height": 8, "flickr_original_url": "", "answers": given,
         "flickr_300k_url": "", "image_classes": ["Phone"], "set_name": "val", "ocr_tokens": ["NOKIA"]}
        for n, given in enumerate(answers)
    ]  # fmt: skip
    features = Features(
        dict.fromkeys(("image_id", "question", "flickr_original_url", "flickr_300k_url", "set_name"), TEXT)
        | dict.fromkeys(("question_id", "image_width", "image_height"), NUMBER)
        | dict.fromkeys(("question_tokens", "answers", "image_classes", "ocr_tokens"), TEXTS)
        | {"image": Image()}
    )
    right = ["Nokia.", "a stop sign", "12:30"]
    return MadeUpTask("validation", features, rows, right, ["samsung", "go", "noon"], {"exact_match": 1.0})


def docvqa_val() -> MadeUpTask:
    answers = [["ITC Limited", "itc"], ["$1,250"], ["4th of March"]]
    rows = [
        {"questionId": str(n), "question": f"#{n} What is it?", "question_types": ["form"], "image": picture(n // 2),
         "docId": n // 2, "ucsf_document_id": "a", "ucsf_document_page_no": "1", "answers": given,
         "data_split": "val"}
        for n, given in enumerate(answers)
    ]  # fmt: skip
    features = Features(
        dict.fromkeys(("questionId", "question", "ucsf_document_id", "ucsf_document_page_no", "data_split"), TEXT)
        | {"question_types": TEXTS, "answers": TEXTS, "docId": NUMBER, "image": Image()}
    )
    right = ["itc  limited", "$1,250", "4th of march"]
    return MadeUpTask("validation", features, rows, right, ["zzz", "qqqqqq", "never"], {"anls": 1.0})


def infovqa_val() -> MadeUpTask:
    rows = [
        {"questionId": str(n), "question": f"#{n} How many?", "answers": given, "answer_type": ["single span"],
         "image": picture(0), "image_url": "", "operation/reasoning": ["counting"], "ocr": "{}", "data_split": "val"}
        for n, given in enumerate([["72%", "72 %"], ["Germany"]])
    ]  # fmt: skip
    features = Features(
        dict.fromkeys(("questionId", "question", "image_url", "ocr", "data_split"), TEXT)
        | dict.fromkeys(("answers", "answer_type", "operation/reasoning"), TEXTS)
        | {"image": Image()}
    )
    return MadeUpTask("validation", features, rows, ["72%", "germany"], ["x", "y"], {"anls": 1.0})


def scienceqa() -> MadeUpTask:
    texts = ("question", "hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    rows = [
        dict.fromkeys(texts, "") | {"image": image, "question": f"#{n} Which one?", "choices": ["red", "green", "blue"],
                                    "answer": answer, "hint": "Look." if n else ""}
        for n, (image, answer) in enumerate([(picture(1), 0), (None, 2), (None, 1), (picture(1), 1)])
    ]  # fmt: skip
    features = Features(dict.fromkeys(texts, TEXT) | {"image": Image(), "choices": TEXTS, "answer": Value("int8")})
    right = ["A", "C. blue", "b", "B."]
    return MadeUpTask("test", features, rows, right, ["B", "A. red", "c", "C"], {"exact_match": 1.0})


def mme() -> MadeUpTask:
    pairs = [("existence", 0), ("existence", 1), ("OCR", 2), ("commonsense_reasoning", 3), ("code_reasoning", 3)]
    rows = [
        {"question_id": f"{category}/{number}.png", "image": picture(number), "answer": answer, "category": category,
         "question": f"#{2 * at + (answer == 'No')} Is it so? Please answer yes or no."}
        for at, (category, number) in enumerate(pairs)
        for answer in ("Yes", "No")
    ]  # fmt: skip
    features = Features({"question_id": TEXT, "image": Image(), "question": TEXT, "answer": TEXT, "category": TEXT})
    best = {"mme_perception_score": 400.0, "mme_cognition_score": 400.0}
    return MadeUpTask("test", features, rows, ["Yes.", "no"] * 5, ["No", "yes, it is"] * 5, best)


def chartqa() -> MadeUpTask:
    answers = ["14", "0.57", "Yes", "2014"]
    rows = [
        {"type": "human_test" if n % 2 else "augmented_test", "question": f"#{n} What?", "answer": answer,
         "image": picture(n // 2)}
        for n, answer in enumerate(answers)
    ]  # fmt: skip
    features = Features({"type": TEXT, "question": TEXT, "answer": TEXT, "image": Image()})
    best = {"relaxed_overall": 1.0, "relaxed_human_split": 1.0, "relaxed_augmented_split": 1.0}
    return MadeUpTask("test", features, rows, ["14.5", "57%", "yes", "2014"], ["15", "0.7", "No", "12"], best)


TASKS = {
    made.__name__: made
    for made in (mmstar, mmmu_val, ocrbench, textvqa_val, docvqa_val, infovqa_val, scienceqa, mme, chartqa)
}


def number_in(text: str) -> int:
    """The number of the question in a prompt."""
    found = re.search(r"#(\d+)", text)
    assert found is not None, text
    return int(found[1])


@dataclass
class MadeUpModel:
    """Answers by the question's number."""

    say: Callable[[int], str]
    refused: Sequence[int] = ()  # questions that cannot be prepared
    asked: list[int] = field(default_factory=list)  # in the order of the answers
    questions: list[str] = field(default_factory=list)
    precision: str = "made up"

    def prepare(self, question: Question, wanted: GenerationSettings | str) -> Prompt:
        if number_in(question.text) in self.refused:
            raise UserError("a picture that cannot be read")
        pictures = tuple(Picture(digest_picture(each), NO_TILES) for each in question.pictures)
        return Prompt(list(question.text.encode()), pictures, room=1000)

    def answer(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, seeds: Sequence[int] = ()
    ) -> list[Answer]:
        texts = [bytes(prompt.ids).decode() for prompt in prompts]
        numbers = [number_in(text) for text in texts]
        self.questions += texts
        self.asked += numbers
        return [Answer(self.say(number), "end", len(text), 1) for number, text in zip(numbers, texts, strict=True)]

    def loglikelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Loglikelihood]:
        """The right continuation is the likeliest."""
        numbers = [number_in(bytes(prompt.ids).decode()) for prompt in prompts]
        likely = [text.strip() == self.say(number) for number, text in zip(numbers, continuations, strict=True)]
        return [Loglikelihood(-1.0 if each else -9.0, each) for each in likely]
