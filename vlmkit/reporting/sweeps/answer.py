"""What a report comes to, in sentences that a person can act on. They claim what the numbers say, and no more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlmkit.reporting.sweeps.content import Answer, Comparison, Hole, Measure, Spread, Variant

MOST_NAMED = 6  # variants, runs


@dataclass(frozen=True, slots=True)
class Case:
    """What the answer is made of."""

    main: Measure | None  # None: no run has a result
    variants: Sequence[Variant]
    best: int | None
    comparisons: Sequence[Comparison]  # with the baseline, by the main measure
    against_best: Sequence[Comparison]
    holes: Sequence[Hole]
    confidence: float

    @property
    def baseline(self) -> Variant:
        """The one that others are compared with."""
        return next(variant for variant in self.variants if variant.is_baseline)

    def is_told_apart(self, comparison: Comparison) -> bool:
        """Whether chance alone would hardly give such a difference from the baseline."""
        p = comparison.p if comparison.p_corrected is None else comparison.p_corrected
        return p is not None and p < 1 - self.confidence

    def gains(self, comparison: Comparison) -> bool:
        """Whether the variant is the better one, told apart or not."""
        assert self.main is not None
        return (comparison.value > 0) == self.main.higher_is_better and comparison.value != 0

    def label(self, number: int) -> str:
        """Of a variant."""
        return self.variants[number].label


def make_answer(case: Case) -> Answer:
    """The headline and the points."""
    if case.main is None or case.best is None:
        points = ["no run has a result at the step that is looked at", *_holes(case, None)]
        return Answer("Nothing can be said yet: there are no results to put side by side.", tuple(points), None)
    return Answer(_headline(case, case.main, case.best), tuple(_points(case, case.main, case.best)), case.best)


def _headline(case: Case, main: Measure, best: int) -> str:
    score = show_spread(case.variants[best].scores[main.key], main)
    if len(case.variants) == 1:
        return f"{main.label} is {score}; there is no other variant to compare with."
    if main.key not in case.baseline.scores:
        return f"{case.label(best)} has the best {main.label}, {score}; the baseline has no result to compare it with."
    found = next((each for each in case.comparisons if each.variant == best), None)
    if found is None:
        return f"The baseline is best by {main.label}: {score}; nothing else that was tried is better."
    if not case.is_told_apart(found):
        told = show_difference(found, main, case.confidence)
        return f"Nothing is told apart from the baseline as better by {main.label}: {case.label(best)} is best, {told}."
    return (
        f"{case.label(best)} is best by {main.label}: {score}, "
        f"{show_difference(found, main, case.confidence)} against the baseline."
    )


def _points(case: Case, main: Measure, best: int) -> Iterator[str]:
    if not main.task and main.key == "val_loss":
        yield "no run was evaluated on a task: this is by the validation loss, on held-out data, whatever the filter"
    yield from _against_best(case, best)
    yield from _against_baseline(case, main)
    if one_seed := [variant.label for variant in case.variants if _seeds(variant, main) == 1]:
        yield (
            f"one seed only: {_named(one_seed)}; what another seed would give is not known, so the differences may be "
            "those of seeds"
        )
    if main.limit is not None:
        yield f"all scores are of the first {main.limit:,} samples of {main.task} only: not what the whole task gives"
    if len(case.variants) > 2:
        yield (
            f"the best of {len(case.variants)} is chosen by the same numbers that say how good it is: its lead is "
            "likelier too large than too small"
        )
    yield from _holes(case, main)


def _against_best(case: Case, best: int) -> Iterator[str]:
    alpha = 1 - case.confidence
    as_good = [each.other for each in case.against_best if each.p is None or each.p >= alpha]
    if as_good:
        yield f"may be as good as the best: {_named([case.label(number) for number in as_good])}"
    elif case.against_best:
        yield f"{case.label(best)} is told apart from every other variant (each by itself, p below {alpha:.2g})"


def _against_baseline(case: Case, main: Measure) -> Iterator[str]:
    apart = [each for each in case.comparisons if case.is_told_apart(each)]
    for kind, found in (
        ("better", [each for each in apart if case.gains(each)]),
        ("worse", [each for each in apart if not case.gains(each)]),
    ):
        if found:
            yield f"{kind} than the baseline: {_named([_with_value(case, each, main) for each in found])}"
    unclear = [each for each in case.comparisons if not case.is_told_apart(each)]
    if unclear:
        told = [_with_interval(case, each, main) for each in unclear]
        yield f"cannot be told from the baseline: {_named(told)}"


def _holes(case: Case, main: Measure | None) -> Iterator[str]:
    runs = [run for variant in case.variants for run in variant.runs]
    if main and (without := [run.name for run in runs if main.key not in run.scores]):
        yield f"without a result, and left out of all means: {_named(without)}"
    if case.holes:
        few = len(case.holes) == 1
        yield f"{len(case.holes)} {'thing is' if few else 'things are'} missing: see the holes, with what fills them"


def _seeds(variant: Variant, main: Measure) -> int:
    return variant.scores[main.key].seeds if main.key in variant.scores else 0


def _with_value(case: Case, comparison: Comparison, main: Measure) -> str:
    return f"{case.label(comparison.variant)} ({show_score(comparison.value, main, sign=True)})"


def _with_interval(case: Case, comparison: Comparison, main: Measure) -> str:
    if comparison.low is None or comparison.high is None:
        return _with_value(case, comparison, main)
    low, high = (show_score(end, main, sign=True) for end in (comparison.low, comparison.high))
    return f"{case.label(comparison.variant)} ({low} to {high})"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return "; ".join(names[:MOST_NAMED]) + more


# ---- numbers -------------------------------------------------------------------------------------------


def show_score(value: float, measure: Measure, sign: bool = False) -> str:
    """With the digits of its measure."""
    return f"{value:{'+' if sign else ''}.{measure.digits}f}"


def show_spread(spread: Spread, measure: Measure) -> str:
    """Mean, half the width of the interval, seeds."""
    mean, seeds = show_score(spread.mean, measure), "1 seed" if spread.seeds == 1 else f"{spread.seeds} seeds"
    if spread.high is None:
        return f"{mean} ({seeds})"
    return f"{mean} ± {show_score(spread.high - spread.mean, measure)} ({seeds})"


def show_difference(comparison: Comparison, measure: Measure, confidence: float) -> str:
    """The difference, its interval, p."""
    told = show_score(comparison.value, measure, sign=True)
    if comparison.low is None or comparison.high is None:
        return f"{told} (too little is there to say how sure that is)"
    low, high = (show_score(end, measure, sign=True) for end in (comparison.low, comparison.high))
    return f"{told} ({100 * confidence:g} %: {low} to {high}; {show_p(comparison)})"


def show_p(comparison: Comparison) -> str:
    """Corrected, if it is of several, and then it says so."""
    p = comparison.p if comparison.p_corrected is None else comparison.p_corrected
    if p is None:
        return "p not known"
    how = "" if comparison.p_corrected is None else " (Holm)"
    return f"p < 0.0001{how}" if p < 0.0001 else f"p = {p:.4f}{how}"
