"""Variants against each other, on the questions that all their runs answered.

What the runs answered is read once, as numbers: of each task which questions, and what each scored. Two runs were asked
the same question if document, prompt and pictures are the same, as for ``vlmkit.compare``.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import numpy as np
from numpy.typing import NDArray

from vlmkit.errors import one_line
from vlmkit.evaluation.cells import Aggregation, Cell, CellState, cell_name, read_cell
from vlmkit.evaluation.compare import how_answered
from vlmkit.evaluation.samples import Line, cluster_of, question_of, scored_documents
from vlmkit.evaluation.statistics import Difference, Paired, compare_over_seeds, compare_variants, holm
from vlmkit.reporting.sweeps.content import Comparison
from vlmkit.reporting.sweeps.runs import ReadRun
from vlmkit.reporting.sweeps.scores import VAL_LOSS, Result, Scored, Steps
from vlmkit.reporting.sweeps.variants import Group

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class RunScores:
    """What one run scored: questions by number, rising, and the score of each."""

    questions: Ints
    scores: Floats


@dataclass(slots=True, eq=False)
class ResultAnswers:
    """What is behind a result, of all runs that have it."""

    aggregation: Aggregation
    strata: list[Hashable] = field(default_factory=list)  # of each question
    clusters: list[Hashable] = field(default_factory=list)
    of: dict[ReadRun, RunScores] = field(default_factory=dict)
    numbers: dict[Hashable, int] = field(default_factory=dict)  # question → its number

    def add(self, run: ReadRun, metric: str, lines: Mapping[int, Line]) -> None:
        """The lines with a score."""
        own = [line for line in lines.values() if metric in line["scores"]]
        questions = np.array([self._number(line, metric) for line in own], np.intp)
        scores = np.array([line["scores"][metric] for line in own], np.float64)
        order = np.argsort(questions)
        self.of[run] = RunScores(questions[order], scores[order])

    def _number(self, line: Line, metric: str) -> int:
        asked = line["doc_id"], question_of(line)
        number = self.numbers.setdefault(asked, len(self.numbers))
        if number == len(self.strata):
            self.strata.append(line.get("strata", {}).get(metric, ""))
            self.clusters.append(cluster_of(line))
        return number

    def paired(self, a: Sequence[ReadRun], b: Sequence[ReadRun], weight: float) -> Paired | None:
        """The questions that all of these runs answered; None if there are none."""
        found = [self.of.get(run) for run in (*a, *b)]
        runs = [each for each in found if each is not None]
        if len(runs) < len(found):
            return None
        common = reduce(partial(np.intersect1d, assume_unique=True), [each.questions for each in runs])
        if not len(common):
            return None
        scores = np.stack([each.scores[np.searchsorted(each.questions, common)] for each in runs])
        return Paired(
            a=scores[: len(a)],
            b=scores[len(a) :],
            strata=_numbered(self.strata, common),
            clusters=_numbered(self.clusters, common),
            aggregation=self.aggregation,
            weight=weight,
        )


@dataclass(frozen=True, slots=True)
class Answers:
    """What all runs answered at their steps."""

    of: Mapping[Result, ResultAnswers]
    notes: tuple[str, ...]  # what runs do not have in common, though they should


def read_answers(steps: Steps, measures: Sequence[Scored]) -> Answers:
    """Read the cells that the measures' results are of."""
    of: dict[Result, ResultAnswers] = {}
    unreadable: list[str] = []
    ways: dict[str, dict[str, dict[str, None]]] = {}  # task → setting → values
    wanted: dict[tuple[str, int | None], list[Result]] = {}
    for result in dict.fromkeys(part for scored in measures for part, _ in scored.parts):
        wanted.setdefault((result.task, result.limit), []).append(result)
    for run, step in steps.of.items():
        for (task, limit), results in wanted.items():
            cell = find_cell(run, step, task, limit)
            if cell is None:
                continue
            try:
                _add_cell(of, run, cell, results)
            except (OSError, ValueError, KeyError, TypeError) as error:  # a hand has been there
                unreadable.append(f"{cell.folder}: its samples cannot be read: {one_line(error)}")
            for name, value in how_answered(cell).items():
                ways.setdefault(task, {}).setdefault(name, {})[str(value)] = None
    return Answers(of, (*unreadable, *_differing(ways)))


def _add_cell(of: dict[Result, ResultAnswers], run: ReadRun, cell: Cell, results: Iterable[Result]) -> None:
    lines = scored_documents(cell.folder)
    for result in results:
        metric = cell.metrics.get(result.metric)
        if metric is not None and metric.aggregation is not None:
            of.setdefault(result, ResultAnswers(metric.aggregation)).add(run, result.metric, lines)


