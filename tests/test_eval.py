"""The command: what is evaluated, what is told before anything heavy begins, and what comes of it."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Held, Run, command_environment, composed, save_untrained
from tests.evaluation import made_up_cells as made
from vlmkit.config import EvalConfig, EvalsConfig, EvalSuiteConfig, EvalsWhere, ModelConfig, TrainerConfig
from vlmkit.data.sources import Question, read_easyvqa_test
from vlmkit.data.worker import Loaded, build_batch
from vlmkit.distributed import Ranks
from vlmkit.errors import ConfigError, UserError
from vlmkit.eval import evaluate, hand_over, rewritten, tell_left
from vlmkit.evaluation.cells import CellState, read_cell
from vlmkit.evaluation.exact_match import run_test
from vlmkit.evaluation.samples import read_samples
from vlmkit.evaluation.subjects import find_subjects, plan_cells
from vlmkit.interrupt import StopSignal
from vlmkit.jobs import Job, JobPlace, Launcher
from vlmkit.model.build import build_model
from vlmkit.model.packed import PackedVLM
from vlmkit.paths import RunPaths
from vlmkit.preflight import check_evaluation
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.processor import save_processor
from vlmkit.tracking.console import Screen
from vlmkit.types import Sample, Turn

N = 40


@pytest.fixture
def paths(tmp_path: Path, tiny_model_config: ModelConfig, encoder: ChatEncoder) -> RunPaths:
    """A run with two checkpoints that have learnt nothing."""
    paths = RunPaths(tmp_path / "a run, lr=1e-3")
    save_untrained(paths, (5, 10), tiny_model_config, encoder)
    return paths


def asked(limit: int = N, local_data: str | None = None, **given: Any) -> EvalConfig:
    return EvalConfig(eval_suite=EvalSuiteConfig(tasks=["easyvqa"], limit=limit, local_data=local_data), **given)


def test_a_run_is_evaluated_a_second_time_only_where_something_is_missing(
    paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    [first] = evaluate(asked(run=str(paths.root), steps="latest"))
    assert first.state is CellState.done
    assert first.folder == paths.cells(10) / f"easyvqa.limit{N}"
    written = (first.folder / "cell.json").stat().st_mtime_ns
    cells = evaluate(asked(run=str(paths.root)))
    assert [cell.state for cell in cells] == [CellState.done] * 2
    assert (first.folder / "cell.json").stat().st_mtime_ns == written
    capsys.readouterr()
    assert evaluate(asked(run=str(paths.root))) == cells
    printed = capsys.readouterr().out
    assert "all is done" in printed
    assert printed.count("exact_match") == 2


def learn(questions: Sequence[Question], folder: Path, config: ModelConfig, encoder: ChatEncoder) -> None:
    """Save a checkpoint that has learnt something of the answers."""
    torch.manual_seed(0)
    model = PackedVLM(build_model(config, encoder.tokenizer), encoder.layout)
    samples = [
        Sample(str(number), (Path(str(each.image)).read_bytes(),), (Turn(each.text, each.answers[0]),))
        for number, each in enumerate(questions)
    ]
    batch = build_batch([[Loaded(sample, ()) for sample in samples]], encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(30):
        model(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.hf.save_pretrained(folder)
    save_processor(folder, encoder.tokenizer, encoder.layout)


def test_the_demo_task_scores_as_the_test_at_the_end_of_a_run_does(
    paths: RunPaths, tiny_model_config: ModelConfig, encoder: ChatEncoder
) -> None:
    questions = read_easyvqa_test()[:N]
    learn(questions[:10], paths.checkpoint(10), tiny_model_config, encoder)
    [cell] = evaluate(asked(run=str(paths.root), steps=10))
    screen, stop = Screen(is_main=False), StopSignal()
    row = {"texts": [{"user": "a", "assistant": "b"}]}
    result = run_test(paths, 10, questions, [row], Ranks(TrainerConfig(), 0), screen, stop)
    assert result is not None
    assert 0 < cell.metrics["exact_match"].value == result.exact_match
    lines = list(read_samples(cell.folder).values())
    assert [line["answer"].strip() for line in lines] == [answered.answer for answered in result.answered]
    assert [line["prompt"] for line in lines] == [f"<image>{question.text}" for question in questions]


def test_another_checkpoint_under_the_same_name_is_evaluated_anew_and_the_old_result_kept(
    paths: RunPaths, tiny_model_config: ModelConfig, encoder: ChatEncoder
) -> None:
    config = asked(ckpt=str(paths.checkpoint(10)), limit=8)
    [before] = evaluate(config)
    torch.manual_seed(99)
    build_model(tiny_model_config, encoder.tokenizer).save_pretrained(paths.checkpoint(10))
    [after] = evaluate(config)
    assert after.folder == before.folder
    assert after.order.fingerprint != before.order.fingerprint
    [kept] = after.folder.parent.glob(".easyvqa*.0")
    there = read_cell(kept)
    assert there is not None
    assert there.order == before.order


def test_planned_cells_are_done_as_they_say(paths: RunPaths) -> None:
    config = asked(run=str(paths.root), steps=5, limit=8)
    [planned] = plan_cells(config, find_subjects(config))
    [done] = evaluate(asked(cells=[str(planned.folder)], limit=3))
    assert (done.folder, done.metrics["exact_match"].n) == (planned.folder, 8)


def test_checkpoints_and_the_folders_of_their_results(paths: RunPaths, tmp_path: Path) -> None:
    newest = find_subjects(asked(ckpt=str(paths.root)))
    assert newest == find_subjects(asked(ckpt=str(paths.checkpoint(10)))) == find_subjects(
        asked(run=str(paths.root), steps="latest")
    )  # fmt: skip
    [elsewhere] = find_subjects(asked(ckpt=str(paths.checkpoint(10)), out=str(tmp_path / "out")))
    assert (elsewhere.folder, elsewhere.step) == (tmp_path / "out", None)
    outside = tmp_path / "models" / "mine"
    outside.mkdir(parents=True)
    [subject] = find_subjects(asked(ckpt=str(outside)))
    assert re.fullmatch("models--mine-[0-9a-f]{8}", subject.folder.name)
    assert subject.folder.parent == Path("runs/evals").absolute()
    other = tmp_path / "others" / "models" / "mine"
    other.mkdir(parents=True)
    assert find_subjects(asked(ckpt=str(other)))[0].folder != subject.folder
    [hub] = find_subjects(asked(ckpt="org/model@main"))
    assert (hub.checkpoint, hub.folder.name) == ("org/model@main", "org--model@main")
    with pytest.raises(ConfigError, match=r"steps=7: no such checkpoint in run=.*; there are 5, 10"):
        find_subjects(asked(run=str(paths.root), steps=[5, 7]))


@pytest.mark.parametrize(
    ("argument", "read"),
    [
        ("suite=quick", "eval_suite=quick"),
        ("suite.limit=3", "eval_suite.limit=3"),
        ("steps=500,1000", "steps=[500,1000]"),
        ("steps=latest", "steps=latest"),
        ("tasks=ai2d", "tasks=[ai2d]"),
        ("tasks=[a,b]", "tasks=[a,b]"),
        ("run=runs/lr=1,seed=2", "run=runs/lr=1,seed=2"),
        ("--help", "--help"),
    ],
)
def test_arguments_as_people_write_them(argument: str, read: str) -> None:
    assert rewritten(argument) == read


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"tasks": []}, r"tasks: name some"),
        ({"ckpt": "nowhere"}, r"ckpt=nowhere"),
        ({"run": "nowhere"}, r"run=nowhere: has no checkpoints/step_N"),
    ],
)
def test_what_is_missing_is_told_at_once(changed: dict[str, Any], told: str, paths: RunPaths) -> None:
    with pytest.raises(ConfigError, match=told):
        check_evaluation(asked(**({"ckpt": str(paths.root)} if "tasks" in changed else {}) | changed))


def test_local_data_must_be_there(paths: RunPaths) -> None:
    config = asked(ckpt=str(paths.root), local_data="nowhere")
    with pytest.raises(ConfigError, match=r"eval_suite\.local_data=nowhere: must be a folder"):
        check_evaluation(config)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["evals=none"], "evals=none: must be inline, local or slurm"),
        (["evals.schedule=[{every: 500}]"], r"evals\.schedule=….*steps names checkpoints"),
    ],
)
def test_what_says_when_a_run_evaluates_has_no_place_here(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        composed("eval", "ckpt=x", *overrides)


def test_several_processes_answer_themselves(monkeypatch: pytest.MonkeyPatch, paths: RunPaths) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = composed("eval", f"ckpt={paths.checkpoint(10).parent.name}", "evals=slurm")
    with pytest.raises(ConfigError, match="evals=slurm: start it as one process"):
        check_evaluation(config)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> EvalsConfig:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "evaluation"))
    return EvalsConfig(where=EvalsWhere.slurm, submitter="stand_in_submitter")


def test_what_is_missing_is_handed_over_to_slurm(
    slurm: EvalsConfig, paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    config = asked(run=str(paths.root), evals=slurm)
    [first, _] = plan_cells(config, find_subjects(config))
    first.changed(state=CellState.done)
    hand_over(config)
    assert capsys.readouterr().out.splitlines() == [
        "2 to evaluate, 1 of them done before",
        "evaluations of step_10: 1 handed over to SLURM as job 7, merged by job 8",
        f"how they stand: python -m vlmkit.status run='{paths.root}'",
    ]


def test_named_cells_can_be_handed_over_and_a_refusal_is_the_users(slurm: EvalsConfig, paths: RunPaths) -> None:
    config = asked(run=str(paths.root), steps=5)
    [cell] = plan_cells(config, find_subjects(config))
    slurm.submitter = "no_such_module"
    with pytest.raises(UserError, match="No module named no_such_module"):
        hand_over(asked(cells=[str(cell.folder)], evals=slurm))


def test_only_what_others_answer_is_left_to_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not what a process was to answer that was killed."""
    begun, planned = made.begun(RunPaths(tmp_path), 1800, "easyvqa"), made.planned(RunPaths(tmp_path), 1800, "mme")
    place = JobPlace.of_cell(planned.folder)
    Job(Launcher.local, "host:1", ["true"], str(planned.folder), "1.out", time.time()).write(place)
    with Held(begun.lock), Held(place.lock):
        assert tell_left([begun, planned]) == 75
    assert tell_left([begun, planned]) == 1
    assert capsys.readouterr().err == (
        "left to other processes: step_1800 easyvqa, step_1800 mme; call again to see what came of it\n"
        "has no result: step_1800 easyvqa: interrupted, step_1800 mme: not begun; the same command goes on\n"
    )


