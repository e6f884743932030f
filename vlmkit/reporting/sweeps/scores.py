"""Which numbers of which step are put side by side, and what each run has of them.

A measure is a weighted sum of results: of one, a task's main metric, or of several, as the average of tasks is. A
result of a task's first samples only never counts as one of all.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vlmkit.config import require
from vlmkit.errors import ConfigError
from vlmkit.evaluation.cells import cell_name, read_cell
from vlmkit.evaluation.merged import Merged
from vlmkit.reporting.sweeps.content import Measure
from vlmkit.reporting.sweeps.estimates import ESTIMATES, LARGEST, MME, MME_TOTAL
from vlmkit.reporting.sweeps.runs import ReadRun

VAL_LOSS = Measure("val_loss", "validation loss", higher_is_better=False, note="on held-out data, whatever the filter")
AVERAGE = "average"
MAIN_METRICS = ("average", "mmmu_acc", "ocrbench_accuracy", "exact_match", "anls", "relaxed_overall")  # of lmms-eval


@dataclass(frozen=True, slots=True)
class Result:
    """A number in a run's step_N.json."""

    key: str  # TASK_METRIC
    task: str
    limit: int | None = None  # of the task's first samples only

    @property
    def name(self) -> str:
        """Unique: that of its measure."""
        return self.key if self.limit is None else f"{self.key}.limit{self.limit}"

    @property
    def metric(self) -> str:
        """Its name within the task."""
        return self.key.removeprefix(f"{self.task}_")


@dataclass(frozen=True, slots=True)
class Scored:
    """A measure, and the results whose weighted sum it is."""

    measure: Measure
    parts: tuple[tuple[Result, float], ...] = ()  # with their weights; none: it is the validation loss

    def of(self, run: ReadRun, step: int) -> float | None:
        """What a run has of it at a step; None if a part is missing."""
        if not self.parts:
            return run.rows.val_losses.get(step)
        found = results_of(run.results.get(step))
        if any(part not in found for part, _ in self.parts):
            return None
        return sum(weight * found[part] for part, weight in self.parts)


@dataclass(frozen=True, slots=True)
class Steps:
    """At which step each run is looked at."""

    of: Mapping[ReadRun, int]  # it may have nothing there
    told: str  # in words


def results_of(merged: Merged | None) -> dict[Result, float]:
    """The main results of a step: of each task one, of MME two."""
    if merged is None:
        return {}
    found = {}
    for task, source in merged.sources.items():
        keys = [key for key in source.results if key in merged.results]
        for key in _main(keys, merged.n):
            found[Result(key, task, source.limit)] = merged.results[key]
    return found | _imported(merged)


def _imported(merged: Merged) -> dict[Result, float]:
    """Results that another program wrote, of tasks without a cell. Parts of a score are none, if the whole is there."""
    tasks = {key: _task_of(key) for key in merged.imported}
    told = {*merged.sources, *filter(None, tasks.values())}
    found = {}
    for key, task in tasks.items():
        if (task or key) not in merged.sources and (task or not any(key.startswith(f"{each}_") for each in told)):
            found[Result(key, task or key)] = merged.results[key]
    return found


def _main(keys: Sequence[str], n: Mapping[str, int]) -> list[str]:
    """The key of the most samples, the first of these; MME's two."""
    if halves := [key for key in MME if key in keys]:
        return halves
    known = [key for key in keys if key in ESTIMATES]
    return known[:1] or sorted(keys, key=lambda key: -n.get(key, 0))[:1]


def _task_of(key: str) -> str | None:
    """Of a result that another program wrote; None: it is no main metric that is known here."""
    if key in MME:
        return "mme"
    return next((key.removesuffix(f"_{metric}") for metric in MAIN_METRICS if key.endswith(f"_{metric}")), None)


# ---- steps ---------------------------------------------------------------------------------------------


def choose_steps(runs: Sequence[ReadRun], step: int | None) -> Steps:
    """The step of each run: the one that was asked for, else its last one, else one that all with results share.

    Raises:
        ConfigError: No run has a result at the step that was asked for.
    """
    steps_of = _evaluated if any(map(_evaluated, runs)) else _validated
    if step is not None:
        known = sorted({each for run in runs for each in steps_of(run)})
        require(step in known, "step", step, f"one that has results: {', '.join(map(str, known)) or 'there are none'}")
        return Steps(dict.fromkeys(runs, step), f"step {step:,}, as asked for")
    ends_of = {run: run.last_step for run in runs}
    if any(end in steps_of(run) for run, end in ends_of.items()):
        ends = sorted(set(ends_of.values()))
        told = f"step {ends[0]:,}" if len(ends) == 1 else f"step {ends[0]:,} to {ends[-1]:,}"
        return Steps(ends_of, f"each run's last step: {told}")
    having = [set(steps_of(run)) for run in runs if steps_of(run)]
    shared = max(set.intersection(*having), default=None) if having else None
    if shared is None:
        why = "no run has results there, and those that have some share no other step"
        return Steps(ends_of, f"each run's last step: {why}")
    told = f"step {shared:,}: no run has results at its end, this is the last step that all with results share"
    return Steps(dict.fromkeys(runs, shared), told)


def _evaluated(run: ReadRun) -> list[int]:
    return [step for step, merged in run.results.items() if merged.results]


