"""The tasks of lmms-eval: loading one, its requests, its scores. What is wrong with it is told before a model loads.

Prompts, data and scores are lmms-eval's own. Kept from it are its retries, which wait for seconds before they tell the
same, what it prints, and what its modules remember of an evaluation before.
"""

import hashlib
import inspect
import json
import random
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, cached_property, partial
from io import StringIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from loguru import logger
from PIL import Image

from vlmkit.errors import ConfigError, UserError, one_line
from vlmkit.evaluation.answering import Answered, Request
from vlmkit.evaluation.cells import Metric, Order
from vlmkit.evaluation.judges import find_judge, why_not_asked
from vlmkit.evaluation.samples import Line
from vlmkit.evaluation.scoring import Aggregate, Document, score_metric
from vlmkit.evaluation.task_names import OWN_TASKS, find_task_folder, is_own
from vlmkit.model.answer import GenerationSettings, Loglikelihood
from vlmkit.pretrained.files import hub_or_offline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its dependencies say of each other
    from lmms_eval.api.instance import Instance
    from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.filters.transformation import StripThinkingFilter
    from lmms_eval.tasks import TaskManager

    from vlmkit.evaluation.lmms_model import as_picture, likelihood_for, request_of

KINDS = {"generate_until": "chat", "loglikelihood": "simple", "multiple_choice": "simple"}  # output type → of task
# lmms-eval's own: of the examples in a prompt, and of Python's and numpy's draws, as where GPQA shuffles its choices
EXAMPLES_SEED, RANDOM_SEED, NUMPY_SEED = 1234, 0, 1234
OUTPUT_FOLDER = "lmms_eval"  # inside a cell: what the task's own code writes


@dataclass(frozen=True, slots=True)
class Result:
    """The scores of a task."""

    metrics: dict[str, Metric]
    lines: dict[int, Line]  # document → target, scores, strata, cluster: they belong to its first line
    guesses: int  # documents for which the task's code drew an answer, as it found none


