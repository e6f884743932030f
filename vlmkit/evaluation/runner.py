"""Cells are answered and scored: the tasks first, then the model, then one task after the other.

An answer is on disk before the next batch begins. So a cell that a kill, a signal or a full disk ended goes on where it
was, with at most one batch asked twice. What goes wrong with one cell is written there, and the others go on.
"""

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from vlmkit.distributed import Ranks
from vlmkit.errors import UserError, is_full_disk, one_line
from vlmkit.evaluation.answering import Answered, AnsweringModel, Request, answer_all
from vlmkit.evaluation.cells import Aggregation, Cell, CellState, Subject, checkpoint_fingerprint, read_cell
from vlmkit.evaluation.samples import Line, appended, part, read_samples, rewrite
from vlmkit.evaluation.tasks import LmmsTask, Result, load_task
from vlmkit.interrupt import StopSignal
from vlmkit.model.answer import GenerationSettings, load_answerer
from vlmkit.redact import redact
from vlmkit.tracking.console import SampleBar, Screen
from vlmkit.tracking.provenance import git_revision, hardware, package_versions

T = TypeVar("T")
LoadModel = Callable[[str, torch.device], AnsweringModel]


@dataclass(frozen=True, slots=True)
class CellRunner:
    """Answers and scores cells with all processes; every process calls it with the same ones."""

    ranks: Ranks  # each answers its share of every cell
    screen: Screen  # shows progress, and in a line what went wrong
    stop: StopSignal  # after a signal the batch is finished, and the cells stay begun
    load_model: LoadModel = load_answerer  # checkpoint and device → who answers

    def run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Answer and score cells of any checkpoints that are not done yet.

        Returns:
            The cells as they are now, in the same order.

        Raises:
            OSError: The disk is full; the cells can go on when it is not.
            Exception: One of several processes failed; the others cannot go on without it.
        """
        loaded: dict[tuple[str, str | None], LmmsTask] = {}
        result = list(cells)
        waiting: dict[str, dict[int, LmmsTask]] = {}  # checkpoint → place of a cell → its task
        for number, cell in enumerate(cells):  # all of them, before a model is loaded
            key = cell.order.task, cell.order.local_data
            try:
                loaded[key] = task = loaded.get(key) or self._on_all(partial(load_task, *key))
                waiting.setdefault(cell.order.checkpoint, {})[number] = task
            except UserError as error:
                result[number] = self._fail(cell, str(error))
        for checkpoint, tasks in waiting.items():
            if self.stop.reached_any(self.ranks):
                break
            result_of = self._run_checkpoint(checkpoint, {number: cells[number] for number in tasks}, tasks)
            for number, cell in result_of.items():
                result[number] = cell
        return result

    def _run_checkpoint(self, checkpoint: str, cells: dict[int, Cell], tasks: dict[int, LmmsTask]) -> dict[int, Cell]:
        try:
            self.ranks.run_on_main(lambda: _require_same(cells.values()))
            model = self._on_all(lambda: self.load_model(checkpoint, self.ranks.device))
        except UserError as error:
            return {number: self._fail(cell, str(error)) for number, cell in cells.items()}
        try:
            return {number: self.run_cell(cell, model, tasks[number]) for number, cell in cells.items()}
        finally:
            del model
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def run_cell(self, cell: Cell, model: AnsweringModel, task: LmmsTask) -> Cell:
        """Answer and score one cell, unless another process does.

        Returns:
            The cell as it is now: done, failed, or as it was if a signal came or another process holds it.

        Raises:
            OSError: The disk is full; the cell can go on when it is not.
            Exception: One of several processes failed; the others cannot go on without it.
        """
        if self.stop.reached_any(self.ranks):
            return cell
        try:
            with self.ranks.on_main(cell.held()):
                there = self.ranks.run_on_main(lambda: read_cell(cell.folder))  # as it is now that it can be relied on
                if there is None or there.order.key != cell.order.key:
                    self.screen.say(f"{cell.folder}: another process has planned it anew, in another way")
                    return there or cell
                if there.is_result_of(cell.order):  # another process has done it meanwhile
                    return there
                return self._run_held(replace(there, order=cell.order), model, task)
        except BlockingIOError:
            self.screen.say(f"{cell.folder}: another process answers it now")
            return cell

    def _run_held(self, cell: Cell, model: AnsweringModel, task: LmmsTask) -> Cell:
        started = time.time()
        ranks = self.ranks
        try:
            requests = self._on_all(lambda: task.requests(cell.order))
            cell = ranks.run_on_main(lambda: _begin(cell, task, len(requests)))
            done = ranks.run_on_main(lambda: _answered(cell))
        except UserError as error:  # the same one on every process
            return self._fail_held(cell, str(error))
        try:
            self._answer(cell, model, task, requests, done)
        except Exception as error:
            if ranks.world_size > 1 or is_full_disk(error):
                raise
            return self._fail_held(cell, _one_line(error))
        if self.stop.reached_any(ranks):  # when all processes have come to this point, all answers are on disk
            return cell
        cell = ranks.run_on_main(
            lambda: _score(cell, task, _circumstances(requests, model.precision, ranks, started, len(done)))
        )
        if cell.state is CellState.failed:
            self.screen.say(f"warning: {cell.order.task}: {cell.reason}")
        return cell

    def _answer(
        self, cell: Cell, model: AnsweringModel, task: LmmsTask, requests: Sequence[Request], done: set[int]
    ) -> None:
        """This process's share: each ``world_size``-th request."""
        order, rank = cell.order, self.ranks.rank
        own = requests[rank :: self.ranks.world_size]
        answered = sum(request.index in done for request in own)
        title = order.task if order.step is None else f"{order.task}, step {order.step}"
        with SampleBar(self.screen, title, len(own), answered) as bar, appended(part(cell.folder, rank)) as file:
            for batch in answer_all(own, model, order.batch_size, order.seed, done):
                file.append(_line(each, requests[each.index], task.document_of(each.index)) for each in batch)
                answered += len(batch)
                bar.show(answered)
                if self.stop.received:
                    return

    def _on_all(self, load: Callable[[], T]) -> T:
        """Load something on every process; what one of them cannot load, none has.

        Raises:
            UserError: The first one's.
        """
        loaded, error = None, None
        try:
            loaded = load()
        except Exception as caught:  # of foreign code, or a GPU that is full
            error = _one_line(caught)
        errors = [each for each in self.ranks.gather([error]) if each is not None]
        if errors:
            raise UserError(errors[0])
        assert loaded is not None
        return loaded

    def _fail(self, cell: Cell, reason: str) -> Cell:
        """Write why a cell failed before it was begun, unless another process works on it."""

        def write() -> Cell:
            with suppress(BlockingIOError), cell.held():
                there = read_cell(cell.folder)  # as it is now: another process may have done it, or planned it anew
                if there and there.order.key == cell.order.key and not there.is_result_of(cell.order):
                    return there.changed(state=CellState.failed, reason=redact(reason))
            return cell

        self.screen.say(f"warning: {cell.order.task}: {reason}")
        return self.ranks.run_on_main(write)

    def _fail_held(self, cell: Cell, reason: str) -> Cell:
        """The same for one that this process holds: to take a lock twice is to lose it."""
        self.screen.say(f"warning: {cell.order.task}: {reason}")
        return self.ranks.run_on_main(lambda: cell.changed(state=CellState.failed, reason=redact(reason)))


