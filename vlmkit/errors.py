"""The errors that a user can cause and put right."""

import errno
from collections import Counter

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """Something the user can put right: commands print it as one line, without a traceback.

    Raise it where the cause is known; the message names the key, file or sample and the way out.
    """


class ConfigError(UserError):
    """A configuration that cannot work; the message starts with the full key."""


class DataError(UserError):
    """Data that cannot be used; the message names the source and the sample."""


def one_line(error: BaseException) -> str:
    """Type and message of an error of foreign code, for people who cannot do anything with its traceback."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def is_full_disk(error: Exception) -> bool:
    """Whether there was no room to write: the user's to put right, and what was begun can go on then."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def describe_counts(reasons: Counter[str]) -> str:
    """Reasons with how often each was met, the most frequent first."""
    return ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common())


class BadSampleError(DataError):
    """One sample that cannot be learnt from: it is skipped, counted under its reason and named in the log."""

    def __init__(self, reason: str, name: str, detail: str = "") -> None:
        super().__init__(f"{name}: {reason}: {detail}" if detail else f"{name}: {reason}")
        self.reason = reason  # one of a few, so that they can be counted
        self.name = name  # source and row
        self.detail = detail

    def __reduce__(self) -> tuple[type["BadSampleError"], tuple[str, str, str]]:
        """Made again from its parts after it has travelled from a worker."""
        return type(self), (self.reason, self.name, self.detail)
