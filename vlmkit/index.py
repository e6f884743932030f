"""Measure a dataset before a run needs it: the index that training plans with.

    python -m vlmkit.index dataset=local dataset.path='DATA/*.parquet'      with the keys of the run to come

A run builds what is not there yet by itself. This command does it ahead, without a GPU that waits, on all cores, and
tells which samples cannot be read. Killed, it goes on where it stopped.
"""

import time

from vlmkit import entry
from vlmkit.config import TrainConfig
from vlmkit.errors import ConfigError
from vlmkit.paths import cache_dir, is_writable
from vlmkit.preflight import check_data


def build(config: TrainConfig) -> None:
    """Build the index of each source of the dataset, and say what is in it."""
    # Imported here: a mistake in the command is answered before these seconds are spent.
    from vlmkit.data.index import index_folder, load_or_build_index
    from vlmkit.data.pipeline import describe_reasons
    from vlmkit.data.sources import build_sources
    from vlmkit.processing.chat import ChatEncoder
    from vlmkit.processing.images import ImageLayout
    from vlmkit.processing.tokenizer import load_tokenizer
    from vlmkit.tracking.console import Screen, format_seconds
    from vlmkit.tracking.quiet import quiet_libraries

    quiet_libraries()
    screen = Screen()
    encoder = ChatEncoder(
        load_tokenizer(config.model.tokenizer, config.model.image.layout), ImageLayout.from_config(config.model)
    )
    for source in build_sources(config.dataset):
        started = time.perf_counter()
        index = load_or_build_index(source, encoder, cache_dir(), screen.watch(f"measuring {source.name}"))
        screen.say(f"{source.name}: {len(index):,} samples, in {format_seconds(time.perf_counter() - started)}")
        if index.bad:
            screen.say(
                f"  {len(index.bad):,} cannot be read: {describe_reasons(index.bad)}; the first is {index.bad[0]}"
            )
        for file in source.skipped:
            screen.say(f"  skipped {file}")
        screen.say(f"  {index_folder(cache_dir(), source, encoder)}")


def main() -> None:
    """The command."""
    entry.run("train", _start)


def _start(config: TrainConfig, _invocation: entry.Invocation) -> None:
    if config.dataset.streaming:
        print("nothing to do: a dataset that is streamed needs no index (dataset.streaming=true)")  # noqa: T201
        return
    check_data(config)
    if not is_writable(cache_dir()):
        raise ConfigError(f"VLMKIT_CACHE={cache_dir()}: must be a folder that can be written to")
    build(config)


if __name__ == "__main__":
    main()
