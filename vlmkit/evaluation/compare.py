"""Two checkpoints that answered the same questions, compared sample by sample.

Only documents that both have a score for count, and only if prompt and pictures are the same. What differs between
two checkpoints on the same questions is known far better than each one's score: see ``evaluation/statistics.py``.

The p of a task's main metric, the one of the most samples, is corrected for there being several tasks. Its other
metrics look at the same answers again, in parts or in another way; theirs are not.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from vlmkit.errors import ConfigError
from vlmkit.evaluation.cells import Cell, Metric
from vlmkit.evaluation.samples import Line, cluster_of, question_of, scored_documents
from vlmkit.evaluation.scoring import counts_pairs
from vlmkit.evaluation.sides import Side
from vlmkit.evaluation.statistics import Difference, aggregate, compare_scores, holm

ORDERED = ("limit", "lmms_eval", "local_data")  # of an order
USED = ("max_new_tokens", "until", "temperature", "top_p", "num_beams")  # of provenance.generation
CIRCUMSTANCES = ("task_hash", "data_hash", "precision")  # of a cell's provenance
DIGITS = 9  # that two scores must share to be the same
Pair = tuple[Line, Line]  # a document's, of a and of b


@dataclass(frozen=True, slots=True)
class Sample:
    """A question and what both answered."""

    doc_id: int
    prompt: str
    pictures: list[str]  # their digests
    target: Any
    answer_a: Any
    answer_b: Any


@dataclass(frozen=True, slots=True)
class Changed:
    """A unit that scored otherwise."""

    score_a: float
    score_b: float
    samples: list[Sample]  # one, or MME's pair, which has one score


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric of a task, on the documents that count."""

    name: str
    a: float
    b: float
    n: int  # samples with a score for it
    difference: Difference | None  # None: the metric is no known function of the samples' scores
    units: int  # what has a score of its own: samples, or the pairs of MME
    a_better: int  # units
    b_better: int
    p_corrected: float | None = None  # of a main metric

    @property
    def same(self) -> int:
        """Units."""
        return self.units - self.a_better - self.b_better

    @property
    def p(self) -> float | None:
        """Not corrected; None if it is not known."""
        return None if self.difference is None else self.difference.p


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """A task that both checkpoints answered."""

    task: str
    metrics: list[MetricComparison]  # the main one first
    changed: list[Changed]  # by the main metric, the largest change first
    notes: list[str]  # what a reader must know, in lines

    def with_corrected(self, p: float | None) -> Self:
        """The same, with the corrected p of the main metric."""
        if not self.metrics:
            return self
        return replace(self, metrics=[replace(self.metrics[0], p_corrected=p), *self.metrics[1:]])


def compare_sides(a: Side, b: Side, tasks: Sequence[str] | None, confidence: float) -> list[TaskComparison]:
    """Compare two checkpoints on the tasks that both answered.

    Args:
        a: The one.
        b: The other.
        tasks: None: all.
        confidence: Of the intervals, as in 0.95.

    Raises:
        ConfigError: One of the tasks was not answered by both.
    """
    both = sorted(a.cells.keys() & b.cells.keys())
    unknown = sorted(set(tasks or ()) - set(both))
    if unknown:
        raise ConfigError(f"tasks=[{','.join(unknown)}]: not finished by both a and b, which have {', '.join(both)}")
    compared = [compare_cells(a.cells[task], b.cells[task], confidence) for task in tasks or both]
    corrected = holm([one.metrics[0].p if one.metrics else None for one in compared])
    return [one.with_corrected(p) for one, p in zip(compared, corrected, strict=True)]


def compare_cells(a: Cell, b: Cell, confidence: float) -> TaskComparison:
    """Compare what two checkpoints answered on the same task."""
    scored_a, scored_b = scored_documents(a.folder), scored_documents(b.folder)
    both = [doc_id for doc_id in scored_a if doc_id in scored_b]
    pairs = [(scored_a[doc_id], scored_b[doc_id]) for doc_id in both]
    alike = [pair for pair in pairs if question_of(pair[0]) == question_of(pair[1])]
    names = [name for name in a.metrics if name in b.metrics]
    found = [_compare_metric(name, a.metrics[name], b.metrics[name], alike, confidence) for name in names]
    metrics = sorted((metric for metric in found if metric), key=lambda metric: metric.n, reverse=True)
    changed: list[Changed] = []
    if metrics:
        main = metrics[0].name
        changed = _changed(main, _units(main, a.metrics[main], alike))
    return TaskComparison(
        task=a.order.task,
        metrics=metrics,
        changed=changed,
        notes=[
            *_notes_on_settings(a, b),
            *_notes_on_samples(len(scored_a.keys() | scored_b.keys()), len(pairs), len(alike)),
            *(f"{metric.name} is no mean: it is each one's own" for metric in metrics if metric.difference is None),
        ],
    )


