"""Numbers that runs may be held against: estimates of the reference's authors; nobody measured them here."""

from vlmkit.reporting.sweeps.content import Estimate

MME = ("mme_mme_perception_score", "mme_mme_cognition_score")  # the two halves of a task, with a score each
MME_TOTAL = "mme_total"  # their sum, which estimates are of
LARGEST = {MME[0]: 2000.0, MME[1]: 800.0}  # scores that do not end at 1


def _estimates(baseline: str, value: float, goal: float, best: float) -> tuple[Estimate, ...]:
    return Estimate(baseline, value), Estimate("nanoVLM's goal", goal), Estimate("best known", best)


# By the key of a result, as lmms-eval 0.7.3 names tasks and metrics. Of each task there it is the main metric.
ESTIMATES = {
    "mmstar_average": _estimates("GPT-4V", 0.567, 0.45, 0.65),
    "mmmu_val_mmmu_acc": _estimates("GPT-4V", 0.561, 0.35, 0.60),
    "ocrbench_ocrbench_accuracy": _estimates("GPT-4V", 0.645, 0.50, 0.75),
    "textvqa_val_exact_match": _estimates("LLaVA-1.5", 0.588, 0.45, 0.70),
    "docvqa_val_anls": _estimates("LLaVA-1.5", 0.604, 0.50, 0.80),
    "scienceqa_exact_match": _estimates("GPT-3.5", 0.754, 0.65, 0.90),
    MME_TOTAL: _estimates("InstructBLIP", 1220, 1000, 2000),
    "chartqa_relaxed_overall": _estimates("LLaVA-1.5", 0.390, 0.35, 0.60),
}
