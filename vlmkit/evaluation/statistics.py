"""How sure a score is, and whether two checkpoints, or two variants trained with several seeds, differ on it.

One formula serves all tasks. A score is a sum of strata's means, each with a weight: Σ_s w_s · mean_s. A sample i of
stratum s, which has n_s samples in G_s clusters, moves it by

    ψ_i = √(G_s/(G_s-1)) · w_s (x_i - mean_s) / n_s

Samples that share a cluster (a picture with several questions, the two questions of an MME pair) are not independent:
their ψ are added up before they are squared.

    variance = Σ_clusters (Σ_i in cluster ψ_i)²

This is the linearised, cluster-robust variance of Liang & Zeger (1986), with the usual correction for few clusters
(Cameron & Miller 2015, "CR1") in each stratum, as Miller (2024, "Adding Error Bars to Evals") asks of evaluations. If
each cluster lies in one stratum it is that of stratified sampling (Cochran 1977, ch. 5): Σ w_s² s_s²/n_s if each is
one sample; without strata too, s/√n squared. What two checkpoints scored on the same samples differs by the same
formula, on differences.

What is trained again with another seed has another score. The mean over n seeds is as sure as Student's t says:
s/√n, with n-1 degrees of freedom. Two variants, each trained with some seeds, that answered the same samples differ by
the difference of their means over seeds. Its variance is

    s_a²/n_a + s_b²/n_b + V

s_a and s_b are the standard deviations over the seeds (other seeds could have been drawn: Welch 1947), V is the
variance above of the differences between the samples' mean scores over seeds (other samples could have been asked). The
degrees of freedom are Satterthwaite's (1946): (Σ V_i)² / Σ V_i²/f_i over the three, with n_a-1, n_b-1 and G-1. That a
seed is good at some samples and another at others is in all three: the interval is a little too wide. With two seeds
each, of which little is known, and no other variance it may be a little too narrow: of 95 it holds 94.

Where one side has a single seed it is taken to vary as the other does (Student 1908): s²(1 + 1/n) stands for the first
two, with n-1. Where both have one, nothing is known of other seeds, and V alone is left: it tells two checkpoints
apart, not two variants.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from vlmkit.evaluation.cells import Aggregation

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
ROUNDING = 1e-9  # relative: sums that are nothing come out as less
Scores = Sequence[float] | Floats
Names = Sequence[Hashable] | Ints
Variance = tuple[float, float]  # and its degrees of freedom


@dataclass(frozen=True, slots=True)
class Difference:
    """How two checkpoints differ on the same samples, a - b. None: there is too little to know it."""

    value: float
    clusters: int
    stderr: float | None
    low: float | None  # of the interval
    high: float | None
    p: float | None  # two-sided, of no difference


@dataclass(frozen=True, slots=True, eq=False)
class Paired:
    """What the runs of two variants scored on the same samples, which count with a weight in what is compared."""

    a: Floats  # [runs, samples]
    b: Floats
    strata: Ints  # [samples]; see ``aggregate``
    clusters: Ints  # [samples]; see ``standard_error``
    aggregation: Aggregation
    weight: float = 1.0


def aggregate(scores: Scores, strata: Names, aggregation: Aggregation) -> float:
    """The score of a task.

    Args:
        scores: Of its samples, at least one.
        strata: The part of the task that each belongs to; looked at only where the aggregation has parts.
        aggregation: How the one comes from the others.
    """
    assert len(scores) > 0
    x = np.asarray(scores, np.float64)
    stratum = _strata(strata, aggregation, len(x))
    return float(_weights(stratum, aggregation) @ _means(x, stratum))


def standard_error(scores: Scores, strata: Names, clusters: Names, aggregation: Aggregation) -> float | None:
    """Of what ``aggregate`` gives.

    Args:
        scores: Of the task's samples, at least one.
        strata: See ``aggregate``.
        clusters: Samples with the same one are not independent.
        aggregation: How the score comes from the samples'.

    Returns:
        None if all samples of a stratum are in one cluster: then nothing tells how far its mean may be off.
    """
    x = np.asarray(scores, np.float64)
    stratum, cluster = _strata(strata, aggregation, len(x)), _numbered(clusters)
    in_stratum = _clusters_in(stratum, cluster)
    if in_stratum.min() < 2:
        return None
    share = (_weights(stratum, aggregation) / np.bincount(stratum))[stratum]
    correction = np.sqrt(in_stratum / (in_stratum - 1))[stratum]
    per_cluster = np.bincount(cluster, correction * share * (x - _means(x, stratum)[stratum]))
    if np.abs(per_cluster).max() <= ROUNDING * share.max() * np.abs(x).max():
        return 0.0
    return math.sqrt(float(per_cluster @ per_cluster))


def compare_scores(
    a: Sequence[float],
    b: Sequence[float],
    strata: Sequence[Hashable],
    clusters: Sequence[Hashable],
    aggregation: Aggregation,
    confidence: float,
) -> Difference:
    """The difference between two checkpoints that answered the same samples; Student's t with G - 1 degrees of freedom.

    Args:
        a: The one's scores.
        b: The other's, in the same order.
        strata: See ``aggregate``.
        clusters: See ``standard_error``.
        aggregation: How the score comes from the samples'.
        confidence: Of the interval, as in 0.95.
    """
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    value = aggregate(differences, strata, aggregation)
    stderr = standard_error(differences, strata, clusters, aggregation)
    count = _count(_numbered(clusters))
    if stderr is None:
        return Difference(value, count, None, None, None, None)
    if stderr == 0:
        return _without_spread(value, differences, count)
    return _by_student(value, stderr, count - 1, count, confidence)


def interval_over_seeds(values: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """Where the mean of all seeds there could be lies, by what some of them gave; None: one tells nothing of others."""
    if len(values) < 2:
        return None
    mean, variance = float(np.mean(values)), float(np.var(values, ddof=1)) / len(values)
    half_width = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * math.sqrt(variance)
    return mean - half_width, mean + half_width


def compare_over_seeds(a: Sequence[float], b: Sequence[float], confidence: float) -> Difference:
    """The difference between the means of two variants, by their seeds alone: Welch's test, Student's for one and many.

    Args:
        a: What the one's runs have.
        b: What the other's have.
        confidence: Of the interval, as in 0.95.
    """
    value = float(np.mean(a) - np.mean(b))
    variances = _variances_over_seeds(a, b)
    return _by_satterthwaite(value, variances, 0, confidence) if variances else Difference(value, 0, *[None] * 4)


def compare_variants(parts: Sequence[Paired], confidence: float) -> Difference:
    """The difference between two variants on the samples that all their runs answered: the parts' weighted sum.

    If both have one seed, the interval says nothing of other seeds.

    Args:
        parts: At least one; the runs are the same in all, in the same order.
        confidence: Of the interval, as in 0.95.
    """
    seeds_a, seeds_b = (
        np.sum([part.weight * _score_runs(getattr(part, side), part) for part in parts], axis=0) for side in "ab"
    )
    value = float(seeds_a.mean() - seeds_b.mean())
    variances = _variances_over_seeds(seeds_a, seeds_b)
    differences = [part.weight * (part.a.mean(axis=0) - part.b.mean(axis=0)) for part in parts]
    total = 0
    for part, difference in zip(parts, differences, strict=True):
        count = _count(_numbered(part.clusters))
        total += count
        stderr = standard_error(difference, part.strata, part.clusters, part.aggregation)
        if stderr is None:
            return Difference(value, total, None, None, None, None)
        variances.append((stderr**2, count - 1))
    if not any(variance for variance, _ in variances):
        return _without_spread(value, np.concatenate(differences), total)
    return _by_satterthwaite(value, variances, total, confidence)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for there being several (Holm 1979): the chance of any false alarm stays what it says.

    What is None stays so and is not counted.
    """
    order = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, number) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[number] = largest
    return corrected


