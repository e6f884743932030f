"""Secrets are kept out of what a run writes and prints: they become ``***``.

A secret is the value of an environment variable with a telling name, the user and password of a URL, a value under a
telling name (``api_key=…``), or a string in the form that a service gives its keys.
"""

import os
import re
from typing import TypeVar

T = TypeVar("T")

HIDDEN = "***"
MIN_LENGTH = 8  # a shorter value (a number of keys, "true") is part of too much that is no secret
SECRET_NAME = re.compile(
    r"((^|[_-])(api_?key|key|pat|pass)|[_-]pwd|token|secret|passw(or)?d|passphrase|credentials?|webhook)$",
    re.IGNORECASE,
)
PATTERNS = (
    (re.compile(r"(://)[^/\s@]+@"), rf"\1{HIDDEN}@"),  # user:password@ of a URL
    (
        re.compile(r"((?:key|token|secret|password|passwd|sig|signature|credential)=)[^\s&'\",]{8,}", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    # Hugging Face, wandb, GitHub, OpenAI and its like, AWS, Slack
    (re.compile(r"\b(?:hf_|wandb_v\d_|gh[pousr]_|github_pat_|sk-|AKIA|xox[a-z]-)[\w-]{12,}"), HIDDEN),
)


def redact(value: T) -> T:
    """The same value, with secrets hidden in every string of it; dicts and lists are gone through."""
    redacted: object = value
    if isinstance(value, str):
        redacted = _redact_text(value)
    elif isinstance(value, dict):
        redacted = {key: HIDDEN if _is_secret(key, inner) else redact(inner) for key, inner in value.items()}
    elif isinstance(value, list | tuple):
        redacted = type(value)(redact(inner) for inner in value)
    return redacted  # type: ignore[return-value]


def _redact_text(text: str) -> str:
    for secret in _secrets_of_the_environment():
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _secrets_of_the_environment() -> list[str]:
    """The longest first: one may be part of another."""
    return sorted((value for name, value in os.environ.items() if _is_secret(name, value)), key=len, reverse=True)


def _is_secret(name: object, value: object) -> bool:
    named = isinstance(name, str) and SECRET_NAME.search(name) is not None
    return named and isinstance(value, str) and len(value) >= MIN_LENGTH
