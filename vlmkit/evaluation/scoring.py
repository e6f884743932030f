"""What each sample of a task contributes to its score, so that errors can be told and checkpoints be compared.

The value of a metric is always what lmms-eval's own aggregation makes of the items that its ``process_results`` gave.
A rule says how that value comes from one number for each document; it is checked against the value every time, and
where it does not give the same, the metric has no standard error.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmkit.evaluation.cells import Aggregation, Metric
from vlmkit.evaluation.statistics import aggregate, standard_error

Aggregate = Callable[[list[Any]], Any]
TOLERANCE = 1e-5  # of the rule against the value, which MMMU's code rounds to 5 digits


@dataclass(slots=True)
class Document:
    """A document that was answered, and its scores."""

    items: dict[str, Any]  # metric → what process_results gave for it
    cluster: str  # documents with the same are not independent: they ask about the same picture
    scores: dict[str, float] = field(default_factory=dict)
    strata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    """How the score of a task comes from its documents."""

    aggregation: Aggregation
    score: Callable[[Any, Aggregate], float]  # of an item; the aggregation's module may have what is needed for that
    stratum: Callable[[Any], str] | None = None
    pair: Callable[[Any], Hashable] | None = None  # two documents that count together


def _number(item: Any, _: Aggregate) -> float:
    return float(item)


def _score(item: Any, _: Aggregate) -> float:
    return float(item["score"])


def _mmmu_score(item: Any, aggregate: Aggregate) -> float:
    """1 or 0, by the code that judges a whole subject."""
    _, judged = aggregate.__globals__["evaluate_mmmu"]([item])
    return float(judged["acc"])


# By the name of lmms-eval's function.
RULES = {
    "mean": Rule(Aggregation.mean, _number),
    "mmstar_aggregate_results": Rule(Aggregation.mean_of_strata, _score, stratum=lambda item: item["l2_category"]),
    "mmmu_aggregate_results": Rule(Aggregation.mean, _mmmu_score),
    "ocrbench_aggregate_accuracy": Rule(Aggregation.sum_per_1000, _score),
    "mme_aggregate_results": Rule(
        Aggregation.sum_of_strata,
        _score,
        stratum=lambda item: item["category"],
        pair=lambda item: f"{item['category']}/{item['question_id']}",
    ),
}


def counts_pairs(aggregation: Aggregation | None) -> bool:
    """Whether the samples of a cluster are a pair and both carry its score, so that they count once."""
    return any(rule.pair and rule.aggregation is aggregation for rule in RULES.values())


def score_metric(
    name: str,
    documents: Mapping[int, Document],
    function: Aggregate,
    call: Aggregate,
    higher_is_better: bool,
) -> Metric | None:
    """One metric over all documents that have it; their scores and strata are noted in them.

    Args:
        name: Of the metric.
        documents: By number.
        function: The aggregation of lmms-eval, which says the rule.
        call: The same, ready to be called with the items alone.
        higher_is_better: Whether more is better.

    Returns:
        None if the aggregation gives no number: it wrote a file to be sent in.
    """
    own = {number: document for number, document in documents.items() if name in document.items}
    rule = RULES.get(getattr(function, "__name__", ""))
    if rule and rule.pair:
        own = _whole_pairs(name, own, rule.pair)
    if not own:
        return None
    value = call([document.items[name] for document in own.values()])
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    for document in own.values():
        _note_score(name, document, function, rule)
    if rule and rule.pair:
        _share_pair_scores(name, own)
    return _metric(name, own, float(value), rule, higher_is_better)


def _note_score(name: str, document: Document, function: Aggregate, rule: Rule | None) -> None:
    item = document.items[name]
    if rule:
        document.scores[name] = rule.score(item, function)
        if rule.stratum:
            document.strata[name] = str(rule.stratum(item))
    elif isinstance(item, int | float):
        document.scores[name] = float(item)


def _whole_pairs(name: str, documents: dict[int, Document], pair: Callable[[Any], Hashable]) -> dict[int, Document]:
    """The documents whose other half was answered too; each pair becomes a cluster."""
    pairs = defaultdict(list)
    for number, document in documents.items():
        pairs[pair(document.items[name])].append(number)
    whole = {number: key for key, numbers in pairs.items() if len(numbers) == 2 for number in numbers}
    for number, key in whole.items():
        documents[number].cluster = str(key)
    return {number: document for number, document in documents.items() if number in whole}


def _share_pair_scores(name: str, documents: dict[int, Document]) -> None:
    """MME: a pair has its accuracy in percent, and 100 more if both are right."""
    pairs = defaultdict(list)
    for document in documents.values():
        pairs[document.cluster].append(document)
    for pair in pairs.values():
        right = sum(document.scores[name] for document in pair)
        for document in pair:
            document.scores[name] = 100 * (right / 2 + (right == 2))


def _metric(
    name: str, documents: dict[int, Document], value: float, rule: Rule | None, higher_is_better: bool
) -> Metric:
    n = len(documents)
    if rule is None:
        return Metric(value, n, higher_is_better=higher_is_better)
    scores = [document.scores[name] for document in documents.values()]
    strata = [document.strata.get(name, "") for document in documents.values()]
    clusters = [document.cluster for document in documents.values()]
    if abs(aggregate(scores, strata, rule.aggregation) - value) > TOLERANCE * max(1, abs(value)):
        return Metric(value, n, higher_is_better=higher_is_better)
    stderr = standard_error(scores, strata, clusters, rule.aggregation)
    return Metric(value, n, rule.aggregation, stderr, higher_is_better)
