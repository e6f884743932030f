"""Many questions of one task to a model: prepared ahead in threads, answered in batches of like lengths.

Requests are taken in windows of WINDOW batches, in their order. While one window is answered the next one is prepared:
what a picture costs on the CPU is hidden, and no more than two windows are in memory. Inside a window the longest
prompts are answered first, so that a batch has little padding.

What is in a batch depends on the requests and the batch size alone, and what is drawn for a request on its index and
the seed alone. So a cell that was killed goes on as if it had not been, and neither the batch size nor the number of
processes that share a task changes an answer, but for what floating point makes of other batches.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from vlmkit.data.order import keyed_hash
from vlmkit.errors import one_line
from vlmkit.model.answer import Answer, GenerationSettings, Loglikelihood, Prompt, Question
from vlmkit.redact import redact

WINDOW = 4  # batches that are prepared together
MAX_THREADS = 8
MIN_FAILURES = 4  # one after the other, before a model with small batches is taken for broken


class AnsweringModel(Protocol):
    """What is asked: ``vlmkit.model.answer.Answerer`` does it, and says what its methods mean."""

    @property
    def precision(self) -> str:
        """What it computes in."""

    def prepare(self, question: Question, wanted: GenerationSettings | str) -> Prompt:
        """Make a prompt; called in several threads at a time."""

    def answer(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, seeds: Sequence[int] = ()
    ) -> list[Answer]:
        """Answer a batch; each prompt has its seed."""

    def loglikelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Loglikelihood]:
        """Say for a batch how likely each answer begins so."""


@dataclass(frozen=True, slots=True)
class Request:
    """A question, loaded when its turn comes, to be answered with ``settings`` or weighed with ``continuation``."""

    index: int  # its number among the requests of the task
    load: Callable[[], Question]  # may raise anything: a task's code is not ours
    settings: GenerationSettings | None = None
    continuation: str | None = None

    def __post_init__(self) -> None:
        assert (self.settings is None) != (self.continuation is None)

    @property
    def wanted(self) -> GenerationSettings | str:
        """The one of the two that is there."""
        wanted = self.continuation if self.settings is None else self.settings
        assert wanted is not None
        return wanted


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a request: an answer, a loglikelihood, or an error in one line."""

    index: int
    answer: Answer | None = None
    loglikelihood: Loglikelihood | None = None
    error: str | None = None
    prompt_text: str = ""  # ``<image>`` for a picture; empty if the question could not be loaded
    pictures: tuple[str, ...] = ()  # their digests
    shrunk: bool = False  # the pictures have fewer tiles than they should
    input_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Prepared:
    request: Request
    text: str
    prompt: Prompt

    def answered(
        self, answer: Answer | None = None, loglikelihood: Loglikelihood | None = None, error: str | None = None
    ) -> Answered:
        return Answered(
            self.request.index,
            answer,
            loglikelihood,
            error,
            prompt_text=self.text,
            pictures=tuple(picture.digest for picture in self.prompt.pictures),
            shrunk=self.prompt.shrunk,
            input_tokens=len(self.prompt.ids),
        )


def answer_all(
    requests: Sequence[Request],
    model: AnsweringModel,
    batch_size: int,
    seed: int = 0,
    done: Collection[int] = frozenset(),
) -> Iterator[list[Answered]]:
    """Answer all requests but those that are done; each batch comes as soon as it is answered.

    A request that cannot be loaded or prepared comes with its error, before the batches of its window. One that the
    model fails for comes with its error in its batch; the others of the batch are asked again without it.

    Args:
        requests: Of one task, in order, the done ones too: batches are composed as if nothing was done.
        model: Is asked.
        batch_size: Most prompts that are answered together; fewer if they do not fit into the GPU's memory.
        seed: Of what is drawn.
        done: Indexes of requests that need no answer. A batch with some of them is answered whole all the same.

    Raises:
        Exception: The model's own, after it failed for a batch of requests in a row, or MIN_FAILURES if these are more.
    """
    size = WINDOW * batch_size
    windows = [requests[start : start + size] for start in range(0, len(requests), size)]
    windows = [window for window in windows if any(request.index not in done for request in window)]
    asker = _Asker(model, seed, failures=max(batch_size, MIN_FAILURES))
    pool = ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))), "prepare")
    try:
        ahead = [pool.submit(_prepare, request, model) for window in windows[:1] for request in window]
        for following in [*windows[1:], ()]:
            prepared = [future.result() for future in ahead]
            ahead = [pool.submit(_prepare, request, model) for request in following]
            for answered in _answer_window(prepared, asker, batch_size, done):
                if left := [each for each in answered if each.index not in done]:
                    yield left
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(request: Request, model: AnsweringModel) -> _Prepared | Answered:
    text = ""
    try:
        question = request.load()
        text = question.text
        return _Prepared(request, text, model.prepare(question, request.wanted))
    except Exception as error:
        return Answered(request.index, error=redact(one_line(error)), prompt_text=text)


def _answer_window(
    window: Sequence[_Prepared | Answered], asker: "_Asker", batch_size: int, done: Collection[int]
) -> Iterator[list[Answered]]:
    yield [each for each in window if isinstance(each, Answered)]
    for batch in _batches((each for each in window if isinstance(each, _Prepared)), batch_size):
        if any(each.request.index not in done for each in batch):
            yield asker.answer_batch(batch)


def _batches(prepared: Iterable[_Prepared], batch_size: int) -> Iterator[list[_Prepared]]:
    """Batches of the same settings, longest prompts first: what does not fit into memory shows at once."""
    groups: defaultdict[GenerationSettings | None, list[_Prepared]] = defaultdict(list)
    for each in prepared:
        groups[each.request.settings].append(each)
    for group in groups.values():
        group.sort(key=lambda each: (-len(each.prompt.ids), each.request.index))
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


class _Asker:
    """Asks the model; tells what it fails for from a model that always fails."""

    def __init__(self, model: AnsweringModel, seed: int, failures: int) -> None:
        """Let the model's exception through once so many samples in a row have failed, each alone."""
        self._model = model
        self._seed = seed
        self._failures = failures
        self._failed_in_a_row = 0

    def answer_batch(self, batch: Sequence[_Prepared]) -> list[Answered]:
        """Answer a batch; if it does not fit into the GPU's memory or the model fails, in halves."""
        try:
            answered = self._ask(batch)
            self._failed_in_a_row = 0
            return answered
        except torch.OutOfMemoryError as error:  # the longest prompts come first, others may fit
            reason = redact(one_line(error))
        except Exception as error:
            self._failed_in_a_row += len(batch) == 1
            if self._failed_in_a_row >= self._failures:
                raise
            reason = redact(one_line(error))
        torch.cuda.empty_cache()  # here, where nothing holds the failed batch's tensors any longer
        if len(batch) == 1:
            return [batch[0].answered(error=reason)]
        half = len(batch) // 2
        return [*self.answer_batch(batch[:half]), *self.answer_batch(batch[half:])]

    def _ask(self, batch: Sequence[_Prepared]) -> list[Answered]:
        requests = [each.request for each in batch]
        prompts = [each.prompt for each in batch]
        if (settings := requests[0].settings) is None:
            weighed = self._model.loglikelihood(prompts, [request.continuation or "" for request in requests])
            return [each.answered(loglikelihood=found) for each, found in zip(batch, weighed, strict=True)]
        seeds = keyed_hash(np.array([request.index for request in requests], np.uint64), self._seed)
        answers = self._model.answer(prompts, settings, seeds.tolist())
        return [each.answered(answer) for each, answer in zip(batch, answers, strict=True)]