def _score_runs(scores: Floats, part: Paired) -> Floats:
    """The score of each run, of [runs, samples]."""
    return np.array([aggregate(run, part.strata, part.aggregation) for run in scores])


def _variances_over_seeds(a: Scores, b: Scores) -> list[Variance]:
    """Of the difference between the means of two sides, summed; one with a single seed varies as the other does."""
    several = [side for side in (a, b) if len(side) > 1]
    if len(several) == 1:
        return [(_variance(several[0]) * (1 + 1 / len(several[0])), len(several[0]) - 1)]
    return [(_variance(side) / len(side), len(side) - 1) for side in several]


def _variance(scores: Scores) -> float:
    """What differs by rounding alone does not differ."""
    differ = float(np.ptp(scores)) > ROUNDING * float(np.abs(scores).max())
    return float(np.var(scores, ddof=1)) if differ else 0.0


def _by_satterthwaite(value: float, variances: Sequence[Variance], clusters: int, confidence: float) -> Difference:
    """A difference whose variance is a sum of independent ones."""
    total = sum(variance for variance, _ in variances)
    if total == 0:
        is_none = abs(value) <= ROUNDING
        return Difference(value, clusters, 0.0, *((0.0, 0.0, 1.0) if is_none else (None, None, None)))
    freedom = total**2 / sum(variance**2 / own for variance, own in variances)
    return _by_student(value, math.sqrt(total), freedom, clusters, confidence)


