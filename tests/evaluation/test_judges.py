"""Which of lmms-eval's tasks ask another model, and whether it can be asked."""

import os

import pytest

pytest.importorskip("lmms_eval", reason="pip install vlmkit[eval]")

from tests.evaluation.made_up_tasks import TASKS
from vlmkit.evaluation.judges import JUDGES, find_judge, why_not_asked
from vlmkit.evaluation.task_names import find_task_folder
from vlmkit.evaluation.tasks import _manager, quiet


def judge_of(task: str) -> str | None:
    with quiet():
        config = _manager(find_task_folder(task))._get_config(task)
    used = [config.get("process_results"), *(metric["aggregation"] for metric in config["metric_list"])]
    return find_judge(function for function in used if callable(function))


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.endswith(("_KEY", "_URL", "API_TYPE")) or name.startswith("AWS_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("task", [*TASKS, "ai2d", "seedbench"])
def test_tasks_that_compare_texts_need_no_judge(task: str) -> None:
    assert judge_of(task) is None


def test_a_judge_whose_library_is_not_installed_is_found() -> None:
    """Its import fails inside a try, so that the name is nowhere when its functions are followed."""
    assert judge_of("vibe_eval") == "reka"


@pytest.mark.parametrize(
    ("judge", "environment", "can_be_asked"),
    [
        ("reka", {"REKA_API_KEY": "x"}, True),
        ("reka", {"OPENAI_API_KEY": "x"}, False),
        ("google.genai", {"GOOGLE_API_KEY": "x"}, True),
        ("openai", {"GOOGLE_API_KEY": "x"}, False),
        ("openai", {"OPENAI_API_KEY": ""}, False),
        ("openai", {"AZURE_API_KEY": "x"}, True),  # without API_TYPE each task has its own
        ("lmms_eval.llm_judge", {"AZURE_API_KEY": "x", "API_TYPE": "openai"}, False),
        ("lmms_eval.llm_judge", {"AZURE_API_KEY": "x", "API_TYPE": "azure"}, True),
        ("lmms_eval.llm_judge", {"LLM_JUDGE_URL": "x", "API_TYPE": "local"}, True),
    ],
)
def test_a_judge_is_asked_with_its_own_key(
    judge: str, environment: dict[str, str], can_be_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (why_not_asked(judge) is None) is can_be_asked


def test_what_is_missing_is_named() -> None:
    assert why_not_asked("reka") == "for which there is no key: set REKA_API_KEY"
    assert why_not_asked("vllm") == "which vlmkit does not run beside its own"
    assert all(map(why_not_asked, JUDGES))
