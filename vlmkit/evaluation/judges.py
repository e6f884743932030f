"""Tasks whose scores come from another model, asked over the network: found by following their code.

lmms-eval does not say which tasks these are, and many a module imports a judge that only some of its tasks use.
"""

import ast
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

OPENAI, AZURE = ("OPENAI_API_KEY",), ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY")
BY_API_TYPE = {  # what API_TYPE chooses in lmms-eval; without it some tasks take OpenAI and some Azure
    "": (*OPENAI, *AZURE),
    "openai": OPENAI,
    "async_openai": OPENAI,
    "azure": AZURE,
    "async_azure": AZURE,
    "bedrock": ("AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"),
    "local": ("LLM_JUDGE_URL",),
}
GOOGLE = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
JUDGES: dict[str, tuple[str, ...] | None] = {  # module → what it can be asked with, any of; None: see BY_API_TYPE
    "lmms_eval.llm_judge": None,
    "lmms_eval.verifiers.openai": None,
    "lmms_eval.verifiers.gemini": GOOGLE,
    "openai": None,
    "anthropic": ("ANTHROPIC_API_KEY",),
    "google.generativeai": GOOGLE,
    "google.genai": GOOGLE,
    "reka": ("REKA_API_KEY",),
    "requests": None,
    "sglang": (),  # a model that the task's own code starts or expects on this machine
    "vllm": (),
}
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


def why_not_asked(judge: str) -> str | None:
    """Why a judge that ``find_judge`` has found cannot be asked here, to go on after its name; None if it can."""
    keys = JUDGES[judge]
    if keys is None:
        keys = BY_API_TYPE.get(os.environ.get("API_TYPE", "").lower(), BY_API_TYPE[""])
    if any(os.environ.get(name) for name in keys):
        return None
    return f"for which there is no key: set {' or '.join(keys)}" if keys else "which vlmkit does not run beside its own"


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
            # Imported inside the function, or where the import failed; or an attribute or a builtin: no judge's name.
            yield _imports(function.__code__.co_filename).get(name, name)
            continue
        value = function.__globals__[name]
        yield value
        if isinstance(value, ModuleType) and _is_followed(value):
            yield from (vars(value)[inner] for inner in names & vars(value).keys())


@cache
def _imports(path: str) -> Mapping[str, str]:
    """What the import statements of a file name, and from which module."""
    if not Path(path).is_file():
        return {}
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(Path(path).read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found |= dict.fromkeys((alias.name, alias.asname or alias.name), f"{node.module}.{alias.name}")
    return found


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
