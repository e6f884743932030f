"""What a report says: the nouns between reading and drawing. Figures, tables and the page are made of these alone.

Runs that differ in their seed alone are one *variant*. What is measured of a run is a *measure*: a task's score, the
average of tasks, the validation loss. All numbers are finite: what is not a number is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = str | int | float | bool | None
MOST_FLIP_TASKS = 3  # of an average, whose changed questions are told: to load a task for its pictures takes seconds


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number that a run may be held against; the reference's authors estimated it, nobody measured it here."""

    name: str  # as in "GPT-4V"
    value: float  # on the scale of the measure


@dataclass(frozen=True, slots=True)
class Measure:
    """A number that each run has at some of its steps."""

    key: str  # unique: TASK_METRIC as in step_N.json (".limitN" appended if of the first N samples), average, val_loss
    label: str
    task: str | None = None  # None: of no single task
    limit: int | None = None  # of the task's first samples only; None: of all
    higher_is_better: bool = True
    digits: int = 4  # to show
    estimates: tuple[Estimate, ...] = ()
    note: str = ""  # what it is made of, if that needs words


@dataclass(frozen=True, slots=True)
class Varied:
    """A key of the config that differs between the runs, other than the seed."""

    key: str  # as on the command line: filter.relevance_min_rating
    label: str  # short, unique within the report: relevance_min_rating
    values: tuple[Value, ...]  # in order

    @property
    def is_numeric(self) -> bool:
        """Whether its values have a place on an axis."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)


@dataclass(frozen=True, slots=True)
class Spread:
    """A number over the seeds of a variant: their mean, and an interval for the mean of all seeds there could be."""

    mean: float
    seeds: int  # runs that have it
    low: float | None = None  # None: one seed tells nothing of others
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as its card shows it."""

    name: str
    folder: str
    seed: int
    state: str  # in words: "done", "trains, at step 300 of 900", "stopped at step 300 of 900", "never begun"
    is_done: bool  # it trained to its end
    step: int | None  # that its scores are of; None: it has none
    scores: Mapping[str, float]  # key of a measure → number; what is not there is missing
    facts: tuple[tuple[str, str], ...]  # provenance, in the order to show: name, text


@dataclass(frozen=True, slots=True)
class Variant:
    """Runs that differ in their seed alone."""

    number: int  # place in the report's variants
    label: str  # short: what differs from the baseline, "relevance_min_rating 3"; "baseline"
    settings: Mapping[str, Value]  # of each varied key
    differences: tuple[tuple[str, str], ...]  # from the baseline: name and value, as in ("relevance_min_rating", "3")
    runs: tuple[Run, ...]
    scores: Mapping[str, Spread]  # key of a measure → over the seeds
    kept_turns: float | None  # share of the dataset's turns that pass the filter, 0 to 1; None: not known
    kept_samples: float | None  # share of the samples
    is_baseline: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """How a number of one variant goes over the steps: means over its seeds, and the lowest and highest of them."""

    variant: int
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int  # runs in it: each point is of all of them


@dataclass(frozen=True, slots=True)
class Curves:
    """One number over the steps, a line for each variant."""

    key: str  # unique: batch_loss, val_loss or that of a measure
    label: str
    lines: tuple[Line, ...]
    higher_is_better: bool
    note: str = ""  # as in "mean of 10 steps each"


@dataclass(frozen=True, slots=True)
class ThresholdLine:
    """Variants that differ in one numeric key alone, along its values."""

    label: str  # what they have in common, as far as others differ in it; "" if there is one line
    variants: tuple[int, ...]  # in the order of the values, at least two


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How a measure depends on one numeric key."""

    varied: Varied
    measure: str  # key
    lines: tuple[ThresholdLine, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """How a measure depends on two keys, all else being that of the baseline."""

    rows: Varied
    columns: Varied
    measure: str  # key
    variants: Mapping[tuple[Value, Value], int]  # (value of rows, value of columns) → variant; holes are not in it


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against another, on the questions that all their runs answered: variant - other."""

    variant: int
    other: int
    measure: str  # key
    value: float
    low: float | None  # of the interval; None: there is too little to know it
    high: float | None
    p: float | None  # two-sided, of no difference
    p_corrected: float | None  # for the number of comparisons with the baseline (Holm); None: not one of these
    seeds: tuple[int, int]  # runs of the two
    questions: int  # that count; 0: the interval is of the seeds alone
    note: str = ""  # what a reader must know of it


@dataclass(frozen=True, slots=True)
class Answer:
    """What the report comes to, in sentences that need no figure."""

    headline: str
    points: tuple[str, ...]
    best: int | None  # variant; None: nothing can be said


@dataclass(frozen=True, slots=True)
class Flip:
    """A question that one variant's runs answer well and the other's do not."""

    task: str
    doc_id: int
    prompt: str
    target: str
    pictures: tuple[str, ...]  # data URIs of thumbnails
    answers: tuple[tuple[str, ...], tuple[str, ...]]  # of the baseline's runs, of the other's, in the order of seeds
    scores: tuple[float, float]  # means of both


@dataclass(frozen=True, slots=True)
class Flips:
    """Questions whose score changes most between the baseline and another variant."""

    other: int  # variant
    measure: str  # key
    gained: tuple[Flip, ...]  # the other is better
    lost: tuple[Flip, ...]
    num_gained: int  # questions, also those not shown
    num_lost: int
    questions: int  # compared
    note: str = ""  # as in "pictures are not shown: lmms-eval is not installed"


@dataclass(frozen=True, slots=True)
class Hole:
    """A result that is missing, or is of less than it looks like."""

    run: str  # its name
    what: str
    why: str
    way_out: str  # a command; "" if there is none


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report says."""

    title: str
    command: str  # that made it
    made: str  # when, in UTC
    step: str  # which step the scores are of, in words
    confidence: float  # of all intervals
    answer: Answer
    varied: tuple[Varied, ...]
    seeds: tuple[int, ...]
    measures: tuple[Measure, ...]  # the main one first
    variants: tuple[Variant, ...]  # in the order in which they were started
    curves: tuple[Curves, ...]
    thresholds: tuple[Thresholds, ...]
    heat_maps: tuple[HeatMap, ...]
    comparisons: tuple[Comparison, ...]  # with the baseline
    against_best: tuple[Comparison, ...]  # of the main measure, best - variant: which others may be as good
    flips: tuple[Flips, ...]
    holes: tuple[Hole, ...]
    notes: tuple[str, ...] = field(default=())  # what a reader must know of the whole
    shared: tuple[tuple[str, str], ...] = field(default=())  # facts that all runs share: name, text

    def measure(self, key: str) -> Measure:
        """The measure of a key."""
        return next(each for each in self.measures if each.key == key)