def _begin(cell: Cell, task: LmmsTask, requests: int) -> Cell:
    """The cell, begun or gone on with.

    Raises:
        UserError: What it has answers to was asked otherwise.
    """
    asked = {"task_hash": task.config_hash, "data_hash": task.data_hash}
    before = {name: cell.provenance.get(name, now) for name, now in asked.items()}
    if cell.requests not in (None, requests) or before != asked:
        raise UserError("the task or its data have changed since it was begun: force=true begins anew")
    return cell.changed(state=CellState.begun, reason=None, requests=requests, errors=0, provenance=asked)


def _answered(cell: Cell) -> set[int]:
    """The requests of a cell that need not be asked again: an error is."""
    return {index for index, line in read_samples(cell.folder).items() if "error" not in line}


def _line(answered: Answered, request: Request, document: int) -> Line:
    line: Line = {
        "index": answered.index,
        "doc_id": document,
        "prompt": answered.prompt_text,
        "pictures": list(answered.pictures),
    }
    if answered.shrunk:
        line["shrunk"] = True
    if answered.error is not None:
        return line | {"error": answered.error}
    if (likely := answered.loglikelihood) is not None:
        return line | {"answer": request.continuation, "logprob": likely.logprob, "is_greedy": likely.is_greedy}
    assert answered.answer is not None
    said = answered.answer
    tokens = {"input_tokens": said.input_tokens, "output_tokens": said.output_tokens}
    return line | {"answer": said.text, "finish": said.finish} | tokens


