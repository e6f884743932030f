"""Train a vision-language model.

    python -m vlmkit.train                                        the tiny model on easy-VQA, on a CPU, offline
    python -m vlmkit.train seed=1 filter.relevance_min_rating=3   any key of conf/; --cfg job prints them all
    python -m vlmkit.train -m seed=0,1,2                          a sweep

``train`` below is the whole run, in the order in which data flow. Read next: ``training/loop.py`` (the step),
``data/plan.py`` (who decides the order of samples), ``model/packed.py`` (the forward pass).
"""

import signal
import sys
from contextlib import ExitStack

from vlmkit import entry, run_directory
from vlmkit.config import TrainConfig
from vlmkit.paths import RunPaths
from vlmkit.preflight import check_training
from vlmkit.run_directory import choose_run_dir, claim, plain_config


def train(config: TrainConfig, paths: RunPaths) -> None:
    """Train, validate, save, test; go on from the newest checkpoint if there is one.

    Ends the process with 128 + the signal's number if a signal asked it to stop (to any of its processes).
    """
    # Imported here: a mistake in the command is answered before these seconds are spent.
    from vlmkit.data.pipeline import build_training_data
    from vlmkit.distributed import Ranks
    from vlmkit.evaluation.exact_match import load_test, run_test, save_test
    from vlmkit.interrupt import StopSignal
    from vlmkit.model.build import build_model
    from vlmkit.model.packed import PackedVLM
    from vlmkit.processing.chat import ChatEncoder
    from vlmkit.processing.images import ImageLayout
    from vlmkit.processing.tokenizer import load_tokenizer
    from vlmkit.tracking.console import Screen, StepBar
    from vlmkit.tracking.provenance import record_start
    from vlmkit.tracking.quiet import quiet_libraries
    from vlmkit.tracking.sinks import build_tracker
    from vlmkit.training.callbacks import LogMetrics, SaveCheckpoints, ShowProgress, Validate, WatchBadSamples
    from vlmkit.training.checkpoint import Checkpoints
    from vlmkit.training.loop import Callback, Trainer, run_steps
    from vlmkit.training.optim import build_optimizer
    from vlmkit.training.summary import describe_run, last_words, what_was_met

    quiet_libraries()
    total, interval = config.trainer.max_training_steps, config.trainer.eval_interval
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        ranks = stack.enter_context(Ranks(config.trainer.precision, config.seed))
        screen = Screen(ranks.is_main)
        stack.enter_context(ranks.on_main(claim(paths, config)))

        tokenizer = load_tokenizer(config.model.tokenizer, config.model.image.layout)
        layout = ImageLayout.from_config(config.model)
        encoder = ChatEncoder(tokenizer, layout)
        model = PackedVLM(build_model(config.model, tokenizer), layout)
        data = build_training_data(config, encoder, ranks.rank, ranks.world_size, screen.watch("measuring samples"))
        data_keys = run_directory.data_keys(config, data.packs_per_step, data.contents(tokenizer))
        trainer = Trainer(model, build_optimizer(model.hf, config.optimizer), config.optimizer, total, ranks)
        checkpoints = Checkpoints(paths, model, tokenizer, layout, trainer.optimizer, ranks, data_keys)
        checkpoints.remove_half_written()
        start = checkpoints.resume(config.resume, total, data.start)
        tracker = stack.enter_context(
            build_tracker(config.logger, paths, plain_config(config), start.step, ranks.is_main)
        )
        if ranks.is_main:
            record_start(paths, start.step, ranks.world_size, str(ranks.device))
        screen.banner("vlmkit.train", describe_run(config, paths, model, data, start, ranks))

        known_bad = data.bad if ranks.is_main else ()
        bad_samples = WatchBadSamples(paths.bad_samples, config.dataset.max_bad_share, known_bad, start.step)
        with StepBar(screen, total, start.step, config.trainer.stats_log_interval) as bar:
            callbacks: list[Callback] = [
                LogMetrics(tracker, screen, config, data.counts),
                bad_samples,
                ShowProgress(bar, total),
                Validate(model, data.validation, interval, total, tracker, screen, ranks),
                SaveCheckpoints(checkpoints.save, interval, total),
            ]
            end = run_steps(trainer, data.steps_from(start.position), start, callbacks, stop, ranks)
        if start.step < end.step < total:
            checkpoints.save(end)
        if end.step == total and config.trainer.final_test and data.test:
            result = load_test(paths, total) if start.step == total else None
            if result is None and (
                result := run_test(model, encoder, data.test, data.rows(), total, ranks, screen, stop)
            ):
                tracker.log(total, result.metrics)
                if ranks.is_main:
                    save_test(paths, result)
            if result:
                screen.say(str(result))
        stopped = stop.reached_any(ranks)
        for line in what_was_met(data, end, bad_samples.left_out, bad_samples.describe()):
            screen.say(line)
        screen.say(last_words(paths, end, total, stopped))
    if stopped:
        sys.exit(128 + (stop.received or signal.SIGTERM))


def main() -> None:
    """The command."""
    entry.run("train", _start)


def _start(config: TrainConfig, invocation: entry.Invocation) -> None:
    paths = choose_run_dir(config, invocation.choices, invocation.sweep_run_dir)
    check_training(config, paths)
    train(config, paths)


if __name__ == "__main__":
    main()
