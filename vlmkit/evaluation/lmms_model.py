"""A checkpoint as a model of lmms-eval, and what its requests mean here.

    python -m lmms_eval --model vlmkit --model_args pretrained=RUN/checkpoints/step_N --tasks mme --batch_size 64
    python -m lmms_eval --model vlmkit --force_simple …      tasks of output_type multiple_choice or loglikelihood

lmms-eval has two kinds of models: chat models are given messages with pictures among the texts, simple ones a text and
its pictures. Only for simple ones it builds tasks that compare likelihoods.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lmms_eval.api.task  # noqa: F401
import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from vlmkit.errors import UserError
from vlmkit.evaluation.answering import Answered, Request, answer_all
from vlmkit.model.answer import ChatMessage, GenerationSettings, Question, load_answerer
from vlmkit.pretrained.files import find_folder, fingerprint
from vlmkit.processing.images import load_image, refuse_half_pictures
from vlmkit.tracking.quiet import quiet_libraries

refuse_half_pictures()  # lmms_eval.api.task lets PIL fill them: it is imported above, so that it cannot do so later

Docs = Mapping[str, Any]  # task → split → number → row


class VLMKit(lmms):  # type: ignore[misc]
    """The chat model."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.5,
        top_p: float = 0.9,
        seed: int = 0,
        max_batch_size: object = None,
    ) -> None:
        """Load a checkpoint.

        Args:
            pretrained: A folder or a hub id ``org/name[@revision]``.
            batch_size: Samples that are answered together.
            device: Where it computes, ``cuda:1`` for instance; None: on this process's own GPU, if there is one.
            max_new_tokens: Of an answer, where the task names none.
            temperature: Where the task asks neither for greedy answers nor for another; 0: always the likeliest token.
            top_p: Where the task names none: drawn from the likeliest tokens that have so much probability together.
            seed: Of what is drawn.
            max_batch_size: lmms-eval gives it to every model; a batch that is too large for the GPU is halved anyway.

        Raises:
            UserError: There is no such checkpoint, or a value cannot be.
        """
        super().__init__()
        quiet_libraries()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size={batch_size}: must be a whole number above 0")
        self.batch_size = int(batch_size)
        self.device = _own_device() if device is None else torch.device(device)
        self._defaults = GenerationSettings(int(max_new_tokens), temperature=float(temperature), top_p=float(top_p))
        self._seed = int(seed)
        self._pretrained = pretrained
        self._fingerprint = fingerprint(find_folder(pretrained, "pretrained", with_weights=True))
        self._answerer = load_answerer(pretrained, self.device, "pretrained")

    def __repr__(self) -> str:
        """What answers are kept under in lmms-eval's response cache, where it is given a model and not its name."""
        return (
            f"{type(self).__name__}(pretrained={self._pretrained!r}, fingerprint={self._fingerprint!r}, "
            f"defaults={self._defaults}, seed={self._seed})"
        )

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer requests, as each one's ``generation_kwargs`` say.

        Raises:
            UserError: One of them cannot be answered: lmms-eval has no place for that but a wrong answer.
        """
        results = []
        for answer in (answered.answer for answered in self._ask(requests)):
            assert answer is not None
            counts = TokenCounts(input_tokens=answer.input_tokens, output_tokens=answer.output_tokens)
            results.append(GenerationResult(answer.text, counts))
        return results

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """How likely each continuation is: what ``likelihood_for`` says the task wants.

        In an envelope: lmms-eval 0.7.3 makes a string of a pair that comes without one. Its response cache
        (``--use_cache``) cannot keep likelihoods for the same reason.

        Raises:
            UserError: As for ``generate_until``.
        """
        answered = self._ask(requests)
        return [GenerationResult(likelihood_for(each, of)) for each, of in zip(requests, answered, strict=True)]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not there: none of vlmkit's suites has such a task."""
        raise NotImplementedError("vlmkit answers one question at a time: tasks of several rounds cannot be run")

    def _ask(self, instances: Sequence[Instance]) -> list[Answered]:
        requests = [
            request_of(instance, self.task_dict, self._defaults, index) for index, instance in enumerate(instances)
        ]
        found: dict[int, Answered] = {}
        with tqdm(total=len(requests), desc="answering", disable=self.rank != 0) as bar:
            for batch in answer_all(requests, self._answerer, self.batch_size, self._seed):
                for answered in batch:
                    if answered.error:
                        instance = instances[answered.index]
                        raise UserError(f"{instance.task_name}: sample {instance.doc_id}: {answered.error}")
                    found[answered.index] = answered
                bar.update(len(batch))
        return [found[index] for index in range(len(requests))]


class SimpleVLMKit(VLMKit):
    """The same for tasks that are built for simple models."""

    is_simple = True


