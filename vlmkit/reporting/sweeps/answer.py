"""What a report comes to, in sentences that a person can act on. They claim what the numbers say, and no more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlmkit.reporting.sweeps.content import Answer, Comparison, Hole, Measure, Variant
from vlmkit.reporting.sweeps.wording import difference_text, is_better, is_told_apart, p_text, spread_text
from vlmkit.reporting.words import listed

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
        """Whether chance alone would hardly give such a difference."""
        return is_told_apart(comparison, self.confidence)

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
    score = spread_text(case.variants[best].scores[main.key], main)
    if len(case.variants) == 1:
        return f"{main.label} is {score}; there is no other variant to compare with."
    if main.key not in case.baseline.scores:
        return f"{case.label(best)} has the best {main.label}, {score}; the baseline has no result to compare it with."
    found = next((each for each in case.comparisons if each.variant == best), None)
    if found is None:
        return f"The {case.baseline.label} is best by {main.label}: {score}; no other variant has a better mean."
    told = _difference(found, main, case.confidence) + ("; another seed may differ" if max(found.seeds) == 1 else "")
    if case.is_told_apart(found):
        return f"{case.label(best)} is best by {main.label}: {score}, against the {case.baseline.label} {told}."
    if better := [each for each in case.comparisons if case.is_told_apart(each) and is_better(each, main)]:
        names = _named([case.label(each.variant) for each in better])
        verdict = f"Told apart from the {case.baseline.label} as better by {main.label}: {names}."
        return f"{verdict} {case.label(best)} is best, {told}."
    verdict = f"Nothing is told apart from the {case.baseline.label} as better by {main.label}"
    return f"{verdict}: {case.label(best)} is best, {told}."


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
    if (count := sum(main.key in variant.scores for variant in case.variants)) > 2:
        yield (
            f"the best of {count} is chosen by the same numbers that say how good it is: its lead is "
            "likelier too large than too small"
        )
    yield from _holes(case, main)


def _against_best(case: Case, best: int) -> Iterator[str]:
    as_good = [each.other for each in case.against_best if not case.is_told_apart(each)]
    if as_good:
        yield f"may be as good as the best: {_named([case.label(number) for number in as_good])}"
    elif case.against_best:
        alone = f"each by itself, p below {1 - case.confidence:.2g}"
        yield f"{case.label(best)} is told apart from every other variant with a result ({alone})"


def _against_baseline(case: Case, main: Measure) -> Iterator[str]:
    apart = [each for each in case.comparisons if case.is_told_apart(each)]
    for kind, found in (
        ("better", [each for each in apart if is_better(each, main)]),
        ("worse", [each for each in apart if not is_better(each, main)]),
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
        yield f"without {main.label}, and left out of its means: {_named(without)}"
    if case.holes:
        few = len(case.holes) == 1
        yield f"{len(case.holes)} {'thing is' if few else 'things are'} missing: see the holes, with what fills them"


def _seeds(variant: Variant, main: Measure) -> int:
    return variant.scores[main.key].seeds if main.key in variant.scores else 0


def _with_value(case: Case, comparison: Comparison, main: Measure) -> str:
    return f"{case.label(comparison.variant)} ({difference_text(comparison.value, main.digits)})"


def _with_interval(case: Case, comparison: Comparison, main: Measure) -> str:
    """The interval is of this one alone, p of all together: it may be above what the interval would have it."""
    interval = _interval(comparison, main)
    if interval is None:
        return _with_value(case, comparison, main)
    return f"{case.label(comparison.variant)} ({interval}, {_p(comparison)})"


def _named(names: Sequence[str]) -> str:
    return listed(names, MOST_NAMED)


def _difference(comparison: Comparison, main: Measure, confidence: float) -> str:
    """The difference, its interval, p."""
    told, interval = difference_text(comparison.value, main.digits), _interval(comparison, main)
    if interval is None:
        return f"{told} (too little is there to say how sure that is)"
    return f"{told} ({100 * confidence:g} %: {interval}; {_p(comparison)})"


def _interval(comparison: Comparison, main: Measure) -> str | None:
    if comparison.low is None or comparison.high is None:
        return None
    return " to ".join(difference_text(end, main.digits) for end in (comparison.low, comparison.high))


def _p(comparison: Comparison) -> str:
    """Corrected if it is one of several, and then it says so."""
    how, p = (" (Holm)", comparison.p_corrected) if comparison.p_corrected is not None else ("", comparison.p)
    text = p_text(p)
    return f"p {text}{how}" if text.startswith("<") else f"p = {text}{how}"
