"""From the folder of a sweep to all that its report says.

runs.py         what lies on disk         →  scores.py       which numbers of which step
variants.py     what differs, which runs are one variant
comparisons.py  variants on the same questions, flips.py  the questions that changed
curves.py, facts.py, holes.py             →  answer.py       in words
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from vlmkit.config import ReportConfig
from vlmkit.evaluation.statistics import interval_over_seeds
from vlmkit.redact import redact
from vlmkit.reporting.sweeps.answer import Case, make_answer
from vlmkit.reporting.sweeps.comparisons import Comparer, compare_with_baseline, compare_with_best, read_answers
from vlmkit.reporting.sweeps.content import Flips, Hole, Report, Run, Spread, Variant, Varied
from vlmkit.reporting.sweeps.curves import draw_curves
from vlmkit.reporting.sweeps.facts import Facts, facts_of, split_shared
from vlmkit.reporting.sweeps.flips import find_flips
from vlmkit.reporting.sweeps.holes import find_holes
from vlmkit.reporting.sweeps.runs import KEPT_SAMPLES, KEPT_TURNS, Found, ReadRun, Watch, describe_state, read_runs
from vlmkit.reporting.sweeps.scores import Scored, choose_measures, choose_steps
from vlmkit.reporting.sweeps.variants import (
    Group,
    find_baseline,
    find_heat_maps,
    find_joint,
    find_thresholds,
    find_varied,
    group_runs,
    label_groups,
    tell_differences,
    with_joint,
    without_copies,
)


def build_report(config: ReportConfig, command: str = "", watch: Watch = iter) -> Report:
    """Read the runs and work out all that is to be said of them.

    Args:
        config: Which runs, and what is asked of them.
        command: What the report is made with, to be shown.
        watch: Gets the list of runs and gives it on as they are read, to show how far this is.

    Raises:
        ConfigError: There is nothing to report on, or a key names what is not there.
    """
    found = read_runs(config, watch)
    varied = find_varied(found.runs)
    groups, notes = without_copies(group_runs(found.runs, varied))
    runs = [run for group in groups for run in group.runs]
    baseline = find_baseline(groups, varied, config.baseline, found.of_first_job)
    joint = find_joint(varied, groups)
    steps = choose_steps(runs, config.step)
    measures = choose_measures(runs, steps, config.tasks)
    answers = read_answers(steps, measures)
    comparer = Comparer(groups, steps, answers, config.confidence)
    shared, facts = split_shared([facts_of(run) for run in runs])
    cards = {run: _card(run, steps.of[run], measures, own) for run, own in zip(runs, facts, strict=True)}
    variants = _variants(comparer, measures, cards, varied, joint, baseline)
    main = measures[0] if measures else None
    best = _best(variants, main)
    comparisons = compare_with_baseline(comparer, baseline, measures) if measures else ()
    against_best = () if main is None or best is None else compare_with_best(comparer, best, main)
    holes = tuple(map(_without_secrets, (*found.holes, *find_holes(runs, steps, measures))))
    shown = [one.measure for one in measures]
    return Report(
        title=found.title,
        command=command,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        step=steps.told,
        confidence=config.confidence,
        answer=make_answer(
            Case(
                main.measure if main else None,
                variants,
                best,
                [each for each in comparisons if main and each.measure == main.measure.key],
                against_best,
                holes,
                config.confidence,
            )
        ),
        varied=varied,
        seeds=tuple(sorted({run.seed for run in runs})),
        measures=tuple(shown),
        variants=variants,
        curves=draw_curves(groups, measures),
        thresholds=find_thresholds(variants, varied, joint, shown),
        heat_maps=find_heat_maps(variants, varied, joint, shown[0]) if shown else (),
        comparisons=comparisons,
        against_best=against_best,
        flips=_flips(comparer, config, baseline, best, main, variants),
        holes=holes,
        notes=(*_notes(found, config), *notes, *answers.notes),
        shared=_redacted(shared),
    )


def _variants(
    comparer: Comparer,
    measures: Sequence[Scored],
    cards: Mapping[ReadRun, Run],
    varied: Sequence[Varied],
    joint: Varied | None,
    baseline: int,
) -> tuple[Variant, ...]:
    differences = tell_differences(comparer.groups, varied, baseline)
    labels = label_groups(comparer.groups, differences, varied, baseline)
    return tuple(
        Variant(
            number,
            labels[number],
            with_joint(group.settings, joint),
            differences[number],
            runs=tuple(cards[run] for run in group.runs),
            scores=_spreads(comparer, group, measures),
            kept_turns=_kept(group, KEPT_TURNS),
            kept_samples=_kept(group, KEPT_SAMPLES),
            is_baseline=number == baseline,
        )
        for number, group in enumerate(comparer.groups)
    )


def _card(run: ReadRun, step: int, measures: Sequence[Scored], facts: Facts) -> Run:
    scores = {one.measure.key: score for one in measures if (score := one.of(run, step)) is not None}
    return Run(
        run.name,
        str(run.paths.root),
        run.seed,
        describe_state(run),
        run.is_done,
        step if scores else None,
        scores,
        _redacted(facts),
    )


def _redacted(facts: Facts) -> Facts:
    return tuple((name, redact(text)) for name, text in facts)


def _without_secrets(hole: Hole) -> Hole:
    """A log or a command may hold some, and a page is passed on."""
    return replace(hole, why=redact(hole.why), way_out=redact(hole.way_out))


def _spreads(comparer: Comparer, group: Group, measures: Sequence[Scored]) -> dict[str, Spread]:
    found = {}
    for one in measures:
        scores = list(comparer.scores(group, one).values())
        if scores:
            ends = interval_over_seeds(scores, comparer.confidence) or (None, None)
            found[one.measure.key] = Spread(float(np.mean(scores)), len(scores), *ends)
    return found


def _kept(group: Group, dropped: str) -> float | None:
    """Mean over the runs that know it."""
    shares = [share for run in group.runs if (share := run.rows.kept(dropped)) is not None]
    return float(np.mean(shares)) if shares else None


def _best(variants: Sequence[Variant], main: Scored | None) -> int | None:
    """By the mean of the main measure; the first, if several have the same."""
    if main is None:
        return None
    key, sign = main.measure.key, 1 if main.measure.higher_is_better else -1
    having = [variant for variant in variants if key in variant.scores]
    return max(having, key=lambda variant: sign * variant.scores[key].mean).number if having else None


def _flips(
    comparer: Comparer,
    config: ReportConfig,
    baseline: int,
    best: int | None,
    main: Scored | None,
    variants: Sequence[Variant],
) -> tuple[Flips, ...]:
    """Between the baseline and the best; if it is the best itself, and the second."""
    others = [variant for variant in variants if variant.number != baseline]
    other = best if best != baseline else _best(others, main)
    if main is None or other is None or other == baseline:
        return ()
    return tuple(find_flips(comparer, baseline, other, main, config.samples))


def _notes(found: Found, config: ReportConfig) -> Iterable[str]:
    if found.problem is not None:
        yield f"{found.problem}: runs are found as far as their own folders are"
    if not config.baseline and not found.of_first_job:
        yield f"nothing can be read of the first, {found.first_job}: the baseline is the variant of the first that can"
