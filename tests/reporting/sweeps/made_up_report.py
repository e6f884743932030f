"""Reports made of nothing: numbers at random, the same every time."""

import base64
import io
import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev

from PIL import Image

from vlmkit.reporting.sweeps.content import (
    MOST_FLIP_TASKS,
    Answer,
    Comparison,
    Curves,
    Estimate,
    Flip,
    Flips,
    HeatMap,
    Hole,
    Line,
    Measure,
    Report,
    Run,
    Spread,
    ThresholdLine,
    Thresholds,
    Value,
    Variant,
    Varied,
)

RELEVANCE = {"filter.relevance_min_rating": (1, 2, 3, 4, 5)}
TWO_AXES = RELEVANCE | {"filter.visual_dependency_min_rating": (1, 2, 3)}
FEW = {"filter.relevance_min_rating": (1, 2, 3), "filter.visual_dependency_min_rating": (1, 2)}
LARGE = {  # 66 variants
    "optimizer.language_learning_rate": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4),
    "dataset.max_images_per_example": tuple(range(1, 12)),
}
EVIL = "<script>alert('&amp;')</script> $x$ \"q\" \u6f22\x07"
FORMULA = "=1+1"


def made_up_report(
    axes: Mapping[str, Sequence[Value]] = RELEVANCE,
    seeds: int = 3,
    tasks: Iterable[str] = ("easyvqa exact_match",),
    without: Iterable[tuple[int, int, int]] = (),  # variant, seed, measure: holes
    text: str = "",  # added to all names and texts
) -> Report:
    """A sweep over all combinations of values; the first is the baseline."""
    chance = random.Random(0)
    varied = tuple(Varied(key, key.rpartition(".")[2], tuple(values)) for key, values in axes.items())
    measures = _measures(tasks, text)
    holes = set(without)
    variants = tuple(
        _variant(number, settings, varied, measures, range(seeds), holes, chance, text)
        for number, settings in enumerate(itertools.product(*axes.values()))
    )
    main = measures[0]
    ranked = [one for one in variants if main.key in one.scores]
    best = max(ranked, key=lambda one: one.scores[main.key].mean, default=None)
    compared = [_compared(one, variants[0], measure, chance) for measure in measures for one in variants[1:]
                if {one.number, 0} <= {each.number for each in variants if measure.key in each.scores}]  # fmt: skip
    return Report(
        title=f"rating_ablation{text}",
        command=f"python -m vlmkit.report sweep=sweeps/rating_ablation{text}",
        made="2026-11-24 12:00 UTC",
        step="step 900, the last one of every run",
        confidence=0.95,
        answer=Answer(
            f"relevance_min_rating 3 is best: it gains 0.031 ± 0.012 over the baseline{text}",
            (f"The difference is larger than chance explains (p = 0.0021 after correction){text}.",
             "relevance_min_rating 5 loses 0.014 ± 0.009: it keeps 31% of the turns."),
            best.number if best else None,
        ),
        varied=varied,
        seeds=tuple(range(seeds)),
        measures=measures,
        variants=variants,
        curves=tuple(_curves(key, label, variants, chance) for key, label in _curve_names(measures)),
        thresholds=_thresholds(varied, variants, measures),
        heat_maps=_heat_maps(varied, variants, measures),
        comparisons=tuple(compared),
        against_best=tuple(_compared(best, one, main, chance, corrected=False) for one in ranked if one is not best)
        if best
        else (),
        flips=tuple(_flips(variants, best, measures, text)),
        holes=tuple(
            Hole(variants[variant].runs[seed].name, f"no result of {measures[measure].label}{text}",
                 "its evaluation failed: out of memory", "python -m vlmkit.eval run=sweeps/a/r1 steps=900")
            for variant, seed, measure in sorted(holes)
        ),
        notes=(f"The runs are of two revisions of the code: 1a2b3c4, 5d6e7f8{text}.",),
        shared=(("dataset", "easyvqa_rated"), ("model", "tiny"), ("versions", "torch 2.14.1, transformers 5.23")),
    )  # fmt: skip


