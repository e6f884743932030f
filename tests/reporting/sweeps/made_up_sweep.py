"""A sweep as its runs leave it on disk, made up: no model, the same bytes every time.

Questions are easy or hard, a seed has a good or a bad day, and ``effects`` says what a setting gains or loses. So the
right answer of a report is known.
"""

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import composed
from tests.evaluation.cells_on_disk import done_cell
from vlmkit.config import RATING_AXES
from vlmkit.evaluation.merge import merge_subject
from vlmkit.evaluation.samples import Line
from vlmkit.jobs import Job, JobPlace, JobReport, JobState, Launcher, SweepJob, write_manifest
from vlmkit.paths import RunPaths
from vlmkit.run_directory import plain_config, sweep_subdir
from vlmkit.tracking.jsonl import JsonlTracker

RELEVANCE, VISUAL = (f"filter.{RATING_AXES[number]}_min_rating" for number in (0, 2))
METRIC = "exact_match"
BEGAN = 1_780_000_000.0  # seconds since 1970
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class MadeUpSweep:
    """What was swept, and what came of it. Runs are named by their folders, as in ``run_name``."""

    axes: Mapping[str, Sequence[Any]] = field(default_factory=lambda: {RELEVANCE: (1, 3, 5)})
    seeds: Sequence[int] = (0, 1, 2)
    tasks: Sequence[str] = ("easyvqa",)
    steps: Sequence[int] = (10, 20, 30)  # that were evaluated; the last one is the end
    questions: int = 120  # of each task, three about each picture
    base: float = 0.5  # share of right answers where no effect says otherwise
    effects: Mapping[tuple[str, Any], float] = field(default_factory=lambda: {(RELEVANCE, 3): 0.2, (RELEVANCE, 5): 0.1})
    seed_spread: float = 0.02  # standard deviation of that share over seeds
    limit: int | None = None  # of the first samples only
    with_pictures: bool = True  # or a report need not look for them, which takes seconds
    never_begun: Collection[str] = ()
    stopped: Collection[str] = ()  # at the first step
    unevaluated: Collection[str] = ()

    @property
    def variants(self) -> list[Settings]:
        """All settings, in the order of the sweep."""
        return [dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())]

    def write(self, sweep: Path) -> Path:
        """Write all runs and the manifest; gives the folder of the sweep."""
        jobs = []
        for settings, seed in product(self.variants, self.seeds):
            name, folder = run_name(settings, seed), sweep / run_name(settings, seed)
            job = Job(Launcher.local, "made-up:1", _command(settings, seed), str(folder), str(sweep / "log"), BEGAN)
            jobs.append(SweepJob(_overrides(settings, seed), job))
            folder.mkdir(parents=True)
            job.write(JobPlace.of_folder(folder))
            if name not in self.never_begun:
                self._write_run(RunPaths(folder), settings, seed)
            if name not in {*self.never_begun, *self.stopped}:
                JobReport("made-up:1", JobState.done, "", None, BEGAN + 900).write(JobPlace.of_folder(folder))
        write_manifest(sweep, jobs)
        return sweep

    def _write_run(self, paths: RunPaths, settings: Settings, seed: int) -> None:
        name = paths.root.name
        steps = self.steps[:1] if name in self.stopped else self.steps
        paths.config.write_text(yaml.safe_dump(self._config(settings, seed), sort_keys=False))
        paths.provenance.write_text(json.dumps({"starts": [_start(settings, seed)]}))
        ability = self._ability(settings, seed)
        self._write_metrics(paths, settings, ability, steps[-1], seed)
        for step in steps:
            checkpoint = paths.checkpoint(step)
            checkpoint.mkdir(parents=True)
            (checkpoint / "config.json").write_text("{}")
            if name not in self.unevaluated:
                learnt = 0.3 + (ability - 0.3) * step / self.steps[-1]
                for task in self.tasks:
                    self._write_cell(paths, step, task, learnt, seed)
                merge_subject(paths.cells(step))

    def _config(self, settings: Settings, seed: int) -> dict[str, Any]:
        config = deepcopy(_train_config())
        config["seed"] = seed
        config["trainer"]["max_training_steps"] = self.steps[-1]
        config["trainer"]["eval_interval"] = self.steps[0]
        config["eval_suite"] |= {"tasks": list(self.tasks), "limit": self.limit}
        for key, value in settings.items():
            *groups, last = key.split(".")
            group = config
            for each in groups:
                group = group[each]
            group[last] = value
        return config

    def _ability(self, settings: Settings, seed: int) -> float:
        """The share of questions that it answers well in the end."""
        gain = sum(self.effects.get(item, 0.0) for item in settings.items())
        return self.base + gain + self.seed_spread * random.Random(f"day {seed} {sorted(settings.items())}").gauss()

    def _write_metrics(self, paths: RunPaths, settings: Settings, ability: float, last: int, seed: int) -> None:
        noise = random.Random(f"loss {seed}")
        dropped = sum((value - 1) / 8 for key, value in settings.items() if key.endswith("_min_rating"))
        tracker = JsonlTracker(paths.metrics, 0)
        for step in range(1, last + 1):
            loss = 4 - 2 * ability * step / self.steps[-1]
            row = {"batch_loss": loss + noise.gauss(0, 0.1), "tokens_per_second": 1000 + noise.gauss(0, 10)}
            filtered = {"filtered_ratio": dropped / 2, "filtered_turns_ratio": dropped}
            if step % self.steps[0] == 0:
                row |= {"val_loss": loss + 0.1} | {f"training_stats/{key}": value for key, value in filtered.items()}
            if step == self.steps[-1]:
                row |= {f"run_stats/{key}": value for key, value in filtered.items()}
            tracker.write(step, row)
        tracker.close()

    def _write_cell(self, paths: RunPaths, step: int, task: str, learnt: float, seed: int) -> None:
        count = min(self.questions, self.limit or self.questions)
        scores = list(_scores(task, count, learnt, f"{seed} {paths.root.name}"))
        fingerprint = f"{random.Random(f'{paths.root.name} {step}').getrandbits(64):016x}"
        done_cell(
            paths.cells(step),
            task,
            scores,
            METRIC,
            clusters=[f"picture {number // 3}" for number in range(count)],
            lines=list(_lines(scores, self.with_pictures)),
            step=step,
            limit=self.limit,
            fingerprint=fingerprint,
            checkpoint=str(paths.checkpoint(step)),
        )


