"""Write docs/configuration.md: every option of every group and every key, from conf/ and vlmkit/config.py.

    python docs/make_configuration.py

What an option or a key means is the comment where it is defined, so the page has nothing of its own to keep up to date.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import Enum
from itertools import groupby
from pathlib import Path
from textwrap import dedent, indent
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import yaml
from omegaconf import MISSING

from vlmkit import config, index
from vlmkit.config import SCHEMAS
from vlmkit.paths import config_dir
from vlmkit.pretrained.configs import flat_items
from vlmkit.reporting.sweeps.wording import show_value

PAGE = Path(__file__).parent / "configuration.md"
COMMAND = "python docs/make_configuration.py"
INTRO = f"""\
# Configuration

Made by `{COMMAND}` from [conf/](../conf) and [vlmkit/config.py](../vlmkit/config.py); change those, not this page.

A run is composed of *groups*. `group=option` chooses one of a group's options, which is a file in conf/;
`group.key=value` changes one key. Options of datasets, models and experiments choose what goes with them; what the
command line says wins. A misspelt key or a value that cannot be is refused in one line that names the valid ones.

    python -m vlmkit.train dataset=finevision filter=recommended trainer.batch_size=4
    python -m vlmkit.train --cfg job                                            prints what it all comes to
    python -m vlmkit.train -m seed=0,1,2 hydra.sweep.dir=runs/seeds             a sweep, and where it lies

