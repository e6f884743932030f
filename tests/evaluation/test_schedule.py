"""Which checkpoints are evaluated on what: arithmetic, for any schedule."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import composed
from tests.evaluation import made_up_cells as made
from vlmkit.config import EvalPhase, EvalsConfig, EvalSuiteConfig, EvalsWhere
from vlmkit.evaluation.schedule import Schedule
from vlmkit.paths import RunPaths
from vlmkit.run_directory import plain_config

TASKS = ["mmstar", "textvqa_val", "scienceqa"]
some_tasks = st.none() | st.lists(st.sampled_from(TASKS), unique=True)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    interval = draw(st.integers(1, 5))
    starts = sorted(draw(st.lists(st.integers(0, 60), min_size=1, max_size=4, unique=True)))
    every = st.none() | st.integers(1, 4).map(lambda times: times * interval)
    phases = [EvalPhase(from_step=start, every=draw(every), tasks=draw(some_tasks)) for start in starts]
    evals = EvalsConfig(where=EvalsWhere.local, schedule=phases)
    return Schedule(evals, EvalSuiteConfig(tasks=TASKS), interval, last_step=draw(st.integers(1, 80)))


@given(schedules())
def test_only_saved_steps_are_due_and_the_last_one_always(schedule: Schedule) -> None:
    due = schedule.due_steps(schedule.last_step)
    assert all(step % schedule.interval == 0 or step == schedule.last_step for step in due)
    phase = schedule.evals.phase_at(schedule.last_step)
    assert (schedule.last_step in due) == (phase is not None and phase.tasks != [])


@given(schedules(), st.integers(1, 80))
def test_a_due_step_is_evaluated_on_the_tasks_of_its_phase_alone(schedule: Schedule, step: int) -> None:
    phases = [phase for phase in schedule.evals.schedule if phase.from_step <= step]
    tasks = schedule.tasks_at(step)
    if tasks:
        assert tasks == (TASKS if phases[-1].tasks is None else phases[-1].tasks)
        assert step == schedule.last_step or step % (phases[-1].every or schedule.interval) == 0


@given(schedules(), st.integers(0, 80))
def test_what_is_due_does_not_depend_on_how_far_the_run_is(schedule: Schedule, reached: int) -> None:
    everything = schedule.due_steps(80)
    assert schedule.due_steps(reached) == [step for step in everything if step <= reached]


def test_the_reference_s_schedule() -> None:
    schedule = Schedule.of(composed("train", "experiment=production", "evals=local"))
    due = {step: schedule.tasks_at(step) for step in (1000, 4500, 5000, 5500, 5501, 19500, 20000, 40000)}
    two = ["mmstar", "textvqa_val"]
    assert (due[1000], due[4500], due[5000], due[5500], due[5501], due[19500]) == ([], [], two, two, [], two)
    assert len(due[20000]) == len(due[40000]) == 9


def test_nothing_is_due_without_evals() -> None:
    schedule = Schedule.of(composed("train"))
    assert schedule.due_steps(schedule.last_step) == []


def test_what_was_ordered_and_what_is_due_keep_their_checkpoints_until_done(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    evals = EvalsConfig(where=EvalsWhere.local, schedule=[EvalPhase(every=10, tasks=["mmstar"])])
    schedule = Schedule(evals, EvalSuiteConfig(tasks=TASKS), 5, 40)
    for step in (5, 10, 15, 20, 30, 35):
        made.checkpoint(paths, step)
    made.done(paths, 10, "mmstar", 0.5)
    made.done(paths, 20, "mmstar", 0.5, limit=8)  # not what is due
    made.planned(paths, 15, "mme")  # ordered by hand
    made.failed(paths, 30, "mmstar", "no network")
    assert schedule.steps_in_need(paths) == {15, 20, 30}
    assert (schedule.tasks_left(paths, 10), schedule.tasks_left(paths, 20)) == ([], ["mmstar"])


def test_a_run_s_config_yaml_says_its_schedule(tmp_path: Path) -> None:
    config = composed("train", "experiment=low_resource", "evals=local", "eval_suite.limit=8")
    assert Schedule.from_plain(plain_config(config)) == Schedule.of(config)
    older = {"trainer": {"eval_interval": 5, "max_training_steps": 10}}
    assert Schedule.from_plain(older).due_steps(10) == []