def _compare_metric(
    name: str, a: Metric, b: Metric, pairs: Iterable[Pair], confidence: float
) -> MetricComparison | None:
    """None if the samples' scores are what matters, and there are none."""
    units = _units(name, a, pairs)
    own = [pair for unit in units for pair in unit]
    gains = [_gain(name, unit) * (1 if a.higher_is_better else -1) for unit in units]
    counts = {
        "n": len(own),
        "units": len(units),
        "a_better": sum(gain > 0 for gain in gains),
        "b_better": sum(gain < 0 for gain in gains),
    }
    if a.aggregation is None or a.aggregation is not b.aggregation:
        return MetricComparison(name, a.value, b.value, difference=None, **counts)
    if not own:
        return None
    scores_a, scores_b = ([float(pair[side]["scores"][name]) for pair in own] for side in (0, 1))
    strata = [line.get("strata", {}).get(name, "") for line, _ in own]
    clusters = [cluster_of(line) for line, _ in own]
    return MetricComparison(
        name,
        aggregate(scores_a, strata, a.aggregation),
        aggregate(scores_b, strata, a.aggregation),
        difference=compare_scores(scores_a, scores_b, strata, clusters, a.aggregation, confidence),
        **counts,
    )


def _units(name: str, metric: Metric, pairs: Iterable[Pair]) -> list[list[Pair]]:
    """The documents that both have a score for, those that share one together."""
    own = [pair for pair in pairs if all(name in line["scores"] for line in pair)]
    if not counts_pairs(metric.aggregation):
        return [[pair] for pair in own]
    units: defaultdict[Hashable, list[Pair]] = defaultdict(list)
    for pair in own:
        units[cluster_of(pair[0])].append(pair)
    return list(units.values())


def _gain(name: str, unit: Sequence[Pair]) -> float:
    """The unit's score in a, less that in b."""
    a, b = unit[0]
    return round(a["scores"][name] - b["scores"][name], DIGITS)


def _changed(name: str, units: Iterable[Sequence[Pair]]) -> list[Changed]:
    found = [
        Changed(unit[0][0]["scores"][name], unit[0][1]["scores"][name], [_sample(a, b) for a, b in unit])
        for unit in units
        if _gain(name, unit)
    ]
    return sorted(found, key=lambda unit: -abs(unit.score_a - unit.score_b))


def _sample(a: Line, b: Line) -> Sample:
    return Sample(
        doc_id=a["doc_id"],
        prompt=a.get("prompt", ""),
        pictures=a.get("pictures", []),
        target=a.get("target"),
        answer_a=a.get("answer"),
        answer_b=b.get("answer"),
    )


def _notes_on_settings(a: Cell, b: Cell) -> list[str]:
    of_a, of_b = how_answered(a), how_answered(b)
    differing = [name for name in of_a if name in of_b and of_a[name] != of_b[name]]
    notes = [f"{name} differs: {of_a[name]} in a, {of_b[name]} in b" for name in differing]
    if a.order.fingerprint == b.order.fingerprint:
        notes.append("both are the same checkpoint, file by file")
    if a.order.limit is not None and a.order.limit == b.order.limit:
        notes.append(f"of the first {a.order.limit:,} samples only")
    return notes


def how_answered(cell: Cell) -> dict[str, Any]:
    """What checkpoints must have in common to be compared on a task: setting or circumstance → its value."""
    told = {name: getattr(cell.order, name) for name in ORDERED}
    told |= {name: _used(name, cell) for name in USED}
    told |= {"seed": cell.order.seed} if _draws(cell) else {}
    return told | {name: cell.provenance.get(name) for name in CIRCUMSTANCES}


def _used(name: str, cell: Cell) -> str:
    """The values of a setting that answers were generated with: those of the task, where it has its own."""
    return " or ".join(sorted({str(settings[name]) for settings in _generation(cell)})) or "none"


def _draws(cell: Cell) -> bool:
    """Whether answers were drawn; each has a seed of its own, whatever the batches and processes were."""
    return any(settings["temperature"] > 0 for settings in _generation(cell))


def _generation(cell: Cell) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cell.provenance.get("generation", [])
    return found


def _notes_on_samples(scored: int, in_both: int, alike: int) -> list[str]:
    notes = []
    if scored > in_both:
        notes.append(f"{scored - in_both:,} of {scored:,} samples have a score in one only: left out")
    if in_both > alike:
        notes.append(
            f"not the same questions: {in_both - alike:,} of {in_both:,} have another prompt or picture: left out"
        )
    if not alike:
        notes.append("nothing to compare")
    return notes
