"""What is said of a sweep's numbers: no more than they show, whichever variant they favour."""

from collections.abc import Sequence

import pytest

from vlmkit.reporting.sweeps.answer import Case, make_answer
from vlmkit.reporting.sweeps.content import Answer, Comparison, Measure, Spread, Variant

SCORE = Measure("score", "score", "task", digits=2)


def variant(number: int, mean: float, seeds: int = 3) -> Variant:
    spread = Spread(mean, seeds, *((None, None) if seeds == 1 else (mean - 0.1, mean + 0.1)))
    name = f"variant {number}" if number else "baseline"
    return Variant(number, name, {}, (), (), {"score": spread}, None, None, is_baseline=number == 0)


def against(variant: int, value: float, p: float, other: int = 0, seeds: tuple[int, int] = (3, 3)) -> Comparison:
    corrected = p if other == 0 else None
    return Comparison(variant, other, "score", value, value - 0.1, value + 0.1, p, corrected, seeds, 100)


def answer(variants: Sequence[Variant], with_baseline: Sequence[Comparison], best: int, *others: Comparison) -> Answer:
    return make_answer(Case(SCORE, variants, best, with_baseline, others, (), 0.95))


def test_the_best_may_be_unclear_where_another_is_told_apart() -> None:
    variants = [variant(0, 0.5), variant(1, 0.7), variant(2, 0.65)]
    found = answer(variants, [against(1, 0.2, 0.2), against(2, 0.15, 0.01)], 1, against(1, 0.05, 0.5, other=2))
    assert found.headline == (
        "Told apart from the baseline as better by score: variant 2. "
        "variant 1 is best, +0.20 (95 %: +0.10 to +0.30; p = 0.2000 (Holm))."
    )
    assert "better than the baseline: variant 2 (+0.15)" in found.points
    assert "cannot be told from the baseline: variant 1 (+0.10 to +0.30, p = 0.2000 (Holm))" in found.points
    assert "may be as good as the best: variant 2" in found.points


def test_a_headline_by_one_seed_says_so() -> None:
    found = answer([variant(0, 0.5, 1), variant(1, 0.7, 1)], [against(1, 0.2, 0.00001, seeds=(1, 1))], 1)
    assert found.headline == (
        "variant 1 is best by score: 0.70 (1 seed), "
        "against the baseline +0.20 (95 %: +0.10 to +0.30; p <0.0001 (Holm)); another seed may differ."
    )


@pytest.mark.parametrize(("p", "told"), [(0.049, True), (1 - 0.95, False), (0.2, False)])
def test_told_apart_is_a_p_below_what_the_confidence_leaves(p: float, told: bool) -> None:
    points = answer([variant(0, 0.5), variant(1, 0.4)], [against(1, -0.1, p)], 0, against(0, 0.1, p, other=1)).points
    assert any(point.startswith("worse than the baseline: variant 1") for point in points) is told
    assert any(point.startswith("cannot be told from the baseline: variant 1") for point in points) is not told
    assert any(point.startswith("may be as good as the best") for point in points) is not told


def test_only_variants_with_a_result_were_there_to_choose_from() -> None:
    without = Variant(2, "variant 2", {}, (), (), {}, None, None)
    for more, warns in ((without, False), (variant(2, 0.4), True)):
        points = answer([variant(0, 0.5), variant(1, 0.6), more], [against(1, 0.1, 0.01)], 1).points
        assert any(point.startswith("the best of 3 is chosen by the same numbers") for point in points) is warns