def request_of(instance: Instance, docs: Docs, defaults: GenerationSettings, index: int) -> Request:
    """What one of lmms-eval's requests asks for.

    Args:
        instance: For a chat or for a simple model.
        docs: The datasets of its task and of others.
        defaults: For what the task does not name.
        index: Its number among the requests of its task.

    Raises:
        NotImplementedError: It is of a type that vlmkit does not answer.
        ConfigError: The task asks for what cannot be, a temperature below 0 for instance.
    """
    arguments = instance.args
    match instance.request_type:
        case "generate_until" if callable(arguments[1]):
            _, to_messages, asked, doc_id, task, split = arguments
            load = partial(_load_messages, docs, task, split, doc_id, to_messages)
            return Request(index, load, settings=settings_of(asked, defaults))
        case "generate_until":
            text, asked, to_visuals, doc_id, task, split = arguments
            load = partial(_load_simple, docs, task, split, doc_id, to_visuals, text)
            return Request(index, load, settings=settings_of(asked, defaults))
        case "loglikelihood" if len(arguments) == 2:  # of an answer without its question, for acc_mutual_info
            text, target = arguments
            return Request(index, partial(Question.about, (), text), continuation=target)
        case "loglikelihood":
            text, target, to_visuals, doc_id, task, split = arguments
            load = partial(_load_simple, docs, task, split, doc_id, to_visuals, text)
            return Request(index, load, continuation=target(docs[task][split][doc_id]) if callable(target) else target)
        case other:
            raise NotImplementedError(f"{instance.task_name}: vlmkit does not answer requests of the type {other}")


def settings_of(asked: Mapping[str, Any], defaults: GenerationSettings) -> GenerationSettings:
    """A task's ``generation_kwargs``; what they do not name, or name as null, is as in ``defaults``.

    Answers are greedy where the task says ``do_sample: false`` or ``temperature: 0``. What is not of an answer's text
    (``image_aspect_ratio``) is passed over.

    Raises:
        ConfigError: A value is out of range.
    """
    named = {key: value for key, value in asked.items() if value is not None}
    until = named.get("until", ())
    temperature = float(named.get("temperature", defaults.temperature))
    if named.get("do_sample") is False:
        temperature = 0.0
    elif named.get("do_sample") and "temperature" not in named:
        temperature = temperature or 1.0
    return GenerationSettings(
        max_new_tokens=int(named.get("max_new_tokens", defaults.max_new_tokens)),
        until=tuple(string for string in ((until,) if isinstance(until, str) else until) if string),
        temperature=temperature,
        top_p=float(named.get("top_p", defaults.top_p)) if temperature else 1.0,  # means nothing then
        num_beams=int(named.get("num_beams", 1)),
    )


def likelihood_for(instance: Instance, answered: Answered) -> tuple[float, bool]:
    """A likelihood as the scoring code of the instance's task wants it, and whether it is the greedy answer.

    In lmms-eval 0.7.3 a task of output_type multiple_choice takes the choice with the *lowest* number (its models
    return a loss; ``acc_mutual_info`` alone takes the highest, so no model gets it right), one of output_type
    loglikelihood a logarithm of which its perplexity is made. The latter gives a function for the continuation.
    """
    found = answered.loglikelihood
    assert found is not None
    return (found.logprob if callable(instance.args[1]) else -found.logprob), found.is_greedy


def _load_messages(docs: Docs, task: str, split: str, doc_id: int, to_messages: Any) -> Question:
    messages = to_messages(docs[task][split][doc_id])
    return Question(tuple(ChatMessage(message["role"], _parts(message["content"])) for message in messages))


def _parts(content: str | Iterable[Mapping[str, Any]]) -> tuple[str | Image.Image, ...]:
    if isinstance(content, str):
        return (content,)
    return tuple(part["text"] if part["type"] == "text" else as_picture(part["url"], part["type"]) for part in content)


def _load_simple(docs: Docs, task: str, split: str, doc_id: int, to_visuals: Any, text: str) -> Question:
    visuals = to_visuals(docs[task][split][doc_id]) if to_visuals else None
    return Question.about([as_picture(visual) for visual in visuals or ()], text)


def as_picture(visual: object, kind: str = "image") -> Image.Image:
    """What a task shows, a picture or its file.

    Raises:
        UserError: It is no picture.
    """
    if isinstance(visual, Image.Image):
        return visual
    if isinstance(visual, str) and kind == "image":
        return load_image(Path(visual), visual)
    raise UserError(f"the question has {kind} of type {type(visual).__name__}: vlmkit answers about pictures and text")


def _own_device() -> torch.device:
    """The GPU of this process among those that torchrun or accelerate started here."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
