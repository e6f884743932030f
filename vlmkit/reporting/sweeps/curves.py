"""How numbers go over the steps: means over the seeds of a variant, and the lowest and the highest of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from vlmkit.reporting.sweeps.content import Curves, Line
from vlmkit.reporting.sweeps.runs import ReadRun
from vlmkit.reporting.sweeps.scores import VAL_LOSS, Scored
from vlmkit.reporting.sweeps.variants import Group

MOST_POINTS = 150  # of a line
Points = Mapping[int, float]  # by step


def draw_curves(groups: Sequence[Group], measures: Sequence[Scored]) -> tuple[Curves, ...]:
    """Training loss, validation loss, and each measure at each step that was evaluated."""
    last = max((max(run.rows.losses, default=0) for group in groups for run in group.runs), default=0)
    window = max(-(-last // MOST_POINTS), 1)
    note = f"mean of {window:,} steps each" if window > 1 else ""
    losses = {run: _windows(run.rows.losses, window) for group in groups for run in group.runs}
    val_losses = {run: run.rows.val_losses for run in losses}
    scores = [(scored, {run: _scores(run, scored) for run in losses}) for scored in measures if scored.parts]
    curves = [
        Curves("batch_loss", "training loss", _lines(groups, losses), higher_is_better=False, note=note),
        Curves(VAL_LOSS.key, VAL_LOSS.label, _lines(groups, val_losses), higher_is_better=False),
        *(
            Curves(one.measure.key, one.measure.label, _lines(groups, of), one.measure.higher_is_better)
            for one, of in scores
        ),
    ]
    return tuple(each for each in curves if each.lines)


def _scores(run: ReadRun, scored: Scored) -> Points:
    found = {step: scored.of(run, step) for step in run.results}
    return {step: score for step, score in found.items() if score is not None}


def _windows(values: Points, window: int) -> Points:
    """Means of so many steps, each under its last step; what is left at the end is no window."""
    steps, numbers = np.array(list(values), np.int64), np.array(list(values.values()), np.float64)
    if window == 1 or not len(steps):
        return values
    place = (steps - 1) // window
    counts, sums = np.bincount(place), np.bincount(place, numbers)
    last = int(steps.max())
    whole = [number for number in np.flatnonzero(counts).tolist() if (number + 1) * window <= last]
    return {(number + 1) * window: float(sums[number] / counts[number]) for number in whole}


def _lines(groups: Sequence[Group], of: Mapping[ReadRun, Points]) -> tuple[Line, ...]:
    lines = []
    for number, group in enumerate(groups):
        having = [run for run in group.runs if of[run]]
        # One that was stopped would cut the others' line.
        runs = [run for run in having if run.is_done] or having
        steps = sorted(set.intersection(*(set(of[run]) for run in runs))) if runs else []
        if steps:
            values = np.array([[of[run][step] for step in steps] for run in runs])
            mean, low, high = (tuple(f(values, axis=0).tolist()) for f in (np.mean, np.min, np.max))
            lines.append(Line(number, tuple(steps), mean, low, high, len(runs)))
    return tuple(lines)