@pytest.mark.slow
def test_processes_beside_the_command_leave_the_same_files(paths: RunPaths, tmp_path: Path) -> None:
    local = evaluate(asked(run=str(paths.root), evals=EvalsConfig(where=EvalsWhere.local, workers=2)))
    for step, cell in zip((5, 10), local, strict=True):
        [inline] = evaluate(asked(ckpt=str(paths.checkpoint(step)), out=str(tmp_path / str(step))))
        assert (cell.state, cell.metrics, cell.order.key) == (inline.state, inline.metrics, inline.order.key)
        assert read_samples(cell.folder) == read_samples(inline.folder)
        assert {path.name for path in cell.folder.iterdir()} == {path.name for path in inline.folder.iterdir()}
        assert (paths.evals / f"step_{step}.json").exists()


def command(paths: RunPaths, *arguments: str) -> list[str]:
    start = [sys.executable, "-m", "vlmkit.eval", "suite=demo", f"ckpt={paths.root}", "suite.batch_size=4"]
    return [*start, "suite.limit=200", *arguments]


def wait_for_lines(file: Path, process: subprocess.Popen[bytes], lines: int) -> None:
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        if file.exists() and file.read_bytes().count(b"\n") >= lines:
            return
    raise AssertionError(f"{file}: not begun, or done already")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGUSR2, 128 + 12)])
