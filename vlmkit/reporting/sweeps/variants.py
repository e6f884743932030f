"""What varied between the runs, and which runs differ in their seed alone: these are one variant."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import yaml

from vlmkit.config import RATING_AXES
from vlmkit.errors import ConfigError
from vlmkit.reporting.sweeps.content import HeatMap, Measure, ThresholdLine, Thresholds, Value, Variant, Varied
from vlmkit.reporting.sweeps.runs import ReadRun
from vlmkit.reporting.sweeps.wording import show_value
from vlmkit.reporting.words import listed

MOST_IN_LABEL = 3  # settings
MOST_IN_ERROR = 8  # variants
MOST_MEASURES = 4  # that are drawn over thresholds
AT_LEAST = "\N{GREATER-THAN OR EQUAL TO} "
MINIMA = tuple(f"filter.{axis}_min_rating" for axis in RATING_AXES)
ALL_MINIMA = "filter.*"  # no key of the config: the one value of all four, where they have one
ALL_RATINGS = "all ratings"  # its label

Told = tuple[tuple[str, str], ...]  # settings in words: name and value of each


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of a variant."""

    settings: Mapping[str, Value]  # of each varied key
    runs: tuple[ReadRun, ...]  # by seed


def find_varied(runs: Sequence[ReadRun]) -> tuple[Varied, ...]:
    """The keys whose values differ between runs; one that is not there counts as null."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differing = [key for key in keys if len({_text(run.settings.get(key)) for run in runs}) > 1]
    differing = [key for key in differing if not _comes_with_kind(key, runs, differing)]
    labels = _short_labels(differing)
    return tuple(Varied(key, labels[key], _ordered(run.settings.get(key) for run in runs)) for key in differing)


def _comes_with_kind(key: str, runs: Sequence[ReadRun], differing: Sequence[str]) -> bool:
    """Whether only options of another kind lack a key, and all others have one value of it: the kind says it all."""
    kind = key.partition(".")[0]
    having = [run.settings[key] for run in runs if key in run.settings]
    return key != kind and kind in differing and len(having) < len(runs) and len(set(map(_text, having))) == 1


def group_runs(runs: Sequence[ReadRun], varied: Sequence[Varied]) -> list[Group]:
    """The variants, in the order of their first runs."""
    groups: dict[str, list[ReadRun]] = {}
    for run in runs:
        groups.setdefault(_text([run.settings.get(one.key) for one in varied]), []).append(run)
    return [
        Group({one.key: of[0].settings.get(one.key) for one in varied}, tuple(sorted(of, key=lambda run: run.seed)))
        for of in groups.values()
    ]


def without_copies(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """One run for each seed, the furthest: the same once more tells nothing of other seeds.

    Returns:
        The groups, and a note for each run that is left out.
    """
    notes = []
    kept = []
    for group in groups:
        of_seeds: dict[int, ReadRun] = {}
        for run in sorted(group.runs, key=lambda run: (run.reached, len(run.results)), reverse=True):
            first = of_seeds.setdefault(run.seed, run)
            if run is not first:
                notes.append(f"{run.name} is left out: it has the same settings and seed as {first.name}")
        kept.append(replace(group, runs=tuple(of_seeds[seed] for seed in sorted(of_seeds))))
    return kept, notes


def find_baseline(
    groups: Sequence[Group], varied: Sequence[Varied], wanted: Sequence[str] | None, of_first_job: Sequence[ReadRun]
) -> int:
    """The variant with some settings; if none are given, that of the first job, else of the first run.

    Args:
        groups: The variants.
        varied: What differs between them.
        wanted: KEY=VALUE of some varied keys, each by its whole name or its label.
        of_first_job: Runs of the first job's variant, as far as some have begun.

    Raises:
        ConfigError: They fit no variant, or several.
    """
    fitting = list(range(len(groups)))
    if not wanted:
        first = [_text({one.key: run.settings.get(one.key) for one in varied}) for run in of_first_job]
        return next((number for number in fitting if _text(groups[number].settings) in first), 0)
    key = f"baseline=[{','.join(wanted)}]"
    names = {name: one.key for one in varied for name in (one.key, one.label)}
    for setting in wanted:
        name, _, value = setting.partition("=")
        if name not in names:
            keys = ", ".join(one.key for one in varied)
            raise ConfigError(f"{key}: {name} does not differ between the runs; what does: {keys or 'the seed alone'}")
        fitting = [number for number in fitting if _fits(groups[number].settings[names[name]], value)]
    if len(fitting) != 1:
        found = "no variant" if not fitting else f"{len(fitting)} variants"
        shown = [describe_settings(group.settings, varied) for group in groups]
        raise ConfigError(f"{key}: fits {found}; there are: {listed(shown, MOST_IN_ERROR)}")
    return fitting[0]


def tell_differences(groups: Sequence[Group], varied: Sequence[Varied], baseline: int) -> list[Told]:
    """What each variant differs in from the baseline."""
    return [_told(group.settings, _differing(group, groups[baseline], varied), varied) for group in groups]


def label_groups(
    groups: Sequence[Group], differences: Sequence[Told], varied: Sequence[Varied], baseline: int
) -> list[str]:
    """A short name for each variant, all different: what differs from the baseline."""
    if len(groups) == 1:
        return ["all runs"]
    labels: list[str] = []
    for number, own in enumerate(differences):
        named = listed([" ".join(setting) for setting in own], MOST_IN_LABEL, ", ")
        label = _baseline_label(groups[baseline], varied) if number == baseline else named
        labels.append(f"{label} ({number + 1})" if label in labels else label)
    return labels


def _differing(group: Group, other: Group, varied: Sequence[Varied]) -> list[Varied]:
    """What of a group differs, but for keys that only the other has, as its option is of another kind."""
    own = [one for one in varied if _text(group.settings[one.key]) != _text(other.settings[one.key])]
    other_kind = tuple(f"{one.key}." for one in own if "." not in one.key)
    return [one for one in own if one.key in group.runs[0].settings or not one.key.startswith(other_kind)]


def _baseline_label(group: Group, varied: Sequence[Varied]) -> str:
    """As in "baseline (all ratings ≥ 3)", where its settings are so short to say."""
    told = _told(group.settings, varied, varied)
    return f"baseline ({' '.join(told[0])})" if len(told) == 1 else "baseline"


def _told(settings: Mapping[str, Value], own: Sequence[Varied], varied: Sequence[Varied]) -> Told:
    """Some settings in words: several rating minima as one if all four vary and have one value here."""
    minima = [one for one in own if one.key in MINIMA]
    value = _of_all_minima(settings) if len(minima) > 1 and {*MINIMA} <= {one.key for one in varied} else None
    if value is None:
        return tuple((one.label, show_value(settings[one.key])) for one in own)
    others = [(one.label, show_value(settings[one.key])) for one in own if one not in minima]
    return ((ALL_RATINGS, f"{AT_LEAST}{value}"), *others)


def describe_settings(settings: Mapping[str, Value], varied: Iterable[Varied]) -> str:
    """As in "relevance_min_rating 3, seq_length 512"."""
    return ", ".join(f"{one.label} {show_value(settings[one.key])}" for one in varied)


def find_joint(varied: Sequence[Varied], groups: Sequence[Group]) -> Varied | None:
    """All rating minima together, as far as variants have one value for them; None: that is no axis."""
    if not {*MINIMA} <= {one.key for one in varied}:
        return None
    of_groups = (_of_all_minima(group.settings) for group in groups)
    values = _ordered(value for value in of_groups if value is not None)
    return Varied(ALL_MINIMA, ALL_RATINGS, values) if len(values) > 1 else None


def with_joint(settings: Mapping[str, Value], joint: Varied | None) -> Mapping[str, Value]:
    """Settings, and the value on the joint axis: None if the variant is not on it."""
    return settings if joint is None else {**settings, joint.key: _of_all_minima(settings)}


def _of_all_minima(settings: Mapping[str, Value]) -> Value:
    """The value that they have; None if they have several."""
    values = {settings[key] for key in MINIMA}
    return values.pop() if len(values) == 1 else None


def find_thresholds(
    variants: Sequence[Variant], varied: Sequence[Varied], joint: Varied | None, measures: Sequence[Measure]
) -> tuple[Thresholds, ...]:
    """For each key with numbers the variants that differ in it alone, and each of the first measures.

    A variant without a number there, as another option of the group has no such key, has no place on the axis.

    Args:
        variants: Their settings have values on the joint axis, too.
        varied: What differs between them.
        joint: The axis of all rating minima, whose variants differ in all of these.
        measures: The main one first.
    """
    found = []
    for one in [*varied, *([joint] if joint else [])]:
        own = [each for each in variants if each.settings[one.key] is not None]
        axis = replace(one, values=_ordered(each.settings[one.key] for each in own))
        others = [other for other in varied if other.key not in _keys_of(one)]
        if axis.is_numeric and (lines := _lines(own, axis, others)):
            on_lines = (variants[number] for line in lines for number in line.variants)
            shown = replace(axis, values=_ordered(each.settings[one.key] for each in on_lines))
            found += [Thresholds(shown, measure.key, lines) for measure in measures[:MOST_MEASURES]]
    return tuple(found)


def _lines(variants: Sequence[Variant], one: Varied, others: Sequence[Varied]) -> tuple[ThresholdLine, ...]:
    alike: dict[str, list[Variant]] = {}
    for variant in variants:
        alike.setdefault(_text([variant.settings[other.key] for other in others]), []).append(variant)
    several = [line for line in alike.values() if len(line) > 1]
    # What all lines have is not worth a word.
    told = [other for other in others if len({_text(line[0].settings[other.key]) for line in several}) > 1]

    def place(variant: Variant) -> int:
        return one.values.index(variant.settings[one.key])

    return tuple(
        ThresholdLine(
            ", ".join(map(" ".join, _told(line[0].settings, told, others))),
            tuple(variant.number for variant in sorted(line, key=place)),
        )
        for line in several
    )


def find_heat_maps(
    variants: Sequence[Variant], varied: Sequence[Varied], joint: Varied | None, measure: Measure
) -> tuple[HeatMap, ...]:
    """For each two axes that were changed both alone and at once, all else being as in the baseline.

    Args:
        variants: Their settings have values on the joint axis, too.
        varied: What differs between them.
        joint: The axis of all rating minima.
        measure: What is shown.
    """
    baseline = next(variant for variant in variants if variant.is_baseline)
    found = []
    for rows, columns in combinations([*varied, *([joint] if joint else [])], 2):
        keys = _keys_of(rows) | _keys_of(columns)
        if len(keys) < len(_keys_of(rows)) + len(_keys_of(columns)):  # one of the four minima is none beside all four
            continue
        others = [one for one in varied if one.key not in keys]
        placed = [v for v in variants if joint not in (rows, columns) or v.settings[ALL_MINIMA] is not None]
        own = [v for v in placed if all(_same(v, baseline, other) for other in others)]
        cells = {(v.settings[rows.key], v.settings[columns.key]): v.number for v in own}
        at_once = any(not _same(v, baseline, rows) and not _same(v, baseline, columns) for v in own)
        if at_once and all(map(_has_line, zip(*cells, strict=True))):
            kept_rows, kept_columns = (
                replace(one, values=_ordered(v.settings[one.key] for v in own)) for one in (rows, columns)
            )
            found.append(HeatMap(kept_rows, kept_columns, measure.key, cells))
    return tuple(found)


def _keys_of(axis: Varied) -> set[str]:
    """The keys of the config that change along an axis."""
    return {*MINIMA} if axis.key == ALL_MINIMA else {axis.key}


def _has_line(values: Iterable[Value]) -> bool:
    """Whether a value comes twice. Where none does, two keys only ever change together: no map of the two."""
    return max(Counter(map(_text, values)).values()) > 1


def _same(one: Variant, other: Variant, varied: Varied) -> bool:
    return _text(one.settings[varied.key]) == _text(other.settings[varied.key])


def _fits(value: Value, said: str) -> bool:
    """Whether a value is what a command line says: 1 is 1.0, and a text may look like a number."""
    try:
        read: Any = yaml.safe_load(said)
    except yaml.YAMLError:
        read = said
    return said == show_value(value) or (type(read) is not bool and type(value) is not bool and read == value)


def _text(value: Any) -> str:
    """The same for values that are the same, and true is not 1."""
    return json.dumps(value)


def _ordered(values: Iterable[Value]) -> tuple[Value, ...]:
    """Each once: numbers by size, else as they come; null first."""
    distinct = list({_text(value): value for value in values}.values())
    if all(isinstance(value, int | float) or value is None for value in distinct):
        return tuple(sorted(distinct, key=lambda value: (value is not None, value or 0)))
    return tuple(sorted(distinct, key=lambda value: value is not None))


def _short_labels(keys: Sequence[str]) -> dict[str, str]:
    """The ends of dotted keys that tell them apart."""
    labels = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        labels[key] = next(
            (end for end in ends if not any(f".{other}".endswith(f".{end}") for other in keys if other != key)), key
        )
    return labels
