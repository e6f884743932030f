"""easy-VQA's test part as a task of lmms-eval: pictures and questions of the PyPI package, without a network."""

from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value
from lmms_eval.api.task import ConfigurableMessagesTask

from vlmkit.data.sources import read_easyvqa_test

FEATURES = Features({"image": Image(), "question": Value("string"), "answers": List(Value("string"))})


class EasyVQA(ConfigurableMessagesTask):  # type: ignore[misc]
    """One document for each question, in the package's order."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the installed package."""
        rows = [
            {"image": str(question.image), "question": question.text, "answers": list(question.answers)}
            for question in read_easyvqa_test()
        ]
        documents = Dataset.from_list(rows, features=FEATURES)
        self.dataset = DatasetDict(test=documents)
        self.dataset_no_image = DatasetDict(test=documents.remove_columns("image"))


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """The picture, as training sees it."""
    return [doc["image"].convert("RGB")]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer is exactly one of the right ones."""
    return {"exact_match": float(results[0].strip() in doc["answers"])}
