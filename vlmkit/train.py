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
from functools import partial

from vlmkit import entry, run_directory
from vlmkit.config import TrainConfig
from vlmkit.paths import RunPaths
from vlmkit.preflight import check_training
from vlmkit.run_directory import begun_from, choose_run_dir, claim, plain_config


def train(config: TrainConfig, paths: RunPaths) -> None:
    """Train, validate, save, test; go on from the newest checkpoint if there is one.

    Ends the process with 128 + the signal's number if a signal asked it to stop (to any of its processes).
    """
    # Imported here: a mistake in the command is answered before these seconds are spent.
    from vlmkit.data.pipeline import build_training_data
    from vlmkit.distributed import Ranks
    from vlmkit.evaluation.exact_match import load_test, run_test
    from vlmkit.evaluation.in_training import EvaluateCheckpoints, deliver_last
    from vlmkit.evaluation.schedule import Schedule
    from vlmkit.evaluation.workers import build_workers
    from vlmkit.interrupt import StopSignal
    from vlmkit.model.attention import choose_attention
    from vlmkit.model.build import build_model
    from vlmkit.model.packed import PackedVLM
    from vlmkit.model.weights import load_checkpoint_weights
    from vlmkit.processing.chat import ChatEncoder
    from vlmkit.processing.images import ImageLayout
    from vlmkit.processing.tokenizer import load_tokenizer
    from vlmkit.reporting.hub import publish
    from vlmkit.tracking.console import Screen, StepBar
    from vlmkit.tracking.provenance import record_start
    from vlmkit.tracking.quiet import quiet_libraries
    from vlmkit.tracking.sinks import build_tracker
    from vlmkit.training.callbacks import (
        LogMetrics,
        SaveCheckpoints,
        ShowProgress,
        Validate,
        WatchBadSamples,
        WatchBadSteps,
    )
    from vlmkit.training.checkpoint import Checkpoints, choose_start
    from vlmkit.training.loop import Callback, Progress, Trainer, run_steps
    from vlmkit.training.summary import describe_run, last_words, what_was_met
    from vlmkit.training.throughput import Throughput

    quiet_libraries()
    total, interval = config.trainer.max_training_steps, config.trainer.eval_interval
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        ranks = stack.enter_context(Ranks(config.trainer, config.seed))
        screen = Screen(ranks.is_main)
        stack.enter_context(ranks.on_main(claim(paths, config)))
        begin_from = ranks.run_on_main(lambda: choose_start(paths, begun_from(paths), config.resume, total))

        tokenizer = load_tokenizer(config.model.tokenizer, config.model.image.layout)
        layout = ImageLayout.from_config(config.model)
        encoder = ChatEncoder(tokenizer, layout)
        attention = choose_attention(config.model.attention, ranks.device, ranks.precision == "bf16")
        hf = build_model(config.model, tokenizer, read_weights=begin_from is None)
        if begin_from:
            load_checkpoint_weights(hf, begin_from)
        model = PackedVLM(hf, layout, attention)
        data = build_training_data(config, encoder, ranks.rank, ranks.world_size, screen.watch("measuring samples"))
        trainer = Trainer(model, config, ranks)
        data_keys = run_directory.data_keys(config, data.packs_per_step, data.contents(tokenizer))
        in_need = partial(Schedule.of(config).steps_in_need, paths)
        checkpoints = stack.enter_context(
            Checkpoints(paths, config.trainer, trainer, tokenizer, layout, ranks, data_keys, in_need)
        )
        start = checkpoints.restore(begin_from, data.start)
        tracker = stack.enter_context(
            build_tracker(config.logger, paths, plain_config(config), start.step, ranks.is_main, screen.say)
        )
        if ranks.is_main:
            record_start(paths, start.step, ranks.world_size, str(ranks.device), config.model.pretrained)
        screen.banner("vlmkit.train", describe_run(config, paths, model, data, start, ranks))

        bad_samples = WatchBadSamples(paths.bad_samples, config.dataset.max_bad_share, data.bad, start.step, ranks)
        throughput = Throughput(model.hf.config, trainer.optimizer, ranks)
        validate = Validate(model, data.validation, interval, total, tracker, screen, ranks)

        workers = build_workers(config, screen, stop, ranks)
        evaluate = stack.enter_context(EvaluateCheckpoints(config, paths, workers, tracker, screen, stop, ranks))

        def save(progress: Progress) -> None:
            tracker.flush()  # first: a run that goes on from the checkpoint does not write these rows again
            checkpoints.save(progress)

        with StepBar(screen, total, start.step, config.trainer.stats_log_interval) as bar:
            callbacks: list[Callback] = [
                WatchBadSteps(paths.bad_steps, config.trainer.on_bad_step, start, save, screen, ranks),
                LogMetrics(tracker, screen, config, data.counts, throughput),
                bad_samples,
                ShowProgress(bar, total),
                validate,
                SaveCheckpoints(save, validate.loss_at, interval, total),
                evaluate,
            ]
            end = run_steps(trainer, data.steps_from(start.position), start, callbacks, stop, ranks)
        save(end)
        checkpoints.finish()
        if end.step == total and config.trainer.final_test and data.test:
            done = ranks.run_on_main(lambda: load_test(paths, total)) if start.step == total else None
            if result := done or run_test(paths, total, data.test, data.rows(), ranks, screen, stop):
                tracker.log(total, result.metrics)
                screen.say(str(result))
        evaluate.finish()
        checkpoints.tidy()
        stopped = stop.reached_any(ranks)
        for line in what_was_met(data, end, bad_samples.left_out, bad_samples.describe()):
            screen.say(line)
        screen.say(last_words(paths, end, total, stopped))
    if ranks.is_main:
        deliver_last(config, paths, screen.say)
    if stopped:
        sys.exit(128 + (stop.received or signal.SIGTERM))
    if ranks.is_main and end.step == total:
        publish(config, paths, total, end.totals.run.tokens, data.describe(), screen)


def main() -> None:
    """The command."""
    entry.run("train", _start)


def _start(config: TrainConfig, invocation: entry.Invocation) -> None:
    paths = choose_run_dir(config, invocation.choices, invocation.sweep_run_dir)
    check_training(config, paths)
    train(config, paths)


if __name__ == "__main__":
    main()