def _score(cell: Cell, task: LmmsTask, circumstances: dict[str, Any]) -> Cell:
    """Score what was answered; the cell is done or has failed then."""
    lines = read_samples(cell.folder)
    errors = {line["doc_id"]: line["error"] for line in lines.values() if "error" in line}
    try:
        _require_answers(cell, lines, errors)
        result = task.score(lines, cell.folder)
        _require_score(result, len(errors))
        rewrite(cell.folder, _scored_lines(lines, result))
    except Exception as error:  # the task's code is not ours
        if is_full_disk(error):
            raise
        return cell.changed(state=CellState.failed, reason=redact(_one_line(error)), errors=len(errors))
    circumstances |= {
        **cell.provenance,
        "finished": _time(time.time()),
        "guesses": result.guesses,
        "shrunk": sum("shrunk" in line for line in lines.values()),
    }
    return cell.changed(
        state=CellState.done, reason=None, errors=len(errors), metrics=result.metrics, provenance=circumstances
    )


def _require_answers(cell: Cell, lines: dict[int, Line], errors: dict[int, str]) -> None:
    """Raise UserError if answers are missing, or too many samples have an error instead."""
    if len(lines) != cell.requests:
        raise UserError(f"{len(lines)} of {cell.requests} answers are on disk: the same command asks for the others")
    if len(errors) > cell.order.max_errors:
        first = min(errors)
        raise UserError(f"{len(errors)} samples could not be answered; sample {first}: {errors[first]}")


def _require_score(result: Result, errors: int) -> None:
    """Raise UserError if there is no score, or it would take errors for wrong answers."""
    if not result.metrics:
        raise UserError("lmms-eval gives it no score; what is to be handed in elsewhere lies beside its samples")
    if errors and any(metric.aggregation is Aggregation.sum_per_1000 for metric in result.metrics.values()):
        raise UserError(f"{errors} samples could not be answered, and its score is a sum over all of them")


def _scored_lines(lines: dict[int, Line], result: Result) -> list[Line]:
    """The lines in order, with the scores of each document in its first."""
    waiting = dict(result.lines)
    return [line | waiting.pop(line["doc_id"], {}) for line in lines.values()]


def _circumstances(
    requests: Sequence[Request], precision: str, ranks: Ranks, started: float, answered_before: int
) -> dict[str, Any]:
    """How the cell came about; of several starts, the last."""
    return {
        "generation": [_generation(settings) for settings in dict.fromkeys(r.settings for r in requests) if settings],
        "packages": package_versions(),
        "git": git_revision(),
        "hardware": hardware(),
        "device": str(ranks.device),
        "precision": precision,
        "processes": ranks.world_size,
        "started": _time(started),
        "seconds": round(time.time() - started, 3),
        "answered_before": answered_before,
    }


def _generation(settings: GenerationSettings) -> dict[str, Any]:
    """As JSON has it."""
    return asdict(settings) | {"until": list(settings.until)}


def _require_same(cells: Iterable[Cell]) -> None:
    """Raise UserError if the checkpoint has become another one since the cells were planned."""
    for cell in cells:
        order = cell.order
        if checkpoint_fingerprint(Subject(order.checkpoint, order.step, cell.folder.parent)) != order.fingerprint:
            raise UserError(f"{order.checkpoint} is another checkpoint than the one that was to be evaluated")


def _one_line(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else one_line(error)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
