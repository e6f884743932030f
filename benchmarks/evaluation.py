"""Samples per second of an evaluation: ours, and a loop the reference's way, with the same checkpoint and questions.

    python benchmarks/evaluation.py CHECKPOINT [--json FILE] [--questions N] [--batch-size N] [--max-new-tokens N ...]

The questions are test questions of easy-VQA, as the suite ``demo`` asks them; their answers are one word. The
reference (nanoVLM) takes batches in the order in which the questions come, looks at every picture as often as it is
asked about, and generates ``max_new_tokens`` for each answer whether it has ended or not; what stands behind the end is
cut off afterwards. Its limits: 16 tokens is what tasks with short answers ask for, 512 what it takes where a task names
none. Both ways generate greedily with the same model and a cache of keys and values, pictures decoded and cut by the
same code; times count decoding, tiling and tokenising too. The texts are compared.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from report import write_report
from rich.console import Console
from rich.table import Table

from vlmkit.data.sources import Question as Test
from vlmkit.data.sources import read_easyvqa_test
from vlmkit.evaluation.answering import Request, answer_all
from vlmkit.model.answer import Answerer, GenerationSettings, Question
from vlmkit.model.build import load_checkpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import load_image


@dataclass(frozen=True)
class Result:
    """One way with one limit."""

    way: str
    max_new_tokens: int
    questions: int
    seconds: float
    samples_per_second: float
    same_text: float  # share of answers that are those of the reference's way


@dataclass(frozen=True)
class Checkpoint:
    """A model in the hands of both ways."""

    model: PackedVLM
    encoder: ChatEncoder
    answerer: Answerer


def load(name: str) -> Checkpoint:
    """Load a checkpoint, on a GPU if there is one."""
    loaded = load_checkpoint(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, encoder = PackedVLM(loaded.model.to(device), loaded.layout), ChatEncoder(loaded.tokenizer, loaded.layout)
    return Checkpoint(model, encoder, Answerer(model, encoder))


def ours(checkpoint: Checkpoint, questions: Sequence[Test], batch_size: int, max_new_tokens: int) -> list[str]:
    """The way of a cell."""
    answerer = checkpoint.answerer
    settings = GenerationSettings(max_new_tokens)
    requests = [Request(index, lambda test=test: asked(test), settings) for index, test in enumerate(questions)]
    answers = {each.index: each.answer for batch in answer_all(requests, answerer, batch_size) for each in batch}
    return [answers[index].text for index in range(len(questions))]


def reference(checkpoint: Checkpoint, questions: Sequence[Test], batch_size: int, max_new_tokens: int) -> list[str]:
    """Batches as they come; every answer has all the tokens that it may have."""
    model, encoder = checkpoint.model, checkpoint.encoder
    settings = GenerationSettings(max_new_tokens)
    eos = model.hf.config.text_config.eos_token_id
    texts = []
    for start in range(0, len(questions), batch_size):
        prompts = [checkpoint.answerer.prepare(asked(test), settings) for test in questions[start : start + batch_size]]
        tiles = torch.cat([torch.from_numpy(picture.tiles) for prompt in prompts for picture in prompt.pictures])
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.tensor([[eos] * (longest - len(prompt.ids)) + prompt.ids for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts])
        device = model.hf.device
        with torch.no_grad():
            generated = model.hf.generate(
                inputs_embeds=model.embed(ids.to(device), tiles.to(device)),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=eos,
            ).tolist()
        texts += [encoder.tokenizer.decode(row[: row.index(eos)] if eos in row else row) for row in generated]
    return texts


def asked(test: Test) -> Question:
    """A test question as the model is asked it; decodes the picture."""
    return Question.about([load_image(test.image, test.text)], test.text)


def timed(answer: Callable[..., list[str]], *arguments: object) -> tuple[list[str], float]:
    """What a function gives, and the seconds it took."""
    begun = time.perf_counter()
    texts = answer(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return texts, time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--questions", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, nargs="+", default=[16, 512])
    arguments = parser.parse_args()

    checkpoint = load(arguments.checkpoint)
    questions = read_easyvqa_test()[: arguments.questions]
    for warm_up in (reference, ours):
        warm_up(checkpoint, questions[: arguments.batch_size], arguments.batch_size, 4)
    results = []
    for limit in arguments.max_new_tokens:
        known: list[str] = []
        for way in (reference, ours):
            texts, seconds = timed(way, checkpoint, questions, arguments.batch_size, limit)
            known = known or texts
            same = sum(a == b for a, b in zip(known, texts, strict=True)) / len(texts)
            results.append(Result(way.__name__, limit, len(texts), seconds, len(texts) / seconds, same))
    table = Table("limit", "way", "seconds", "samples/s", "by the reference's", "same text")
    for result in results:
        [base] = [r for r in results if r.max_new_tokens == result.max_new_tokens and r.way == reference.__name__]
        table.add_row(
            str(result.max_new_tokens),
            result.way,
            f"{result.seconds:.1f}",
            f"{result.samples_per_second:,.1f}",
            f"{result.samples_per_second / base.samples_per_second:.2f}",
            f"{result.same_text:.2%}",
        )
    Console().print(table)
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        write_report(arguments.json, settings, ("torch", "transformers"), results)


if __name__ == "__main__":
    main()
