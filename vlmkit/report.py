"""From a sweep to an answer: runs put side by side, with intervals, on a page that needs nothing else.

    python -m vlmkit.report sweep=DIR                                        DIR/report/index.html
    python -m vlmkit.report sweep=DIR baseline=[filter.relevance_min_rating=1] tasks=[mmstar]
    python -m vlmkit.report runs=[RUN,RUN] out=FOLDER

It only reads the runs, and works while they train. Read next: ``reporting/sweeps/build.py`` (how the answer comes
about), ``reporting/sweeps/content.py`` (what a report says), ``reporting/sweeps/page.py`` (how it looks).
"""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit import entry
from vlmkit.config import ReportConfig
from vlmkit.errors import ConfigError
from vlmkit.preflight import check_report
from vlmkit.redact import redact
from vlmkit.reporting.words import share
from vlmkit.tracking.console import Screen

if TYPE_CHECKING:
    from vlmkit.reporting.sweeps.content import Report, Variant

MOST_MEASURES = 6  # in the terminal; the page has all


def report(config: ReportConfig, command: str, folder: Path, screen: Screen) -> None:
    """Read the runs, write the page, print the final table and the answer.

    Args:
        config: Which runs, and what is asked of them.
        command: What the page says it was made with.
        folder: For the page, its figures and its tables.
        screen: Where progress and the answer are printed.

    Raises:
        ConfigError: There is nothing to report on, a key names what is not there, or the folder cannot be written in.
    """
    # Imported here: a mistake in the command is answered before these seconds are spent.
    from vlmkit.reporting.sweeps.build import build_report
    from vlmkit.reporting.sweeps.page import write_report

    made = build_report(config, command, screen.watch("reading runs"))
    try:
        page = write_report(made, folder)
    except OSError as error:
        raise ConfigError(f"out={folder}: the report cannot be written: {error}; choose another out") from error
    screen.say("")
    screen.table(("variant", "runs", "kept", *(one.label for one in made.measures[:MOST_MEASURES])), table_rows(made))
    screen.say(f"± as the {100 * made.confidence:g} % interval over seeds has it; {made.step}")
    screen.say(f"\n{made.answer.headline}")
    for point in made.answer.points:
        screen.say(f"- {point}")
    screen.say(f"\npage        {page}")


def table_rows(made: "Report") -> Iterator[tuple[str, ...]]:
    """A line for each variant: the final table."""
    from vlmkit.reporting.sweeps.wording import NOTHING, spread_text

    def score(variant: "Variant", key: str) -> str:
        return spread_text(variant.scores[key], made.measure(key)) if key in variant.scores else NOTHING

    for variant in made.variants:
        kept = NOTHING if variant.kept_turns is None else share(variant.kept_turns)
        scores = (score(variant, one.key) for one in made.measures[:MOST_MEASURES])
        yield (variant.label, str(len(variant.runs)), kept, *scores)


def main() -> None:
    """The command."""
    command = redact(shlex.join(["python", "-m", "vlmkit.report", *sys.argv[1:]]))
    entry.quote_paths("sweep", "out")
    entry.quote_lists("runs", "baseline")
    entry.run("report", lambda config, _: _start(config, command))


def _start(config: ReportConfig, command: str) -> None:
    parent = Path("runs") if config.sweep is None else Path(config.sweep).expanduser()
    folder = Path(config.out).expanduser() if config.out else parent / "report"
    check_report(config, folder)
    report(config, command, folder, Screen())


if __name__ == "__main__":
    main()