def _measures(tasks: Iterable[str], text: str) -> tuple[Measure, ...]:
    names = list(tasks)
    estimates = (Estimate(f"GPT-4V{text}", 0.78), Estimate("nanoVLM goal", 0.70))
    average = [Measure("average", "average", note=f"of {', '.join(names)}")] if len(names) > 1 else []
    return (
        *average,
        *(Measure(name.replace(" ", "_") + text, name + text, task=name, estimates=estimates) for name in names),
        Measure("easyvqa_exact_match.limit512", "easyvqa exact_match, first 512", task="easyvqa", limit=512),
        Measure("val_loss", "validation loss", higher_is_better=False),
    )


def _curve_names(measures: Sequence[Measure]) -> list[tuple[str, str]]:
    return [("batch_loss", "training loss"), *((each.key, each.label) for each in measures)]


def _variant(
    number: int,
    settings: tuple[Value, ...],
    varied: Sequence[Varied],
    measures: Sequence[Measure],
    seeds: range,
    holes: set[tuple[int, int, int]],
    chance: random.Random,
    text: str,
) -> Variant:
    first = [each.values[0] for each in varied]
    differing = tuple(
        (key.label, str(value)) for key, value, base in zip(varied, settings, first, strict=True) if value != base
    )
    strictness = mean(key.values.index(value) / max(len(key.values) - 1, 1)
                      for key, value in zip(varied, settings, strict=True)) if varied else 0  # fmt: skip
    level = 0.62 + 0.12 * math.sin(3 * strictness)
    of_seeds = [
        {
            measure.key: (3 - level if measure.key == "val_loss" else level) + chance.gauss(0, 0.01)
            for place, measure in enumerate(measures)
            if (number, seed, place) not in holes
        }
        for seed in seeds
    ]
    runs = tuple(_run(number, seed, scores, text) for seed, scores in zip(seeds, of_seeds, strict=True))
    spreads = {
        measure.key: _spread([scores[measure.key] for scores in of_seeds if measure.key in scores])
        for measure in measures
    }
    kept = 1 - 0.8 * strictness
    return Variant(
        number=number,
        label=", ".join(map(" ".join, differing)) + text if differing else "baseline",
        settings={key.key: value for key, value in zip(varied, settings, strict=True)},
        differences=differing,
        runs=runs,
        scores={key: spread for key, spread in spreads.items() if spread},
        kept_turns=kept,
        kept_samples=min(1, kept + 0.05),
        is_baseline=number == 0,
    )


def _run(number: int, seed: int, scores: dict[str, float], text: str) -> Run:
    return Run(
        name=f"relevance_min_rating={number},seed={seed}{text}",
        folder=f"sweeps/rating_ablation/v{number}_s{seed}",
        seed=seed,
        state="done" if scores else "stopped at step 300 of 900",
        is_done=bool(scores),
        step=900 if scores else None,
        scores=scores,
        facts=(("revision", "1a2b3c4d5e6f"), ("command", f"python -m vlmkit.train seed={seed}{text}"),
               ("hardware", "2 CPU cores"), ("took", "3 min 12 s")),
    )  # fmt: skip


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    if len(values) == 1:
        return Spread(values[0], 1)
    half = 4.3 * stdev(values) / math.sqrt(len(values))
    return Spread(mean(values), len(values), mean(values) - half, mean(values) + half)


def _compared(
    one: Variant, other: Variant, measure: Measure, chance: random.Random, corrected: bool = True
) -> Comparison:
    value = one.scores[measure.key].mean - other.scores[measure.key].mean
    half = 0.012 + 0.01 * chance.random()
    p = math.erfc(abs(value) / half * 1.4)
    seeds = (one.scores[measure.key].seeds, other.scores[measure.key].seeds)
    note = "1 seed: another seed may differ" if 1 in seeds else ""
    p_corrected = min(1.0, 4 * p) if corrected and measure.task and not measure.limit else None
    return Comparison(
        one.number, other.number, measure.key, value, value - half, value + half, p, p_corrected, seeds, 1000, note
    )


