"""Tasks whose scores come from another model, asked over the network: found by following their code.

lmms-eval does not say which tasks these are, and many a module imports a judge that only some of its tasks use.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

JUDGES = (
    "lmms_eval.llm_judge",
    "lmms_eval.verifiers.openai",
    "lmms_eval.verifiers.gemini",
    "openai",
    "anthropic",
    "google.generativeai",
    "requests",
)
KEYS = ("OPENAI_API_KEY", "AZURE_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY", "LLM_JUDGE_URL")
FOLLOWED = "lmms_eval"  # a part of the path of files whose code is followed


def find_judge(functions: Iterable[Callable[..., Any]]) -> str | None:
    """The module through which the functions, or what they call, ask another model; None if they do not."""
    waiting: list[Any] = list(functions)
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if judge := _judge_of(found):
            return judge
        waiting += _reached_from(found)
    return None


def has_key() -> bool:
    """Whether the environment says how a judge can be asked."""
    return any(os.environ.get(name) for name in KEYS)


def _judge_of(found: Any) -> str | None:
    if isinstance(found, str):
        module = found  # imported inside a function
    elif isinstance(found, ModuleType):
        module = found.__name__
    else:
        module = getattr(found, "__module__", None) or type(found).__module__
    return next((judge for judge in JUDGES if f"{module}.".startswith(f"{judge}.")), None)


def _reached_from(found: Any) -> Iterator[Any]:
    """What a function, a class or an object of lmms-eval's mentions."""
    if isinstance(found, partial):
        yield found.func
    elif isinstance(found, MethodType):
        yield found.__func__
        yield type(found.__self__)
    elif isinstance(found, FunctionType):
        yield from _reached_from_function(found)
    elif isinstance(found, type):
        if _is_followed(sys.modules.get(found.__module__)) or _has_followed_code(found):
            yield from vars(found).values()
            yield from found.__bases__
    elif isinstance(found, staticmethod | classmethod):
        yield found.__func__
    elif not isinstance(found, str | ModuleType):
        yield type(found)


def _reached_from_function(function: FunctionType) -> Iterator[Any]:
    if FOLLOWED not in function.__code__.co_filename:
        return
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        yield wrapped
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not set yet
            continue
    names = set(_names(function.__code__))
    for name in names:
        if name not in function.__globals__:
            yield name  # of a module, if it is imported here; of an attribute or a builtin, which name no judge
            continue
        value = function.__globals__[name]
        yield value
        if isinstance(value, ModuleType) and _is_followed(value):
            yield from (vars(value)[inner] for inner in names & vars(value).keys())


def _names(code: CodeType) -> Iterator[str]:
    """Names that a function's code and the functions inside it mention."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_followed(module: ModuleType | None) -> bool:
    return FOLLOWED in (getattr(module, "__file__", None) or "")


def _has_followed_code(cls: type) -> bool:
    """Whether a class is of a file that was loaded by its path, and so is no module that is known by name."""
    codes = (getattr(value, "__code__", None) for value in vars(cls).values())
    return any(code is not None and FOLLOWED in code.co_filename for code in codes)
