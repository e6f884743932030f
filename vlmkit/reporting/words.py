"""Numbers as the reports word them. Nothing heavy is imported here."""

from collections.abc import Sequence


def share(value: float) -> str:
    """A share in per cent; neither nothing nor all unless it is exactly that."""
    percent = f"{value:.1%}"
    if percent == "100.0%":
        return "100%" if value == 1 else ">99.9%"
    if percent == "0.0%":
        return "0%" if value == 0 else "<0.1%"
    return percent


def listed(names: Sequence[str], most: int, separator: str = "; ") -> str:
    """Names behind each other; of more than so many, how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def count_of(number: int, noun: str) -> str:
    """So many of something, in words: 1 turn, 2 turns."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"
