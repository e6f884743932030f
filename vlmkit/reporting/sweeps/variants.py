"""What varied between the runs, and which runs differ in their seed alone: these are one variant."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import yaml

from vlmkit.errors import ConfigError
from vlmkit.reporting.sweeps.content import HeatMap, Measure, ThresholdLine, Thresholds, Value, Variant, Varied
from vlmkit.reporting.sweeps.runs import ReadRun

MOST_IN_LABEL = 3  # settings
MOST_MEASURES = 4  # that are drawn over thresholds
AT_LEAST = "\N{GREATER-THAN OR EQUAL TO} "


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of a variant."""

    settings: Mapping[str, Value]  # of each varied key
    runs: tuple[ReadRun, ...]  # by seed


@dataclass(frozen=True, slots=True)
class Joint:
    """An axis of several keys of one config group, which have the same value."""

    varied: Varied  # its key is no key of the config
    keys: tuple[str, ...]


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
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        raise ConfigError(f"{key}: fits {found}; there are: {'; '.join(shown[:8])}{more}")
    return fitting[0]


def label_groups(groups: Sequence[Group], varied: Sequence[Varied], joint: Sequence[Joint], baseline: int) -> list[str]:
    """A short name for each variant, all different: what differs from the baseline."""
    if len(groups) == 1:
        return ["all runs"]
    labels: list[str] = []
    for number, group in enumerate(groups):
        label = "baseline" if number == baseline else _label(group, groups[baseline], varied, joint)
        labels.append(f"{label} ({number})" if label in labels else label)
    return labels


def _label(group: Group, baseline: Group, varied: Sequence[Varied], joint: Sequence[Joint]) -> str:
    own = [one for one in varied if _text(group.settings[one.key]) != _text(baseline.settings[one.key])]
    told = []
    for axis in joint:
        value, on_axis = _one_value(group.settings, axis.keys), [one for one in own if one.key in axis.keys]
        if len(on_axis) > 1 and value is not None:
            are_minima = all(key.endswith("_min_rating") for key in axis.keys)
            told.append(f"all {AT_LEAST if are_minima else ''}{show_value(value)}")
            own = [one for one in own if one not in on_axis]
    told += [describe_settings(group.settings, [one]) for one in own]
    more = f" and {len(told) - MOST_IN_LABEL} more" if len(told) > MOST_IN_LABEL else ""
    return ", ".join(told[:MOST_IN_LABEL]) + more


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


def find_joint(varied: Sequence[Varied], groups: Sequence[Group]) -> tuple[Joint, ...]:
    """For each config group with several numeric keys that varied: all of them together, where they have one value.

    There must be two such values at least, or it is no axis.
    """
    found = []
    numeric = [one.key for one in varied if one.is_numeric]
    for parent in dict.fromkeys(key.rpartition(".")[0] for key in numeric):
        keys = tuple(key for key in numeric if key.rpartition(".")[0] == parent)
        of_groups = (_one_value(group.settings, keys) for group in groups)
        values = _ordered(value for value in of_groups if value is not None)
        if len(keys) > 1 and len(values) > 1:
            found.append(Joint(Varied(f"{parent}.*", "all together", values), keys))
    return tuple(found)


def with_joint(settings: Mapping[str, Value], joint: Sequence[Joint]) -> dict[str, Value]:
    """Settings, and the value on each joint axis: None if the variant is not on it."""
    return dict(settings) | {axis.varied.key: _one_value(settings, axis.keys) for axis in joint}


def _one_value(settings: Mapping[str, Value], keys: Sequence[str]) -> Value:
    """That some keys have; None if they have several."""
    return settings[keys[0]] if len({_text(settings[key]) for key in keys}) == 1 else None


def find_thresholds(
    variants: Sequence[Variant], varied: Sequence[Varied], joint: Sequence[Joint], measures: Sequence[Measure]
) -> tuple[Thresholds, ...]:
    """For each numeric key the variants that differ in it alone, and each of the first measures.

    Args:
        variants: Their settings have values on joint axes, too.
        varied: What differs between them.
        joint: Axes of several keys, whose variants differ in all of these.
        measures: The main one first.
    """
    found = []
    axes = [(one, (one.key,)) for one in varied if one.is_numeric] + [(axis.varied, axis.keys) for axis in joint]
    for one, keys in axes:
        others = [other for other in varied if other.key not in keys]
        lines = _lines([each for each in variants if each.settings[one.key] is not None], one, others)
        if lines:
            found += [Thresholds(one, measure.key, lines) for measure in measures[:MOST_MEASURES]]
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
    """For each two keys of which both were changed at once, all else being as in the baseline."""
    baseline = next(variant for variant in variants if variant.is_baseline)
    found = []
    for rows, columns in combinations(varied, 2):
        others = [one for one in varied if one not in (rows, columns)]
        own = [v for v in variants if all(_same(v, baseline, other) for other in others)]
        if any(not _same(v, baseline, rows) and not _same(v, baseline, columns) for v in own):
            cells = {(v.settings[rows.key], v.settings[columns.key]): v.number for v in own}
            kept_rows, kept_columns = (
                replace(one, values=_ordered(v.settings[one.key] for v in own)) for one in (rows, columns)
            )
            found.append(HeatMap(kept_rows, kept_columns, measure.key, cells))
    return tuple(found)


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