@dataclass
class LmmsTask:
    """A task of lmms-eval, with its data."""

    name: str
    task: ConfigurableTask
    _instances: list[Instance] = field(default_factory=list)  # one for each request

    @cached_property
    def config_hash(self) -> str:
        """16 hex digits that change with the task's settings and with the code of the functions that it names."""
        settings = {name: _source(value) for name, value in vars(self.task.config).items()}
        for name in ("dataset_path", "dataset_kwargs"):  # where the data lie
            settings.pop(name, None)
        return _digest(json.dumps(settings, sort_keys=True, default=_source))

    @cached_property
    def data_hash(self) -> str:
        """16 hex digits that change with the documents and their order; pictures and sounds are left out."""
        documents = self.task.eval_docs_no_media
        if isinstance(documents, datasets.Dataset):
            media = (datasets.Image, datasets.Audio, datasets.Video)
            seen = [name for name, feature in documents.features.items() if not _holds(feature, media)]
            documents = documents.select_columns(seen)
        return _digest(*(json.dumps(document, sort_keys=True, default=str) for document in documents))

    def requests(self, order: Order) -> list[Request]:
        """All that is to be asked, in order; a document is read when its request is loaded.

        Raises:
            UserError: The task's code fails.
        """
        try:
            with quiet(), _seeded():
                self.task.set_fewshot_seed(EXAMPLES_SEED)
                self.task.build_all_requests(limit=order.limit)
        except Exception as error:
            raise UserError(f"lmms-eval cannot make its requests: {_one_line(error)}") from error
        self._instances = [instance for instance in self.task.instances for _ in range(instance.repeats)]
        defaults = GenerationSettings(order.max_new_tokens, (), order.temperature, order.top_p)
        data = {self.name: self.task.dataset}
        return [request_of(instance, data, defaults, index) for index, instance in enumerate(self._instances)]

    def document_of(self, index: int) -> int:
        """The number of the document that a request is about."""
        return int(self._instances[index].doc_id)

    def pictures(self, number: int) -> list[Image.Image]:
        """Those of a document, of any mode.

        Raises:
            UserError: The task's code fails.
        """
        try:
            with quiet():
                return [as_picture(visual) for visual in self.task.doc_to_visual(self.task.eval_docs[number]) or ()]
        except Exception as error:
            raise UserError(f"lmms-eval cannot show document {number}: {_one_line(error)}") from error

    def score(self, answers: Mapping[int, Line], folder: Path) -> Result:
        """Score the requests that were made last.

        Args:
            answers: Index → line; a document with an error in one of its lines is left out.
            folder: Of the cell; what the task's own code writes comes below it.

        Raises:
            UserError: The task's code fails.
        """
        with quiet(), _seeded():
            answered = self._answered(answers)
            documents, guesses = self._process(answered, answers)
            metrics = {
                key: metric
                for each in self.task._filters
                for name in self.task.aggregation()
                if (metric := self._score_metric(key := _key(name, each.name), name, documents, folder))
            }
            lines = {number: self._line(number, document) for number, document in documents.items()}
        return Result(metrics, lines, len(guesses))

    def _answered(self, answers: Mapping[int, Line]) -> dict[int, list[Instance]]:
        """Document → its instances with their responses and what the task's filters made of them."""
        failed = {self.document_of(index) for index in range(len(self._instances)) if "error" in answers[index]}
        for instance in self._instances:
            instance.resps, instance.filtered_resps = [], {}
        for index, instance in enumerate(self._instances):
            if instance.doc_id not in failed:
                instance.resps.append(_response(answers[index], instance))
        scored = [instance for instance in self.task.instances if instance.doc_id not in failed]
        for each in _filters(self.task):
            each.apply(scored, self.task.task_docs)
        by_document: dict[int, list[Instance]] = {}
        for instance in sorted(scored, key=lambda instance: (instance.doc_id, instance.idx)):
            by_document.setdefault(int(instance.doc_id), []).append(instance)
        return by_document

    def _process(
        self, answered: dict[int, list[Instance]], answers: Mapping[int, Line]
    ) -> tuple[dict[int, Document], set[int]]:
        """What process_results gives for each document, and the documents for which it drew from the random numbers."""
        pictures = {self.document_of(index): answers[index].get("pictures") for index in sorted(answers, reverse=True)}
        tags = parse_reasoning_tags_config(task_value=self.task.config.reasoning_tags)
        documents, guesses = {}, set()
        for number, instances in answered.items():
            digests = pictures[number]
            document = Document({}, _digest(*digests) if digests else f"document {number}")
            for name in instances[0].filtered_resps:
                random.seed(str(number))  # so that a draw is the same whatever was scored before
                before = random.getstate()
                responses = [_without(tags, instance.filtered_resps[name]) for instance in instances]
                for metric, item in self._process_results(number, responses).items():
                    document.items[_key(metric, name)] = item
                if random.getstate() != before:
                    guesses.add(number)
            documents[number] = document
        return documents, guesses

    def _process_results(self, number: int, responses: list[Any]) -> dict[str, Any]:
        process = type(self.task).process_results
        process = getattr(process, "__wrapped__", process)  # without retries, which wait for what does not change
        try:
            try:
                given = process(self.task, self.task.eval_docs_no_media[number], responses)
            except KeyError:  # a task that looks at the picture, and does not say so
                given = process(self.task, self.task.eval_docs[number], responses)
        except Exception as error:
            raise UserError(f"lmms-eval cannot score document {number}: {_one_line(error)}") from error
        return dict(given)

    def _score_metric(self, key: str, name: str, documents: dict[int, Document], folder: Path) -> Metric | None:
        function = self.task.aggregation()[name]
        call: Aggregate = function
        if "args" in inspect.signature(function).parameters:
            call = partial(function, args=Namespace(output_path=str(folder / OUTPUT_FOLDER), process_with_media=True))
        try:
            with _globals_kept(function):
                return score_metric(key, documents, function, call, bool(self.task.higher_is_better()[name]))
        except Exception as error:
            raise UserError(f"lmms-eval cannot compute {key}: {_one_line(error)}") from error

    def _line(self, number: int, document: Document) -> Line:
        return {
            "target": self._target(number),
            "scores": document.scores,
            "strata": document.strata,
            "cluster": document.cluster,
        }

    def _target(self, number: int) -> Any:
        """What the task says is right, for people to read."""
        document, named = self.task.eval_docs_no_media[number], self.task.config.doc_to_target
        if named == "answer" and named not in document:  # TextVQA's, whose scores come from its answers
            return document.get("answers")
        try:
            return json.loads(json.dumps(self.task.doc_to_target(document), default=str))
        except Exception:  # the score does not need it
            return None