def test_an_evaluation_that_was_ended_goes_on(
    number: signal.Signals, code: int, paths: RunPaths, tmp_path: Path
) -> None:
    folder = paths.cells(10) / "easyvqa.limit200"
    with subprocess.Popen(command(paths), cwd=tmp_path, env=command_environment()) as process:
        wait_for_lines(folder / "samples.jsonl", process, 8)
        process.send_signal(number)
        assert process.wait() == code
    before = read_samples(folder)
    assert 8 <= len(before) < 200
    there = read_cell(folder)
    assert there is not None
    [done] = evaluate(asked(cells=[str(folder)]))
    assert done.provenance["answered_before"] == len(before)
    config = asked(ckpt=str(paths.root), out=str(tmp_path / "whole"), limit=200)
    config.eval_suite.batch_size = 4
    [whole] = evaluate(config)
    assert whole.metrics == done.metrics
    assert read_samples(whole.folder) == read_samples(folder)


@pytest.mark.slow
def test_two_processes_share_the_samples_of_a_cell(paths: RunPaths, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = command_environment() | {"ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run(
        [*torchrun, *command(paths)[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    shared = read_cell(paths.cells(10) / "easyvqa.limit200")
    assert shared is not None
    assert shared.provenance["processes"] == 2
    [alone] = evaluate(asked(ckpt=str(paths.root), out=str(tmp_path / "alone"), limit=200))
    assert shared.metrics == alone.metrics
    assert {path.name for path in shared.folder.iterdir()} == {"cell.json", "samples.jsonl"}
    assert [line["answer"] for line in read_samples(shared.folder).values()] == [
        line["answer"] for line in read_samples(alone.folder).values()
    ]


@pytest.mark.slow
def test_a_failed_cell_is_told_and_ends_the_command_with_1(paths: RunPaths, vlmkit: Run) -> None:
    ended = vlmkit("eval", f"ckpt={paths.root}", "tasks=[mmstar,easyvqa]", "suite.limit=8", HF_HUB_OFFLINE="1")
    assert ended.returncode == 1, ended.stderr
    assert "mmstar: its data (Lin-Chen/MMStar) cannot be read" in ended.stdout
    assert "eval_suite.local_data=DIR" in ended.stdout
    assert json.loads((paths.cells(10) / "easyvqa.limit8" / "cell.json").read_text())["state"] == "done"
    assert ended.stderr == ""