The *default* is what a key has where neither the chosen options nor the command line set it. *text or null*: the key
may be empty, and null does what its line says.
"""
PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "see there"}
PRINTED_IN = {  # classes that others extend or hold: where their keys are listed
    config.JobConfig: "cluster",
    config.TrainConfig: "vlmkit.train",
    config.StatusConfig: "vlmkit.status",
}


class NoCommentError(ValueError):
    """A key that nobody has explained."""


@dataclass
class Writer:
    """Collects the lines of the page, and the keys that lack a comment."""

    comments: Mapping[tuple[str, str], str]  # (class, field or member) → its comment
    lines: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        """Add a paragraph, list or table, and an empty line."""
        self.lines += [*lines, ""]

    def table(self, cls: type, names: list[str], prefix: str) -> None:
        """Add the table of some keys of a class."""
        of_name = {each.name: each for each in fields(cls)}
        rows = [
            f"| `{prefix}{name}` | {type_text(of_name[name].type)} | {default_text(of_name[name])} "
            f"| {escaped(self.meaning(cls, of_name[name]))} |"
            for name in names
        ]
        if rows:
            self.say("| key | type | default | meaning |", "|---|---|---|---|", *rows)

    def meaning(self, cls: type, key: Field[Any]) -> str:
        """The comment of a key, there or in a class that it extends, and those of its choices."""
        kind = inner(key.type)
        told = [self.comments.get((each.__name__, key.name), "") for each in cls.__mro__]
        text = next(filter(None, told), "")
        if not text and isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, Enum)):
            text = (kind.__doc__ or "").split("\n\n")[0]
        if not text:
            self.silent.append(f"{cls.__name__}.{key.name}")
        members = kind if isinstance(kind, type) and issubclass(kind, Enum) else ()
        choices = [(member.value, self.comments.get((kind.__name__, member.name))) for member in members]
        return "; ".join([text.rstrip("."), *(f"`{value}`: {comment}" for value, comment in choices if comment)])


def make_page() -> str:
    """The text of docs/configuration.md.

    Raises:
        NoCommentError: A key has no comment in vlmkit/config.py.
    """
    writer = Writer(read_comments(Path(config.__file__).read_text()))
    groups: dict[str, list[type]] = {}
    commands = {}
    for name, (group, cls) in SCHEMAS.items():
        if group is None:
            commands[f"vlmkit.{name.removesuffix('_schema')}"] = cls
        else:
            groups.setdefault(group, []).append(cls)
    writer.say(INTRO.rstrip("\n"))
    writer.say("Groups: " + ", ".join(link(name) for name in [*groups, "experiment"]) + ".")
    writer.say("Commands and their own keys: " + ", ".join(link(name) for name in [*commands, index.__name__]) + ".")
    for group, classes in groups.items():
        write_group(writer, group, classes)
    writer.say("## experiment")
    writer.say("Whole experiments: they choose options of the groups above, and set what differs.")
    writer.say(*map(option_line, option_files("experiment")))
    for name, cls in commands.items():
        write_command(writer, name, cls)
    write_index(writer)
    if writer.silent:
        raise NoCommentError(f"vlmkit/config.py: no comment says what this means: {', '.join(writer.silent)}")
    return "\n".join(writer.lines).rstrip("\n") + "\n"


def write_group(writer: Writer, group: str, classes: list[type]) -> None:
    """A group: what it is, its options, its keys."""
    prefix = group.replace("/", ".") + "."
    shared = shared_class(classes)
    writer.say(f"## {group}")
    if shared:
        writer.say(said_of(shared))
    writer.say(*map(option_line, option_files(group)))
    if shared:
        write_class(writer, shared, prefix, [each.name for each in fields(shared)])
    for cls in classes if len(classes) > 1 else ():
        users = [path.stem for path in option_files(group) if schema_of(path) is cls]
        own = [name for name in cls.__annotations__ if not name.startswith("_")]
        if own:
            writer.say(f"### {', '.join(f'{group}={name}' for name in users)}")
            writer.say(said_of(cls))
            write_class(writer, cls, prefix, own)
            write_base(writer, cls)


def write_command(writer: Writer, name: str, cls: type) -> None:
    """A command: how it is called, its own keys, the groups that it composes."""
    command, *_ = header(config_dir() / f"{name.removeprefix('vlmkit.')}.yaml")
    own = [each for each in fields(cls) if each.name in cls.__annotations__]
    groups = [each.name for each in own if group_of(each.type) == each.name]
    writer.say(f"## {name}")
    writer.say(said_of(cls))
    writer.say(f"    {command}")
    write_class(writer, cls, "", [each.name for each in own if each.name not in groups])
    if groups:
        writer.say(f"And the groups {', '.join(map(link, groups))}.")
    write_base(writer, cls)


def write_index(writer: Writer) -> None:
    """The command without a config of its own: what its module says first, and how it is called."""
    said, command, *_ = (index.__doc__ or "").split("\n\n")
    writer.say(f"## {index.__name__}")
    writer.say(said)
    writer.say(command)
    writer.say(f"Its keys are those of {link(PRINTED_IN[config.TrainConfig])}.")


def write_class(writer: Writer, cls: type, prefix: str, names: list[str]) -> None:
    """Keys of a class, then those of the classes that it holds."""
    names = [name for name in names if not name.startswith("_")]
    held = {each.name: each.type for each in fields(cls) if each.name in names and is_dataclass(inner(each.type))}
    writer.table(cls, [name for name in names if not (name in held and is_dataclass(held[name]))], prefix)
    for name, kind in held.items():
        part = inner(kind)
        place = f"{prefix}{name}" if is_dataclass(kind) else f"{prefix}{name}[]"
        writer.say(f"### {prefix}{name}")
        writer.say(said_of(part))
        if part in PRINTED_IN:
            writer.say(f"Its keys are those of {link(PRINTED_IN[part])}.")
        else:
            write_class(writer, part, f"{place}.", list(part.__annotations__))


def write_base(writer: Writer, cls: type) -> None:
    """Where the keys are that a class has from another one."""
    if cls.__base__ in PRINTED_IN:
        writer.say(f"And every key of {link(PRINTED_IN[cls.__base__])}.")


# ---- what the files say --------------------------------------------------------------------------------


def read_comments(source: str) -> dict[tuple[str, str], str]:
    """(class, field or member) → the comment at the end of its line, else the lines of comment right above it."""
    at_end: dict[int, str] = {}  # line → comment
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            is_alone = not token.line[: token.start[1]].strip()
            (alone if is_alone else at_end)[token.start[0]] = token.string.lstrip("# ")
    found = {}
    for cls in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
        for node in cls.body:
            match node:
                case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                    found[cls.name, name] = at_end.get(node.end_lineno or node.lineno) or " ".join(
                        above(alone, node.lineno)
                    )
    return found


def above(alone: Mapping[int, str], line: int) -> list[str]:
    """The comment that ends right above a line."""
    first = line
    while first - 1 in alone:
        first -= 1
    return [alone[number] for number in range(first, line)]


def option_files(group: str) -> list[Path]:
    """The yaml files of a group's options."""
    return sorted((config_dir() / group).glob("*.yaml"))


def schema_of(path: Path) -> type:
    """The class of an option."""
    first = yaml.safe_load(path.read_text())["defaults"][0]
    return SCHEMAS[first.partition("@")[0]][1]


def is_schema(name: str) -> bool:
    """Whether an entry of a file's defaults is its class or the file itself, and not another option."""
    return name == "_self_" or name.partition("@")[0] in SCHEMAS


