"""What a person sees: the banner, the progress bar (lines where there is no terminal), the last words."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    track,
)

from vlmkit.redact import redact

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 30  # of progress, where there is no bar


class Screen:
    """The terminal of the main process; other processes have a silent one."""

    def __init__(self, is_main: bool = True) -> None:
        self.console = Console(quiet=not is_main, soft_wrap=True, highlight=False)
        self.has_bars = self.console.is_terminal  # whether progress is shown by bars, else by lines

    def beside_a_bar(self) -> "Screen":
        """The same terminal for who works while another one's bar is on it: there can be one at a time."""
        other = copy(self)
        other.has_bars = False
        return other

    def banner(self, title: str, facts: dict[str, str]) -> None:
        """A title and a table of facts."""
        width = max(map(len, facts)) + 2
        self.console.print(f"\n[bold]{title}")
        for name, value in facts.items():
            self.console.print(f"[bold]{name:{width}}[/bold]{escape(redact(value))}")
        self.console.print()

    def say(self, text: str) -> None:
        """A line."""
        self.console.print(redact(text), markup=False)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table. In a terminal too narrow for it, the columns that do not fit follow below, behind the first again.

        Outside a terminal its lines are as long as they need to be.
        """
        lines = [columns, *([redact(cell) for cell in row] for row in rows)]
        widths = [max(map(cell_len, column)) + 2 for column in zip(*lines, strict=True)]
        room = self.console.width if self.console.is_terminal else sum(widths)
        for number, shown in enumerate(_fitting_columns(widths, room)):
            if number:
                self.console.print()
            for line in lines:
                text = "".join(set_cell_size(line[column], widths[column]) for column in shown).rstrip()
                self.console.print(text, markup=False, style="bold" if line is columns else None)

    def watch(self, what: str) -> Callable[[Sequence[T]], Iterable[T]]:
        """A function that gives the items on, with a bar while they are worked through."""

        def watched(items: Sequence[T]) -> Iterable[T]:
            if not self.console.is_terminal:
                self.say(f"{what} …")
                return items
            return track(items, what, console=self.console, transient=True)

        return watched


def _fitting_columns(widths: Sequence[int], room: int) -> list[list[int]]:
    """Column numbers in groups that fit side by side, each behind column 0; at least one more in each."""
    groups = [[0]]
    for column in range(1, len(widths)):
        if len(groups[-1]) > 1 and sum(widths[other] for other in groups[-1]) + widths[column] > room:
            groups.append([0])
        groups[-1].append(column)
    return groups


class StepBar:
    """Progress over the steps of a run, with loss, tokens a second and time left."""

    def __init__(self, screen: Screen, total: int, done: int, line_interval: int) -> None:
        self._screen = screen
        self._total = total
        self._line_interval = line_interval
        self._bar = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=screen.console,
            disable=not screen.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()

    def show(self, step: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """Move on to a step."""
        figures = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {format_seconds(seconds_left)} left"
        self._bar.update(self._task, completed=step, figures=figures)
        if not self._screen.console.is_terminal and (step % self._line_interval == 0 or step == self._total):
            self._screen.say(f"step {step}/{self._total}  {figures}")


class SampleBar:
    """Progress over the samples of a task, with samples a second and time left."""

    def __init__(self, screen: Screen, title: str, total: int, done: int) -> None:
        self._screen = screen
        self._title = title
        self._total = total
        self._done_before = done
        self._begun = self._told = monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            MofNCompleteColumn(),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            console=screen.console,
            disable=not screen.has_bars,
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._screen.has_bars:
            already = f", {self._done_before:,} of them answered before" if self._done_before else ""
            self._screen.say(f"{self._title}: {self._total:,} samples{already} …")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()

    def show(self, done: int) -> None:
        """Move on to a number of samples; without a terminal a line from time to time."""
        now = monotonic()
        rate = max(done - self._done_before, 1) / max(now - self._begun, 1e-9)
        figures = f"{rate:,.1f} samples/s  {format_seconds((self._total - done) / rate)} left"
        self._bar.update(self._task, completed=done, figures=figures)
        if not self._screen.has_bars and now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            self._screen.say(f"{self._title}: {done:,}/{self._total:,}  {figures}")


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
