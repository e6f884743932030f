"""What varied between the runs, and which runs differ in their seed alone: these are one variant."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import yaml

from vlmkit.config import KIND, RATING_AXES
from vlmkit.errors import ConfigError
from vlmkit.reporting.sweeps.content import HeatMap, Measure, ThresholdLine, Thresholds, Value, Variant, Varied
from vlmkit.reporting.sweeps.runs import ReadRun
from vlmkit.reporting.words import listed

MOST_IN_LABEL = 3  # settings
MOST_IN_ERROR = 8  # variants
MOST_MEASURES = 4  # that are drawn over thresholds
AT_LEAST = "\N{GREATER-THAN OR EQUAL TO} "
MINIMA = tuple(f"filter.{axis}_min_rating" for axis in RATING_AXES)
OF_KIND = re.compile(rf"(.+)\.{KIND}")
ALL_MINIMA = "filter.*"  # no key of the config: the one value of all four, where they have one


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of a variant."""

    settings: Mapping[str, Value]  # of each varied key
    runs: tuple[ReadRun, ...]  # by seed


def find_varied(runs: Sequence[ReadRun]) -> tuple[Varied, ...]:
    """The keys whose values differ between runs; one that is not there counts as null."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differing = [key for key in keys if len({_text(run.settings.get(key)) for run in runs}) > 1]
    labels = _short_labels(differing)
    return tuple(Varied(key, labels[key], _ordered(run.settings.get(key) for run in runs)) for key in differing)


def group_runs(runs: Sequence[ReadRun], varied: Sequence[Varied]) -> list[Group]:
    """The variants, in the order of their first runs."""
    groups: dict[str, list[ReadRun]] = {}
    for run in runs:
        groups.setdefault(_text([run.settings.get(one.key) for one in varied]), []).append(run)
    return [
        Group({one.key: of[0].settings.get(one.key) for one in varied}, tuple(sorted(of, key=lambda run: run.seed)))
        for of in groups.values()
    ]


def find_baseline(groups: Sequence[Group], varied: Sequence[Varied], wanted: Sequence[str] | None) -> int:
    """The variant with some settings; if none are given, that of the first run.

    Args:
        groups: The variants.
        varied: What differs between them.
        wanted: KEY=VALUE of some varied keys, each by its whole name or its label.

    Raises:
        ConfigError: They fit no variant, or several.
    """
    fitting = list(range(len(groups)))
    if not wanted:
        return 0
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


def label_groups(groups: Sequence[Group], varied: Sequence[Varied], baseline: int) -> list[str]:
    """A short name for each variant, all different: what differs from the baseline."""
    if len(groups) == 1:
        return ["all runs"]
    labels: list[str] = []
    for number, group in enumerate(groups):
        own = _differing(group, groups[baseline], varied)
        label = _baseline_label(group, varied) if number == baseline else _label(group, own)
        labels.append(f"{label} ({number})" if label in labels else label)
    return labels


def _differing(group: Group, other: Group, varied: Sequence[Varied]) -> list[Varied]:
    """What of a group differs, but for keys that only the other has, as its option is of another kind."""
    own = [one for one in varied if _text(group.settings[one.key]) != _text(other.settings[one.key])]
    other_kind = tuple(f"{kind[1]}." for one in own if (kind := OF_KIND.fullmatch(one.key)))
    return [one for one in own if not (one.key.startswith(other_kind) and group.settings[one.key] is None)]


def _baseline_label(group: Group, varied: Sequence[Varied]) -> str:
    """As in "baseline (all ≥ 3)", where its settings are so short to say."""
    told = _told(group.settings, varied)
    return f"baseline ({told[0]})" if len(told) == 1 else "baseline"


def _told(settings: Mapping[str, Value], varied: Sequence[Varied]) -> list[str]:
    """Settings in words: the four minima as one if they are the same."""
    value = _of_all_minima(settings) if {*MINIMA} <= {one.key for one in varied} else None
    others = [one for one in varied if value is None or one.key not in MINIMA]
    together = [] if value is None else [f"all {AT_LEAST}{value}"]
    return together + [describe_settings(settings, [one]) for one in others]


def _label(group: Group, own: Sequence[Varied]) -> str:
    return listed(_told(group.settings, own), MOST_IN_LABEL, ", ")


def describe_settings(settings: Mapping[str, Value], varied: Iterable[Varied]) -> str:
    """As in "relevance_min_rating 3, seq_length 512"."""
    return ", ".join(f"{one.label} {show_value(settings[one.key])}" for one in varied)


def show_value(value: Value) -> str:
    """As it is written on the command line; numbers short."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def find_joint(varied: Sequence[Varied], groups: Sequence[Group]) -> Varied | None:
    """All rating minima together, as far as variants have one value for them; None: that is no axis."""
    if not {*MINIMA} <= {one.key for one in varied}:
        return None
    of_groups = (_of_all_minima(group.settings) for group in groups)
    values = _ordered(value for value in of_groups if value is not None)
    return Varied(ALL_MINIMA, "all together", values) if len(values) > 1 else None


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
    axes = [(one, {one.key}) for one in varied] + ([(joint, {*MINIMA})] if joint else [])
    for one, keys in axes:
        own = [each for each in variants if each.settings[one.key] is not None]
        axis = replace(one, values=_ordered(each.settings[one.key] for each in own))
        others = [other for other in varied if other.key not in keys]
        if axis.is_numeric and (lines := _lines(own, axis, others)):
            found += [Thresholds(axis, measure.key, lines) for measure in measures[:MOST_MEASURES]]
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
            describe_settings(line[0].settings, told),
            tuple(variant.number for variant in sorted(line, key=place)),
        )
        for line in several
    )


def find_heat_maps(variants: Sequence[Variant], varied: Sequence[Varied], measure: Measure) -> tuple[HeatMap, ...]:
    """For each two keys that were changed both alone and at once, all else being as in the baseline."""
    baseline = next(variant for variant in variants if variant.is_baseline)
    found = []
    for rows, columns in combinations(varied, 2):
        others = [one for one in varied if one not in (rows, columns)]
        own = [v for v in variants if all(_same(v, baseline, other) for other in others)]
        cells = {(v.settings[rows.key], v.settings[columns.key]): v.number for v in own}
        at_once = any(not _same(v, baseline, rows) and not _same(v, baseline, columns) for v in own)
        if at_once and all(map(_has_line, zip(*cells, strict=True))):
            kept_rows, kept_columns = (
                replace(one, values=_ordered(v.settings[one.key] for v in own)) for one in (rows, columns)
            )
            found.append(HeatMap(kept_rows, kept_columns, measure.key, cells))
    return tuple(found)


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
    """The ends of dotted keys that tell them apart; a kind is called by the name of its group."""
    labels = {}
    for key in keys:
        if kind := OF_KIND.fullmatch(key):
            labels[key] = kind[1]
            continue
        parts = key.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        labels[key] = next(
            (end for end in ends if not any(f".{other}".endswith(f".{end}") for other in keys if other != key)), key
        )
    return labels