def find_cell(run: ReadRun, step: int, task: str, limit: int | None) -> Cell | None:
    """The finished cell that a result in a run's step_N.json is of."""
    cell = read_cell(run.paths.cells(step) / cell_name(task, limit))
    source = run.results[step].sources.get(task) if step in run.results else None
    is_it = cell and source and cell.state is CellState.done and cell.order.key == source.key
    return cell if is_it else None


def _differing(ways: Mapping[str, Mapping[str, Iterable[str]]]) -> Iterable[str]:
    for task, settings in ways.items():
        for name, values in settings.items():
            if name != "limit" and len(told := list(values)) > 1:
                yield f"{task}: {name} differs between runs: {', '.join(told[:4])}"


def _numbered(names: Sequence[Hashable], at: Ints) -> Ints:
    """Numbers for the names at some places: the same for the same."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(names[place], len(numbers)) for place in at], np.intp)


# ---- comparisons ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparer:
    """Compares variants with each other."""

    groups: Sequence[Group]
    steps: Steps
    answers: Answers
    confidence: float

    def scores(self, group: Group, scored: Scored) -> dict[ReadRun, float]:
        """Of the runs of a variant that have one."""
        found = {run: scored.of(run, self.steps.of[run]) for run in group.runs}
        return {run: score for run, score in found.items() if score is not None}

    def compare(self, variant: int, other: int, scored: Scored) -> Comparison | None:
        """A variant against another; None if one of them has no score at all."""
        a, b = (self.scores(self.groups[number], scored) for number in (variant, other))
        if not a or not b:
            return None
        parts = [self._paired(part, list(a), list(b), weight) for part, weight in scored.parts]
        paired = [part for part in parts if part is not None]
        if paired and len(paired) == len(parts):
            difference = compare_variants(paired, self.confidence)
            questions = sum(part.a.shape[1] for part in paired)
        else:
            difference = compare_over_seeds(list(a.values()), list(b.values()), self.confidence)
            questions = 0
        return Comparison(
            variant,
            other,
            scored.measure.key,
            difference.value,
            difference.low,
            difference.high,
            difference.p,
            p_corrected=None,
            seeds=(len(a), len(b)),
            questions=questions,
            note="; ".join(self._notes(difference, (len(a), len(b)), scored, paired)),
        )

    def _paired(self, part: Result, a: Sequence[ReadRun], b: Sequence[ReadRun], weight: float) -> Paired | None:
        answers = self.answers.of.get(part)
        return None if answers is None else answers.paired(a, b, weight)

    def _notes(
        self, difference: Difference, seeds: tuple[int, int], scored: Scored, paired: Sequence[Paired]
    ) -> Iterable[str]:
        if max(seeds) == 1:
            yield "1 seed: another seed may differ" if paired else "1 seed: too little to tell"
        elif min(seeds) == 1:
            yield "1 seed on one side: taken to vary as the other's do"
        if scored.parts and len(paired) < len(scored.parts):
            yield "by the seeds alone: not all scores are means over the same questions, whose answers are there"
        all_questions = sum(self._most_questions(part) for part, _ in scored.parts)
        common = sum(part.a.shape[1] for part in paired)
        if paired and common < all_questions:
            yield f"on {common:,} of {all_questions:,} questions, which all runs of both answered"
        if paired and difference.p is None:
            yield "too little varies to tell"

    def _most_questions(self, part: Result) -> int:
        answers = self.answers.of.get(part)
        return max((len(run.questions) for run in answers.of.values()), default=0) if answers else 0


def compare_with_baseline(comparer: Comparer, baseline: int, measures: Sequence[Scored]) -> tuple[Comparison, ...]:
    """Every other variant against the baseline, by every measure that is no sum of others shown.

    Holm's correction is for all comparisons of the main measure; those of other results are a family of their own, and
    those of the validation loss.
    """
    main, *others = measures
    results = [one for one in others if len(one.parts) == 1]
    losses = [one for one in others if one.measure is VAL_LOSS]
    found = []
    for family in ([main], results, losses):
        found += _corrected([c for one in family for c in _with_baseline(comparer, baseline, one)])
    return tuple(found)


def compare_with_best(comparer: Comparer, best: int, main: Scored) -> tuple[Comparison, ...]:
    """The best variant against every other, by the main measure."""
    others = (number for number in range(len(comparer.groups)) if number != best)
    return tuple(found for number in others if (found := comparer.compare(best, number, main)))


def _with_baseline(comparer: Comparer, baseline: int, scored: Scored) -> list[Comparison]:
    others = (number for number in range(len(comparer.groups)) if number != baseline)
    return [found for number in others if (found := comparer.compare(number, baseline, scored))]


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    corrected = holm([each.p for each in comparisons])
    return [replace(each, p_corrected=p) for each, p in zip(comparisons, corrected, strict=True)]