def load_task(name: str, local_data: str | None) -> LmmsTask:
    """Load a task and its data, and see that it can be answered and scored here.

    Args:
        name: As lmms-eval knows it, or one that ships with vlmkit.
        local_data: Folder with a ``save_to_disk`` folder for each task, instead of where lmms-eval gets its data.

    Raises:
        ConfigError: There is no such task.
        UserError: It cannot be answered or scored here; the message says why, but not of which task.
    """
    require_task(name)
    with quiet():
        manager = _manager(find_task_folder(name))
        try:
            config = manager._get_config(name)
        except Exception as error:
            _require_key(find_judge([type(error)]))  # its module asks for the key when it is imported
            raise UserError(f"lmms-eval cannot load this task: {_one_line(error)}") from error
        _require_answerable(config)
        used = [config.get("process_results"), *(each.get("aggregation") for each in config.get("metric_list") or ())]
        _require_key(find_judge(function for function in used if callable(function)))
        changes = _own_data(config) if local_data is None or is_own(name) else _local_data(name, local_data)
        return LmmsTask(name, _build(manager, name, config, changes))


def require_task(name: str) -> None:
    """Raise ConfigError unless a task has this name; the message has names like it, or those of a group's tasks."""
    if find_task_folder(name):
        return
    with quiet():
        manager = _manager(None)
        if name in manager.all_groups or name in manager.all_tags:
            raise ConfigError(f"tasks={name}: is a group of lmms-eval; name its tasks: {', '.join(_members(name))}")
    close = get_close_matches(name, manager.all_tasks, n=5)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise ConfigError(f"tasks={name}: is no task of lmms-eval; {hint}`python -m lmms_eval --tasks list` prints all")


@contextmanager
def quiet() -> Iterator[None]:
    """What lmms-eval's code prints, logs and warns of inside is dropped."""
    logger.remove()  # again and again: its modules add sinks when they are imported
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.remove()


@cache
def _manager(folder: Path | None) -> TaskManager:
    """lmms-eval's index of the tasks in a folder; None: of all, which takes seconds."""
    if folder is None:
        return TaskManager(include_path=[str(OWN_TASKS)])
    return TaskManager(include_path=[str(folder)], include_defaults=False)


def _members(group: str) -> list[str]:
    """The tasks of a group or tag, and of the groups in it."""
    manager = _manager(None)
    if group not in manager.all_groups and group not in manager.all_tags:
        return [group]
    listed = manager.task_index[group]["task"]
    if listed == -1:
        listed = manager._get_config(group)["task"]
    names = [each if isinstance(each, str) else str(each.get("task") or each.get("group")) for each in listed]
    return [member for name in names for member in (_members(name) if name != group else [])]


def _require_answerable(config: dict[str, Any]) -> None:
    """Raise UserError if the model cannot do what the task asks for."""
    output_type = config.get("output_type", "generate_until")
    if output_type not in KINDS:
        raise UserError(f"asks for {output_type}, which vlmkit's model does not do")
    data = config.get("dataset_kwargs") or {}
    if data.get("video") or "From_YouTube" in data:
        raise UserError("is about videos; vlmkit's models see pictures only")
    if any(metric.get("metric") == "acc_mutual_info" for metric in config.get("metric_list") or ()):
        raise UserError("asks for acc_mutual_info, which vlmkit's model does not do")


def _require_key(judge: str | None) -> None:
    """Raise UserError if the scores come from another model that cannot be asked here."""
    if judge and (reason := why_not_asked(judge)):
        raise UserError(f"is scored by another model ({judge}), {reason}")


def _own_data(config: dict[str, Any]) -> dict[str, Any]:
    """The same data, read with a token of the hub if there is one: many tasks demand one for what is public."""
    given = config.get("dataset_kwargs") or {}
    return {"dataset_kwargs": {name: value for name, value in given.items() if name != "token"}}