def _by_student(value: float, stderr: float, freedom: float, clusters: int, confidence: float) -> Difference:
    half_width = float(stdtrit(freedom, (1 + confidence) / 2)) * stderr
    p = 2 * float(stdtr(freedom, -abs(value) / stderr))
    return Difference(value, clusters, stderr, value - half_width, value + half_width, p)


def _without_spread(value: float, differences: Floats, clusters: int) -> Difference:
    """The standard error is 0: clusters differ by what their strata do, and by nothing else.

    If all samples differ by the same, t is no number but exchanging a and b tells: if a and b were alike, each cluster
    could as well have the other sign, and only two of 2^G ways are so extreme. Else nothing does.
    """
    largest = float(np.abs(differences).max())
    if largest <= ROUNDING:
        return Difference(0.0, clusters, 0.0, 0.0, 0.0, 1.0)
    are_alike = np.ptp(differences) <= ROUNDING * largest
    return Difference(value, clusters, 0.0, None, None, 2.0 ** (1 - clusters) if are_alike else None)


def _strata(strata: Names, aggregation: Aggregation, count: int) -> Ints:
    has_parts = aggregation in (Aggregation.mean_of_strata, Aggregation.sum_of_strata)
    return _numbered(strata) if has_parts else np.zeros(count, np.intp)


def _weights(stratum: Ints, aggregation: Aggregation) -> Floats:
    """Of each stratum's mean in the score."""
    ones = np.ones(_count(stratum))
    match aggregation:
        case Aggregation.mean | Aggregation.sum_of_strata:
            return ones
        case Aggregation.mean_of_strata:
            return ones / len(ones)
        case Aggregation.sum_per_1000:
            return ones * len(stratum) / 1000


def _means(x: Floats, stratum: Ints) -> Floats:
    return np.bincount(stratum, x) / np.bincount(stratum)


def _clusters_in(stratum: Ints, cluster: Ints) -> Ints:
    """Of each stratum, how many clusters have samples in it."""
    distinct = np.unique(np.stack([stratum, cluster]), axis=1)
    return np.bincount(distinct[0])


def _numbered(names: Names) -> Ints:
    """A number for each name, from 0 on."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.intp)


def _count(numbered: Ints) -> int:
    """Of the numbers given."""
    return int(numbered.max(initial=-1)) + 1