def _validated(run: ReadRun) -> list[int]:
    return list(run.rows.val_losses)


# ---- measures ------------------------------------------------------------------------------------------


def choose_measures(runs: Sequence[ReadRun], steps: Steps, tasks: Sequence[str] | None) -> list[Scored]:
    """All that is put side by side, the main one first: the average of tasks, else the task that most runs have.

    Args:
        runs: All.
        steps: Where each is looked at.
        tasks: None: all that were evaluated.

    Raises:
        ConfigError: None of the runs was evaluated on one of ``tasks``.
    """
    of_run = [
        {
            each: value
            for each, value in results_of(run.results.get(step)).items()
            if tasks is None or each.task in tasks
        }
        for run, step in steps.of.items()
    ]
    count = Counter(result for results in of_run for result in results)
    unknown = sorted(set(tasks or ()) - {result.task for result in count})
    if unknown:
        known = sorted({result.task for run in runs for at in run.results.values() for result in results_of(at)})
        rule = f"evaluated at {steps.told.partition(':')[0]}: {', '.join(known) or 'nothing was'}"
        raise ConfigError(f"tasks={','.join(unknown)}: must be {rule}")
    order = _task_order(runs)
    results = sorted(count, key=lambda each: (-count[each], each.limit is not None, order.get(each.task, len(order))))
    higher = {result: _is_higher_better(result, steps) for result in results}
    imported = {key for run, step in steps.of.items() if step in run.results for key in run.results[step].imported}
    own = [
        Scored(_measure(each, higher[each], each.limit is None and each.key in imported), ((each, 1.0),))
        for each in results
    ]
    scored = [run for run in of_run if run]
    whole = [result for result in results if result.limit is None and higher[result]]
    common = {result: [run[result] for run in scored] for result in whole if all(result in run for run in scored)}
    average, totals = _average(common), _mme_total(results)
    # MME alone is judged by both halves; beside other tasks its sum is only shown.
    rest = [*totals, *own] if {result.task for result in results} == {"mme"} else [*own, *totals]
    last = [Scored(VAL_LOSS)] if any(run.rows.val_losses for run in runs) else []
    return [*average, *rest, *last]


def _is_higher_better(result: Result, steps: Steps) -> bool:
    """As the first cell says that gave one."""
    folders = (run.paths.cells(step) / cell_name(result.task, result.limit) for run, step in steps.of.items())
    cells = (cell for folder in folders if (cell := read_cell(folder)) and result.metric in cell.metrics)
    return next((cell.metrics[result.metric].higher_is_better for cell in cells), True)


def _measure(result: Result, higher_is_better: bool = True, is_imported: bool = False) -> Measure:
    first = "" if result.limit is None else f", first {result.limit:,}"
    metric = "" if result.key == result.task else f" {result.metric.removeprefix(f'{result.task}_')}"
    return Measure(
        result.name,
        f"{result.task}{metric.removesuffix('_score')}{first}",
        result.task,
        result.limit,
        higher_is_better,
        digits=1 if result.key in LARGEST else 4,
        estimates=() if result.limit is not None else ESTIMATES.get(result.key, ()),
        note="; ".join(_remarks(result, is_imported)),
    )


def _remarks(result: Result, is_imported: bool) -> Iterator[str]:
    if result.limit is not None:
        yield f"of the task's first {result.limit:,} samples only"
    if is_imported:
        yield "some runs have it from another program, which does not say of how many samples"


def _average(values: Mapping[Result, Sequence[float]]) -> list[Scored]:
    """Over tasks, each counted the same; nothing for one task. A score that is no share, as one of 100, is left out.

    Args:
        values: What all runs with results have of results that are not limited, and of which more is better.
    """
    common = [each for each, of in values.items() if each.key in LARGEST or (min(of) >= 0 and max(of) <= 1)]
    of_task = Counter(result.task for result in common)
    if len(of_task) < 2:
        return []
    parts = tuple((result, 1 / len(of_task) / of_task[result.task] / LARGEST.get(result.key, 1.0)) for result in common)
    tasks = ", ".join(of_task)
    scaled = "; MME's scores are divided by 2,000 and 800" if "mme" in of_task else ""
    others = ", ".join(each.key for each in values if each not in common)
    left_out = f"; left out, as it is no share: {others}" if others else ""
    note = f"mean of the main metrics of {tasks}, which all runs with results have{scaled}{left_out}"
    return [Scored(Measure(AVERAGE, f"average of {len(of_task)} tasks", note=note), parts)]


def _mme_total(results: Sequence[Result]) -> list[Scored]:
    """MME as estimates have it: both halves together."""
    found = []
    for limit in dict.fromkeys(result.limit for result in results if result.key in MME):
        halves = [Result(key, "mme", limit) for key in MME]
        if all(half in results for half in halves):
            whole = _measure(Result(MME_TOTAL, "mme", limit))
            measure = replace(whole, digits=1, note="perception and cognition, 2,800 at most")
            found.append(Scored(measure, tuple((half, 1.0) for half in halves)))
    return found


def _task_order(runs: Sequence[ReadRun]) -> dict[str, int]:
    """As the suite of the first run that has one names them."""
    suites = (run.config.get("eval_suite", {}).get("tasks") or [] for run in runs)
    return {task: number for number, task in enumerate(next(filter(None, suites), []))}