def _local_data(name: str, local_data: str) -> dict[str, Any]:
    """What a task's config says of its data if they lie on this machine."""
    folder = Path(local_data).expanduser() / name
    if not (folder / "dataset_dict.json").is_file():
        raise UserError(
            f"eval_suite.local_data={local_data}: has no {name}/dataset_dict.json: save_to_disk of the task's "
            "DatasetDict, with the splits it names, puts it there"
        )
    return {"dataset_path": str(folder.absolute()), "dataset_name": None, "dataset_kwargs": {"load_from_disk": True}}


def _build(manager: TaskManager, name: str, config: dict[str, Any], changes: dict[str, Any]) -> ConfigurableTask:
    kind = KINDS[config.get("output_type", "generate_until")]
    local = "dataset_path" in changes or is_own(name)
    try:
        with nullcontext() if local else hub_or_offline(), _without_retries(), _seeded():
            loaded = manager.load_task_or_group([{"task": name, **changes}], task_type=kind)
    except Exception as error:
        source = changes.get("dataset_path") or config.get("dataset_path")
        way_out = "" if local else f"; eval_suite.local_data=DIR reads a save_to_disk folder DIR/{name} instead"
        raise UserError(f"its data ({source}) cannot be read: {_one_line(error)}{way_out}") from error
    [task] = loaded.values()
    if any(isinstance(each, datasets.Audio | datasets.Video) for each in task.task_docs.features.values()):
        raise UserError("is about sound or videos; vlmkit's models see pictures only")
    return task


def _filters(task: ConfigurableTask) -> list[Any]:
    """The task's filters; those that take off what a model thinks go first, as in lmms-eval's evaluator."""
    filters = list(task._filters)
    if task.config.auto_strip_thinking and parse_reasoning_tags_config(task_value=task.config.reasoning_tags) is None:
        filters = [type(each)(each.name, [StripThinkingFilter(), *each.filters]) for each in filters]
    return filters


def _response(line: Line, instance: Instance) -> Any:
    """What a model of lmms-eval would have returned."""
    if "logprob" not in line:
        return line["answer"]
    likely = Loglikelihood(line["logprob"], line["is_greedy"])
    return likelihood_for(instance, Answered(line["index"], loglikelihood=likely))


def _without(tags: Any, response: Any) -> Any:
    """A response, or several, without what stands between tags."""
    if tags is None:
        return response
    if isinstance(response, list):
        return [_without(tags, each) for each in response]
    return strip_reasoning_tags(response, tags) if isinstance(response, str) else response


def _key(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric}_{filter_name}"


@contextmanager
def _globals_kept(function: Callable[..., Any]) -> Iterator[None]:
    """What a function keeps in dictionaries and lists of its module is put back: OCRBench's adds up in one."""
    kept = {name: value for name, value in _globals_of(function).items() if type(value) in (dict, list)}
    before = deepcopy(kept)
    try:
        yield
    finally:
        for name, value in kept.items():
            value.clear()
            value.update(before[name]) if isinstance(value, dict) else value.extend(before[name])


def _globals_of(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: value for name, value in getattr(function, "__globals__", {}).items() if not name.startswith("__")}


@contextmanager
def _seeded() -> Iterator[None]:
    """Tasks draw alike each time, as under lmms-eval; afterwards random numbers go on as before: training may wait."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _holds(feature: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a column has such values, or lists or groups of them."""
    if isinstance(feature, dict):
        return any(_holds(each, kinds) for each in feature.values())
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return isinstance(feature, kinds) or (inner is not None and _holds(inner, kinds))


@contextmanager
def _without_retries() -> Iterator[None]:
    """Data that cannot be fetched are not asked for again: lmms-eval would wait and try five times."""
    download = ConfigurableTask.download
    ConfigurableTask.download = download.__wrapped__
    try:
        yield
    finally:
        ConfigurableTask.download = download


def _source(value: Any) -> Any:
    """A value that JSON can take; of a function its code."""
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    return value


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _one_line(error: BaseException) -> str:
    """Not more than can be read: lmms-eval's and datasets' messages may hold whole documents."""
    return one_line(error).removesuffix(":")[:300]
