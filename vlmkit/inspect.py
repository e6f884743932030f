"""See what the data look like: figures in the terminal, samples, tiles, tokens and packs on a page.

    python -m vlmkit.inspect                                                     easy-VQA
    python -m vlmkit.inspect dataset=local dataset.path='DATA/*.parquet'         any dataset, any key of training
    python -m vlmkit.inspect dataset=local dataset.path=DATA filter=recommended  what a filter would drop

No model is loaded. Read next: ``reporting/survey.py`` (what is read and measured), ``reporting/samples.py`` (what is
drawn of a sample).
"""

import shlex
from pathlib import Path

from vlmkit import entry
from vlmkit.config import InspectConfig
from vlmkit.preflight import check_inspection


def inspect(config: InspectConfig, title: str, command: str, page: Path) -> None:
    """Measure the data, print the figures and write the page.

    Args:
        config: What to look at.
        title: Of the page.
        command: What the page says it was made with.
        page: File to write.
    """
    # Imported here: a mistake in the command is answered before these seconds are spent.
    from vlmkit.processing.chat import ChatEncoder
    from vlmkit.processing.images import ImageLayout
    from vlmkit.processing.tokenizer import load_tokenizer
    from vlmkit.reporting.page import write_page
    from vlmkit.reporting.samples import choose_samples, show_sample
    from vlmkit.reporting.statistics import compute_statistics
    from vlmkit.reporting.survey import take_survey
    from vlmkit.reporting.text import format_statistics
    from vlmkit.tracking.console import Screen
    from vlmkit.tracking.quiet import quiet_libraries

    quiet_libraries()
    screen = Screen()
    layout = ImageLayout.from_config(config.model)
    encoder = ChatEncoder(load_tokenizer(config.model.tokenizer, config.model.image.layout), layout)
    survey = take_survey(config, encoder, screen.watch("measuring samples"))
    statistics = compute_statistics(survey, config, layout)
    screen.say(format_statistics(statistics, config))
    samples = [show_sample(source, row, config, encoder) for source, row in choose_samples(survey, config)]
    write_page(page, title, command, statistics, samples, config)
    screen.say(f"\npage          {page}")


def main() -> None:
    """The command."""
    entry.run("inspect", _start)


def _start(config: InspectConfig, invocation: entry.Invocation) -> None:
    title = invocation.choices["dataset"]
    default = (invocation.sweep_run_dir or Path("runs", "inspect")) / f"{title}.html"
    page = Path(config.out).expanduser() if config.out else default
    check_inspection(config, page)
    inspect(config, title, shlex.join(["python", "-m", "vlmkit.inspect", *invocation.overrides]), page)


if __name__ == "__main__":
    main()