def _curves(key: str, label: str, variants: Sequence[Variant], chance: random.Random) -> Curves:
    falls = key.endswith("loss")
    steps = tuple(range(6, 901, 6)) if key == "batch_loss" else tuple(range(90, 901, 90))
    lines = []
    for variant in variants:
        if not (key == "batch_loss" or key in variant.scores):
            continue
        end = variant.scores[key].mean if key in variant.scores else 2.3
        far = [math.exp(-step / 200) * (1.5 if falls else -0.3) for step in steps]
        values = [end + one + chance.gauss(0, 0.004) for one in far]
        width = [0.01 + 0.02 * chance.random() for _ in steps]
        lines.append(
            Line(variant.number, steps, tuple(values),
                 tuple(value - one for value, one in zip(values, width, strict=True)),
                 tuple(value + one for value, one in zip(values, width, strict=True)), len(variant.runs))
        )  # fmt: skip
    note = "mean of 6 steps each" if key == "batch_loss" else ""
    return Curves(key, label, tuple(lines), not falls, note)


def _numbers(variants: Sequence[Variant]) -> dict[tuple[Value, ...], int]:
    return {tuple(one.settings.values()): one.number for one in variants}


def _thresholds(
    varied: Sequence[Varied], variants: Sequence[Variant], measures: Sequence[Measure]
) -> tuple[Thresholds, ...]:
    numbers = _numbers(variants)
    found = []
    for place, key in enumerate(varied):
        if not key.is_numeric or len(key.values) < 2:
            continue
        others = [each.values for at, each in enumerate(varied) if at != place]
        lines = []
        for rest in itertools.product(*others):
            labels = [each.label for each in varied if each is not key]
            label = ", ".join(f"{name} {value}" for name, value in zip(labels, rest, strict=True))
            settings = [(*rest[:place], value, *rest[place:]) for value in key.values]
            lines.append(ThresholdLine(label, tuple(numbers[one] for one in settings)))
        found += [Thresholds(key, measure.key, tuple(lines)) for measure in measures]
    return tuple(found)


def _heat_maps(
    varied: Sequence[Varied], variants: Sequence[Variant], measures: Sequence[Measure]
) -> tuple[HeatMap, ...]:
    if len(varied) != 2:
        return ()
    rows, columns = varied
    numbers = _numbers(variants)
    return tuple(
        HeatMap(rows, columns, measure.key,
                {(row, column): numbers[row, column] for row in rows.values for column in columns.values
                 if measure.key in variants[numbers[row, column]].scores})
        for measure in measures
    )  # fmt: skip


def _flips(
    variants: Sequence[Variant], best: Variant | None, measures: Sequence[Measure], text: str
) -> Iterable[Flips]:
    if len(variants) < 2:
        return
    other = best if best and best.number else variants[1]
    main = measures[0]
    tasks = [main] if main.task else [each for each in measures if each.task and not each.limit]
    picture = thumbnail()

    def flip(number: int, gained: bool) -> Flip:
        right, wrong = (f"red{text}",) * 3, ("blue", f"green{text}", FORMULA)
        return Flip(
            "easyvqa", number, f"What colour is the triangle number {number}?{text}", f"red{text}", (picture,),
            (wrong, right) if gained else (right, wrong), (0.0, 1.0) if gained else (1.0, 0.0),
        )  # fmt: skip

    for measure in tasks[:MOST_FLIP_TASKS]:
        yield Flips(other.number, measure.key, tuple(flip(n, True) for n in range(4)),
                    tuple(flip(n, False) for n in range(10, 12)), 45, 12, 1000)  # fmt: skip


def thumbnail() -> str:
    """A small picture as a data URI."""
    encoded = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(encoded, "WEBP")
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
