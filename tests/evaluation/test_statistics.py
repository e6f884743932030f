"""Standard errors and paired comparisons, against brute force and textbook formulas."""

import math
import random
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlmkit.evaluation.cells import Aggregation
from vlmkit.evaluation.statistics import (
    Difference,
    Paired,
    aggregate,
    compare_over_seeds,
    compare_scores,
    compare_variants,
    holm,
    interval_over_seeds,
    standard_error,
)

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=40)
AGGREGATIONS = list(Aggregation)


def random_task(samples: int, strata: int, cluster_size: int, seed: int) -> tuple[list[float], list[str], list[int]]:
    """Scores that depend on their stratum and, more, on their cluster; each cluster lies in one stratum."""
    rng = random.Random(seed)
    scores, names, clusters = [], [], []
    for cluster in range(samples // cluster_size):
        stratum = cluster % strata
        easy = rng.random()
        for _ in range(cluster_size):
            scores.append(float(rng.random() < 0.3 + 0.5 * easy - 0.04 * stratum))
            names.append(f"part {stratum}")
            clusters.append(cluster)
    return scores, names, clusters


def jackknife(scores: Sequence[float], strata: Sequence[str], clusters: Sequence[int], how: Aggregation) -> float:
    """Delete one cluster at a time. The weights stay those of the whole."""
    x, cluster = np.array(scores), np.array(clusters)
    scale = len(x) / 1000 if how is Aggregation.sum_per_1000 else 1.0
    plain = Aggregation.mean if how is Aggregation.sum_per_1000 else how
    values = []
    for left_out in set(clusters):
        kept = np.flatnonzero(cluster != left_out)
        values.append(scale * aggregate(list(x[kept]), [strata[i] for i in kept], plain))
    spread = np.array(values) - np.mean(values)
    return math.sqrt((len(values) - 1) / len(values) * float(spread @ spread))


@given(SCORES)
def test_without_clusters_and_strata_it_is_s_over_root_n(scores: list[float]) -> None:
    n = len(scores)
    found = standard_error(scores, [None] * n, range(n), Aggregation.mean)
    assert found == pytest.approx(np.std(scores, ddof=1) / math.sqrt(n), abs=1e-12)


def test_strata_of_any_size_give_the_stratified_formula() -> None:
    rng = random.Random(1)
    parts = [[float(rng.random() < 0.3 + 0.1 * size) for _ in range(size)] for size in (2, 3, 5, 4)]
    scores, strata = [x for part in parts for x in part], [len(part) for part in parts for _ in part]
    variance = sum(np.var(part, ddof=1) / len(part) for part in parts)
    found = standard_error(scores, strata, range(len(scores)), Aggregation.sum_of_strata)
    assert found == pytest.approx(math.sqrt(variance), rel=1e-9)
    mean = standard_error(scores, strata, range(len(scores)), Aggregation.mean_of_strata)
    assert mean == pytest.approx(math.sqrt(variance) / 4, rel=1e-9)


def test_pictures_with_a_question_of_each_part_count_as_one_sample_each() -> None:
    """The score is the mean of the pictures' own then, and so is its error."""
    pictures = np.random.default_rng(1).random((7, 3))
    clusters, strata = np.divmod(range(21), 3)
    found = standard_error(pictures.ravel(), strata, clusters, Aggregation.mean_of_strata)
    assert found == pytest.approx(np.std(pictures.mean(1), ddof=1) / math.sqrt(7), rel=1e-9)


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize(("strata", "cluster_size"), [(1, 1), (6, 1), (1, 4), (6, 4)])
def test_the_jackknife_agrees(how: Aggregation, strata: int, cluster_size: int) -> None:
    task = random_task(600, strata, cluster_size, seed=2)
    assert standard_error(*task, how) == pytest.approx(jackknife(*task, how), rel=0.03)


def test_the_bootstrap_of_clusters_agrees_where_clusters_cross_strata() -> None:
    """A picture may have questions of several parts."""
    scores, _, clusters = random_task(800, 1, 4, seed=3)
    strata = [f"part {number % 3}" for number in range(len(scores))]
    rng = np.random.default_rng(0)
    x, part = np.array(scores), np.arange(len(scores)) % 3
    members = np.arange(len(x)).reshape(-1, 4)
    drawn = members[rng.integers(0, len(members), (4000, len(members)))].reshape(4000, -1)
    means = np.stack([np.where(part[drawn] == s, x[drawn], 0).sum(1) / (part[drawn] == s).sum(1) for s in range(3)])
    found = standard_error(scores, strata, clusters, Aggregation.mean_of_strata)
    assert found == pytest.approx(means.mean(0).std(), rel=0.05)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Questions about one picture that are answered alike: an error that ignores it is half of what it must be."""
    rng = np.random.default_rng(1)
    covered = naive = 0
    for _ in range(400):
        x = np.repeat(rng.random(60) < 0.5, 4).astype(float)
        found = compare_scores(x, np.zeros(240), [None] * 240, np.repeat(range(60), 4), Aggregation.mean, 0.95)
        covered += found.low <= 0.5 <= found.high
        naive += abs(x.mean() - 0.5) <= 1.96 * x.std(ddof=1) / math.sqrt(240)
    assert covered / 400 > 0.92
    assert naive / 400 < 0.80


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_the_order_of_samples_does_not_matter(how: Aggregation) -> None:
    task = random_task(120, 4, 3, seed=4)
    shuffled = list(zip(*task, strict=True))
    random.Random(0).shuffle(shuffled)
    other = tuple(zip(*shuffled, strict=True))
    assert standard_error(*other, how) == pytest.approx(standard_error(*task, how), rel=1e-12)
    assert aggregate(other[0], other[1], how) == pytest.approx(aggregate(task[0], task[1], how), rel=1e-12)


def test_the_score_is_what_the_aggregation_says() -> None:
    scores, strata = [1, 0, 1, 1, 1, 0], ["x", "x", "x", "x", "y", "y"]
    assert aggregate(scores, strata, Aggregation.mean) == pytest.approx(4 / 6)
    assert aggregate(scores, strata, Aggregation.mean_of_strata) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert aggregate(scores, strata, Aggregation.sum_of_strata) == pytest.approx(3 / 4 + 1 / 2)
    assert aggregate(scores, strata, Aggregation.sum_per_1000) == pytest.approx(4 / 1000)


@pytest.mark.parametrize("sizes", [[2] * 14, [3] * 14, [30] * 14, [2, 30, 5, 170]])
def test_mme_pairs_count_once(sizes: list[int]) -> None:
    """Both questions of a pair carry the pair's score: the score is the sum of categories' means over pairs."""
    rng = random.Random(5)
    parts = [[rng.choice([0.0, 50.0, 200.0]) for _ in range(size)] for size in sizes]
    pairs = [(category, score) for category, part in enumerate(parts) for score in part]
    scores = [score for _, score in pairs for _ in range(2)]
    strata = [category for category, _ in pairs for _ in range(2)]
    clusters = [number for number in range(len(pairs)) for _ in range(2)]
    assert aggregate(scores, strata, Aggregation.sum_of_strata) == pytest.approx(sum(np.mean(part) for part in parts))
    textbook = math.sqrt(sum(np.var(part, ddof=1) / len(part) for part in parts))
    found = standard_error(scores, strata, clusters, Aggregation.sum_of_strata)
    assert found == pytest.approx(textbook, rel=1e-9)


@given(SCORES)
def test_one_cluster_tells_nothing(scores: list[float]) -> None:
    n = len(scores)
    assert standard_error(scores, [None] * n, ["picture"] * n, Aggregation.mean) is None
    found = compare_scores(scores, [0.0] * n, [None] * n, ["picture"] * n, Aggregation.mean, 0.95)
    assert (found.stderr, found.low, found.high, found.p, found.clusters) == (None, None, None, None, 1)


def test_a_stratum_of_one_cluster_tells_nothing() -> None:
    how = Aggregation.sum_of_strata
    assert standard_error([1, 0, 1], ["x", "y", "z"], [0, 1, 2], how) is None
    assert standard_error([1, 0, 1], ["x", "x", "y"], [0, 1, 2], how) is None
    one_pair_each = [50, 50, 200, 200], ["x", "x", "y", "y"], [0, 0, 1, 1]
    assert standard_error(*one_pair_each, how) is None
    found = compare_scores([1, 0, 1], [0, 0, 0], ["x", "x", "y"], [0, 1, 2], how, 0.95)
    assert (found.value, found.stderr, found.low, found.high, found.p) == (1.5, None, None, None, None)


@given(st.sampled_from([0.0, 0.1, 1 / 3, 200.0]), st.integers(2, 50), st.sampled_from(AGGREGATIONS))
def test_all_alike_has_no_error(score: float, n: int, how: Aggregation) -> None:
    assert standard_error([score] * n, ["one"] * n, range(n), how) == 0


@given(SCORES, st.data())
def test_the_paired_test_is_the_t_test_on_differences(a: list[float], data: st.DataObject) -> None:
    n = len(a)
    b = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=n, max_size=n))
    found = compare_scores(a, b, [None] * n, range(n), Aggregation.mean, 0.9)
    differences = np.subtract(a, b)
    if np.ptp(differences) == 0:
        return
    textbook = stats.ttest_rel(a, b)
    assert found.value == pytest.approx(differences.mean(), abs=1e-12)
    assert found.p == pytest.approx(textbook.pvalue, abs=1e-9)
    interval = textbook.confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_pairing_sees_what_two_separate_errors_hide() -> None:
    a, strata, clusters = random_task(1000, 1, 1, seed=6)
    b = [0.0 if number % 50 == 0 else score for number, score in enumerate(a)]
    paired = compare_scores(a, b, strata, clusters, Aggregation.mean, 0.95)
    apart = math.hypot(*(standard_error(x, strata, clusters, Aggregation.mean) for x in (a, b)))
    assert paired.p < 0.05
    assert paired.value < 1.96 * apart


def test_the_same_answers_do_not_differ() -> None:
    a, strata, clusters = random_task(100, 2, 2, seed=7)
    found = compare_scores(a, a, strata, clusters, Aggregation.mean_of_strata, 0.95)
    assert (found.value, found.stderr, found.low, found.high, found.p) == (0, 0, 0, 0, 1)


def test_differences_that_are_all_alike_are_told_by_exchanging_a_and_b() -> None:
    found = compare_scores([1.0] * 5, [0.0] * 5, [None] * 5, range(5), Aggregation.mean, 0.95)
    assert (found.value, found.low, found.p) == (1, None, 2 / 2**5)
    as_floats = compare_scores([0.3, 0.4] * 5, [0.1, 0.2] * 5, [None] * 10, range(10), Aggregation.mean, 0.95)
    assert (as_floats.value, as_floats.p) == (pytest.approx(0.2), 2 / 2**10)


@pytest.mark.parametrize(
    ("differences", "clusters"),
    [([1, 1, 1, 0, 0, 0], range(6)), ([1, 1, 1, -1, -1, -1], range(6)), ([0.2, -0.2] * 3, [0, 0, 1, 1, 2, 2])],
    ids=["one part alone differs", "two parts differ and cancel", "the questions of each picture cancel"],
)
def test_differences_that_are_unlike_but_without_spread_tell_nothing(
    differences: list[float], clusters: Sequence[int]
) -> None:
    strata = ["x"] * 3 + ["y"] * 3 if len(set(clusters)) == 6 else [None] * 6
    found = compare_scores(differences, [0.0] * 6, strata, clusters, Aggregation.mean_of_strata, 0.95)
    assert (found.stderr, found.low, found.high, found.p) == (0, None, None, None)


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=9))
def test_holm_never_lowers_p_and_keeps_the_order(ps: list[float]) -> None:
    corrected = holm(ps)
    assert all(p <= c <= min(1, p * len(ps)) for p, c in zip(ps, corrected, strict=True))
    assert [c for _, c in sorted(zip(ps, corrected, strict=True))] == sorted(corrected)


# ---- variants with several seeds -----------------------------------------------------------------------


def pair_of_variants(
    seeds: tuple[int, int], questions: int, seed_spread: float, question_spread: float, key: int
) -> Paired:
    """Two variants that do not differ in truth: a run is as good as its seed, better at some questions than others."""
    rng = np.random.default_rng(key)
    hardness = rng.normal(0, 1, questions)
    taste = question_spread * rng.normal(0, 1, (2, questions))  # of a variant for a question

    def runs(side: int) -> np.ndarray:
        day = seed_spread * rng.normal(0, 1, (seeds[side], 1))
        return hardness + taste[side] + day + 0.3 * rng.normal(0, 1, (seeds[side], questions))

    alone = np.arange(questions)
    return Paired(runs(0), runs(1), np.zeros_like(alone), alone, Aggregation.mean)


@pytest.mark.parametrize(
    ("seeds", "seed_spread", "question_spread"),
    [((3, 3), 0.1, 0.5), ((3, 3), 0.3, 0.0), ((5, 2), 0.05, 1.0), ((2, 2), 0.3, 0.0), ((1, 3), 0.3, 0.0)],
)
def test_the_interval_holds_the_truth_as_often_as_it_says_or_a_little_more(
    seeds: tuple[int, int], seed_spread: float, question_spread: float
) -> None:
    hits = 0
    for key in range(400):
        found = compare_variants([pair_of_variants(seeds, 60, seed_spread, question_spread, key)], 0.9)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.87 <= hits / 400 <= 0.99


def test_without_variance_of_questions_it_is_welchs_test() -> None:
    a, b = [0.5, 0.6, 0.55, 0.7], [0.4, 0.5, 0.38]
    runs = [np.repeat(np.array(side)[:, None], 20, axis=1) for side in (a, b)]
    alone = np.arange(20)
    welch = stats.ttest_ind(a, b, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    for found in (
        compare_variants([Paired(runs[0], runs[1], 0 * alone, alone, Aggregation.mean)], 0.95),
        compare_over_seeds(a, b, 0.95),
    ):
        assert (found.p, found.low, found.high) == pytest.approx((welch.pvalue, low, high), rel=1e-9)


def test_one_seed_against_several_is_students_test() -> None:
    for a, b in (([0.5], [0.4, 0.3, 0.44]), ([0.4, 0.3, 0.44], [0.5])):
        student = stats.ttest_ind(a, b, equal_var=True)
        found = compare_over_seeds(a, b, 0.95)
        low, high = student.confidence_interval(0.95)
        assert (found.p, found.low, found.high) == pytest.approx((student.pvalue, low, high), rel=1e-9)


@given(st.integers(0, 50), st.sampled_from(AGGREGATIONS))
def test_with_one_seed_each_it_is_the_paired_comparison_of_two_checkpoints(key: int, how: Aggregation) -> None:
    a, strata, clusters = random_task(60, strata=3, cluster_size=2, seed=key)
    b, _, _ = random_task(60, strata=3, cluster_size=2, seed=key + 1)
    numbered = np.array([int(name.removeprefix("part ")) for name in strata])
    of_seeds = compare_variants([Paired(np.array([a]), np.array([b]), numbered, np.array(clusters), how)], 0.95)
    of_checkpoints = compare_scores(a, b, strata, clusters, how, 0.95)
    assert astuple(of_seeds) == pytest.approx(astuple(of_checkpoints), rel=1e-9, abs=1e-12)


def test_what_counts_less_moves_the_sum_less_and_parts_add_up() -> None:
    one = pair_of_variants((3, 3), 40, 0.2, 0.4, key=1)
    halves = [replace(one, weight=0.5), replace(one, weight=0.5)]
    whole, in_two = compare_variants([one], 0.95), compare_variants(halves, 0.95)
    assert in_two.value == pytest.approx(whole.value)
    assert in_two.clusters == 80
    # The same questions twice are taken for independent ones: their share of the variance is half as large.
    assert 0.5 < (in_two.stderr or 0) / (whole.stderr or 1) < 1


def test_one_seed_says_nothing_of_others() -> None:
    assert interval_over_seeds([0.5], 0.95) is None
    assert compare_over_seeds([0.5], [0.4], 0.95) == Difference(pytest.approx(0.1), 0, None, None, None, None)
    both = interval_over_seeds([0.4, 0.5, 0.6], 0.95)
    t = stats.t(2).ppf(0.975) * 0.1 / math.sqrt(3)
    assert both == pytest.approx((0.5 - t, 0.5 + t))


def test_variants_that_answer_all_alike_do_not_differ() -> None:
    same = np.ones((3, 10))
    found = compare_variants([Paired(same, same, np.zeros(10, int), np.arange(10), Aggregation.mean)], 0.95)
    assert (found.value, found.p) == (0.0, 1.0)