def header(path: Path) -> list[str]:
    """The comment that a yaml file begins with, without what Hydra reads."""
    lines = path.read_text().splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("# ") for line in lines[:count] if not line.startswith("# @package")]


def option_line(path: Path) -> str:
    """An option in a list: its comment, what it chooses, what it sets."""
    group = path.parent.relative_to(config_dir()).as_posix()
    values = yaml.safe_load(path.read_text())
    defaults = values.pop("defaults")
    begins = [f"`{group}={name}`" for name in defaults if isinstance(name, str) and not is_schema(name)]
    chosen = [f"`{key}={option}`" for key, option in overrides(defaults)]
    settings = [f"`{key}={yaml_text(value)}`" for key, value in flat_items(values)]
    parts = [comment_of(path)]
    parts += [f"Begins as {', '.join(begins)}."] if begins else []
    parts += [f"Chooses {', '.join(chosen)}."] if chosen else []
    parts += [f"Sets {', '.join(settings)}."] if settings else []
    return f"- [`{group}={path.stem}`](../conf/{group}/{path.name}): {' '.join(filter(None, parts))}"


def comment_of(path: Path) -> str:
    """What an option's file says of itself; lines that are set in are yaml."""
    lines = [line for line in header(path) if not line.startswith("python -m")]
    parts = []
    for is_yaml, group in groupby(lines, lambda line: line.startswith(" ")):
        if is_yaml:
            block = dedent("\n".join(group))
            parts.append(indent(f"\n```yaml\n{block}\n```\n", "  ") + "  ")
        else:
            text = " ".join(re.sub(r"  +(.*)", r" `\1`", line) for line in group)
            parts.append(escaped(re.sub(r"`(?= [A-Z]|$)", "`.", " ".join(text.split()))))  # a command ends its sentence
    return "".join(parts)


def overrides(defaults: list[Any]) -> Iterator[tuple[str, str]]:
    """Group → option, of what an option chooses besides itself."""
    for line in defaults:
        for key, option in line.items() if isinstance(line, dict) else ():
            yield key.removeprefix("override /").partition("@")[0], option


# ---- what the classes say ------------------------------------------------------------------------------


def shared_class(classes: list[type]) -> type | None:
    """The class with the keys that all options of a group have, if there is one."""
    first, *others = classes
    above_all = first.__mro__[1:] if others else first.__mro__
    shared = (each for each in above_all if is_dataclass(each) and all(issubclass(cls, each) for cls in classes))
    return next(shared, None)


def inner(kind: Any) -> Any:
    """The type of a key, or of its items, without null."""
    if isinstance(kind, UnionType):
        [kind] = [each for each in get_args(kind) if each is not NoneType]
    return get_args(kind)[0] if get_origin(kind) is list else kind


def group_of(kind: Any) -> str | None:
    """The group whose options have a type."""
    of = (group for group, cls in SCHEMAS.values() if group and isinstance(kind, type) and issubclass(cls, kind))
    return next(of, None)


def type_text(kind: Any) -> str:
    """A type in words."""
    if isinstance(kind, UnionType):
        return " or ".join("null" if each is NoneType else type_text(each) for each in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {type_text(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "values by name"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    return PLAIN.get(kind, "keys below")


def default_text(key: Field[Any]) -> str:
    """The value that a key has if nothing is said."""
    value = key.default if key.default_factory is NO_DEFAULT else key.default_factory()
    return "*must be given*" if value == MISSING else f"`{yaml_text(value)}`"


def yaml_text(value: Any) -> str:
    """A value as it is written on a command line or in yaml."""
    match value:
        case None | bool():
            return show_value(value)
        case float():
            return re.sub(r"e-0(\d)$", r"e-\1", repr(value))
        case Enum():
            return str(value.value)
        case list():
            return f"[{', '.join(map(yaml_text, value))}]"
        case dict():
            return "{" + ", ".join(f"{name}: {yaml_text(each)}" for name, each in value.items()) + "}"
        case _ if is_dataclass(value):
            return yaml_text({each.name: getattr(value, each.name) for each in fields(value)})
    return str(value)


def said_of(cls: type) -> str:
    """What a class says of itself."""
    return escaped(" ".join((cls.__doc__ or "").replace("``", "`").split()))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, but for `code`."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def link(heading: str) -> str:
    """A link to a heading of the page."""
    return f"[{heading}](#{re.sub(r'[^a-z0-9_-]', '', heading)})"


if __name__ == "__main__":
    PAGE.write_text(make_page())