def run_name(settings: Settings, seed: int) -> str:
    """The name of a run's folder in that of the sweep."""
    return sweep_subdir(_overrides(settings, seed))


def _overrides(settings: Settings, seed: int) -> list[str]:
    return [*(f"{key}={value}" for key, value in settings.items()), f"seed={seed}"]


def _command(settings: Settings, seed: int) -> list[str]:
    return ["python", "-m", "vlmkit.train", "-m", *_overrides(settings, seed)]


def _start(settings: Settings, seed: int) -> dict[str, Any]:
    return {
        "time": "2026-05-28T20:26:40+0000",
        "command": ["train.py", *_overrides(settings, seed)],
        "resumed_step": 0,
        "git": {"revision": "0123456789abcdef0123456789abcdef01234567", "changed": False},
        "python": "3.11.7",
        "packages": {"vlmkit": "0.1.0", "torch": "2.14.1", "transformers": "5.23.0"},
        "hardware": {"machine": "x86_64", "cpu_cores": 2, "gpus": []},
        "world_size": 1,
        "device": "cpu",
    }


@cache
def _train_config() -> dict[str, Any]:
    return plain_config(composed("train", "evals=local", "eval_suite.tasks=[easyvqa]", "logger=none"))


def _scores(task: str, count: int, ability: float, who: str) -> Iterator[float]:
    """Right where a question is easier than one's ability and luck."""
    hardness, luck = random.Random(task), random.Random(f"{who} {task}")
    for _ in range(count):
        yield float(0.7 * hardness.random() + 0.3 * luck.random() < ability)


def _lines(scores: Sequence[float], with_pictures: bool) -> Iterator[Line]:
    for number, score in enumerate(scores):
        target = "yes" if number % 2 else "no"
        yield {
            "prompt": f"<image>Is shape {number} blue?",
            "pictures": [f"{number // 3:016x}"] if with_pictures else [],
            "target": target,
            "answer": target if score else "maybe",
        }
