"""Compare two checkpoints on the questions that both answered, sample by sample.

    python -m vlmkit.compare a=RUN_A b=RUN_B                               the newest step that both have results for
    python -m vlmkit.compare a=RUN/checkpoints/step_500 b=RUN/checkpoints/step_1000
    python -m vlmkit.compare a=RUN/evals/step_500 b=runs/evals/NAME tasks=[mmstar] out=changed.jsonl

Read next: ``evaluation/compare.py`` (what is compared), ``evaluation/statistics.py`` (by which formula).
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmkit import entry
from vlmkit.config import CompareConfig
from vlmkit.evaluation.compare import Changed, MetricComparison, Sample, TaskComparison, compare_sides
from vlmkit.evaluation.sides import Side, find_sides
from vlmkit.paths import whole_file
from vlmkit.preflight import check_output
from vlmkit.tracking.console import Screen

MAX_CHARACTERS = 300  # of a question or an answer that is printed; the file has all
UNKNOWN = "-"


def compare(config: CompareConfig, screen: Screen) -> None:
    """Print the table, what a reader must know of it, and samples that changed; write all of these to a file.

    Raises:
        ConfigError: There is nothing to compare.
    """
    a, b = find_sides(config.a, config.b)
    compared = compare_sides(a, b, config.tasks, config.confidence)
    screen.banner("vlmkit.compare", {"a": describe_side(a), "b": describe_side(b)})
    percent = f"{100 * config.confidence:g} %"
    columns = ("task metric", "a", "b", "a - b", percent, "p", "p (Holm)", "won/lost/tied", "n", "clusters")
    screen.table(columns, [metric_row(one.task, metric) for one in compared for metric in one.metrics])
    tested = sum(metric.p_corrected is not None for one in compared for metric in one.metrics)
    screen.say(
        f"\n{percent}: interval of a - b. won: better in a.\n"
        "p: paired, two-sided; samples of one picture are taken together.\n"
        f"p (Holm): of each task's main metric, corrected for there being {tested}."
    )
    for one in compared:
        for note in one.notes:
            screen.say(f"{one.task}: {note}")
    for one in compared:
        show_changed(one, config.show, screen)
    if config.out is not None:
        out = Path(config.out).expanduser()
        write_changed(out, compared)
        screen.say(f"\nall samples that changed: {out}")


def describe_side(side: Side) -> str:
    """Which checkpoint it is."""
    order = next(iter(side.cells.values())).order
    step = "" if side.step is None else f"step {side.step} of "
    return f"{step}{side.folder} ({order.checkpoint}, fingerprint {order.fingerprint})"


def metric_row(task: str, metric: MetricComparison) -> tuple[str, ...]:
    """A line of the table."""
    difference, interval, clusters = UNKNOWN, UNKNOWN, UNKNOWN
    if metric.difference is not None:
        difference, clusters = format_score(metric.difference.value, sign=True), f"{metric.difference.clusters:,}"
        if metric.difference.low is not None and metric.difference.high is not None:
            ends = (metric.difference.low, metric.difference.high)
            interval = " to ".join(format_score(end, sign=True) for end in ends)
    return (
        f"{task} {metric.name}",
        format_score(metric.a),
        format_score(metric.b),
        difference,
        interval,
        format_p(metric.p),
        format_p(metric.p_corrected),
        f"{metric.a_better:,}/{metric.b_better:,}/{metric.same:,}",
        f"{metric.n:,}",
        clusters,
    )


def show_changed(one: TaskComparison, show: int, screen: Screen) -> None:
    """Print the samples of a task that changed most; MME's pairs together."""
    if not one.changed:
        return
    main = one.metrics[0]
    units = "samples" if main.units == main.n else "pairs of samples"
    screen.say(
        f"\n{one.task}: {len(one.changed):,} of {main.units:,} {units} have another {main.name}: "
        f"{main.a_better:,} better in a, {main.b_better:,} better in b"
    )
    for unit in one.changed[:show]:
        for sample in unit.samples:
            screen.say(f"  sample {sample.doc_id}")
            for name, text in _lines_of(sample, unit):
                screen.say(f"    {name:9}{text}")


def write_changed(path: Path, compared: Iterable[TaskComparison]) -> None:
    """Write all samples that changed, those that share a score together, one JSON object a line."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for one in compared:
            for unit in one.changed:
                line = {"task": one.task, "metric": one.metrics[0].name, **asdict(unit)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def format_score(score: float, sign: bool = False) -> str:
    """Four decimals; for scores that go into the hundreds two."""
    return f"{score:{'+' if sign else ''}.{2 if abs(score) >= 10 else 4}f}"


def format_p(p: float | None) -> str:
    """Four decimals; what is not known is a line."""
    if p is None:
        return UNKNOWN
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _lines_of(sample: Sample, unit: Changed) -> Iterable[tuple[str, str]]:
    yield "question", _shown(sample.prompt)
    yield "target", _shown(sample.target)
    yield "a", f"{format_score(unit.score_a)}  {_shown(sample.answer_a)}"
    yield "b", f"{format_score(unit.score_b)}  {_shown(sample.answer_b)}"


def _shown(value: Any) -> str:
    """In one line and with nothing that a terminal would obey."""
    text = repr(value)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


def main() -> None:
    """The command."""
    entry.quote_paths("a", "b", "out")
    entry.run("compare", _start)


def _start(config: CompareConfig, _invocation: entry.Invocation) -> None:
    if config.out is not None:
        check_output(Path(config.out).expanduser())
    compare(config, Screen())


if __name__ == "__main__":
    main()
