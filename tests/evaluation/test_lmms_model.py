"""A checkpoint under lmms-eval's own evaluator: chat tasks, choices by likelihood, and the command."""

import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from tests.conftest import command_environment, png
from vlmkit.config import ModelConfig
from vlmkit.data.worker import Loaded, build_batch
from vlmkit.errors import ConfigError, UserError
from vlmkit.model.answer import GenerationSettings
from vlmkit.model.build import build_model
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.processor import save_processor
from vlmkit.types import Sample, Turn

pytest.importorskip("lmms_eval", reason="pip install vlmkit[eval]")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies
    from lmms_eval.api.instance import Instance
    from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2

    from vlmkit.evaluation.answering import Answered
    from vlmkit.evaluation.lmms_model import SimpleVLMKit, VLMKit, likelihood_for, request_of, settings_of
    from vlmkit.evaluation.lmms_plugin import manifest
    from vlmkit.model.answer import Loglikelihood

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
ROOT = Path(__file__).parents[2]
PROMPT = "what colour?"
COLOURS = ["red", "blue"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_model_config: ModelConfig, encoder: ChatEncoder) -> Path:
    """It has learnt to tell two colours."""
    torch.manual_seed(0)
    model = PackedVLM(build_model(tiny_model_config, encoder.tokenizer), encoder.layout)
    samples = [
        Sample(colour, (png(Image.new("RGB", (64, 64), colour)),), (Turn(PROMPT, f"a {colour} one"),))
        for colour in COLOURS
    ]
    batch = build_batch([[Loaded(sample, ()) for sample in samples]], encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        loss = model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5  # summed over some 20 tokens
    folder = tmp_path_factory.mktemp("checkpoint")
    model.hf.save_pretrained(folder)
    save_processor(folder, encoder.tokenizer, encoder.layout)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five questions, each with a picture and the number of its right answer among COLOURS."""
    numbers = [0, 1, 1, 0, 1]
    rows = {
        "image": [Image.new("RGB", (64, 64), COLOURS[number]) for number in numbers],
        "question": [PROMPT] * 5,
        "answer": numbers,
    }
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("int64")}
    )
    folder = tmp_path_factory.mktemp("data") / "colours"
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(folder)
    return folder


def config_of(data: Path, **more: Any) -> dict[str, Any]:
    """Of a task."""
    return {
        "task": "colours",
        "dataset_path": str(data),
        "dataset_kwargs": {"load_from_disk": True},
        "test_split": "test",
        "doc_to_visual": lambda doc: [doc["image"].convert("RGB")],
        "doc_to_text": lambda doc: doc["question"],
        **more,
    }


def exact(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"right": float(results[0] == f"a {COLOURS[doc['answer']]} one")}


def evaluate(model: VLMKit, task: Any) -> Any:
    arguments = SimpleNamespace(output_path=None, process_with_media=True, reasoning_tags=None)
    no_index_of_tasks = SimpleNamespace()  # lmms-eval makes one for seconds, but the task is here
    return simple_evaluate(
        model=model, tasks=[task], task_manager=no_index_of_tasks, cli_args=arguments, bootstrap_iters=0
    )


def test_a_chat_task_is_answered_and_scored(checkpoint: Path, data: Path) -> None:
    task = ConfigurableMessagesTask(
        config=config_of(
            data,
            doc_to_target=lambda doc: COLOURS[doc["answer"]],
            generation_kwargs={"max_new_tokens": 20, "temperature": 0, "do_sample": False, "image_aspect_ratio": "x"},
            process_results=exact,
            metric_list=[{"metric": "right", "aggregation": "mean", "higher_is_better": True}],
        )
    )
    found = evaluate(VLMKit(str(checkpoint), batch_size="2"), task)
    assert found["results"]["colours"]["right,none"] == 1.0
    first = found["samples"]["colours"][0]
    assert first["resps"] == [["a red one"]]
    assert first["token_counts"][0]["output_tokens"] > 0


def choices(data: Path) -> Any:
    return ConfigurableTask(
        config=config_of(
            data,
            output_type="multiple_choice",
            doc_to_target=lambda doc: doc["answer"],
            doc_to_choice=lambda doc: [f"a {colour} one" for colour in COLOURS],
            metric_list=[
                {"metric": name, "aggregation": "mean", "higher_is_better": True}
                for name in ("acc", "acc_norm", "exact_match")
            ],
        )
    )


def test_choices_are_compared_by_likelihood(checkpoint: Path, data: Path) -> None:
    """exact_match asks if the right choice is what would be said."""
    results = evaluate(SimpleVLMKit(str(checkpoint), batch_size=4), choices(data))["results"]["colours"]
    assert [results[f"{name},none"] for name in ("acc", "acc_norm", "exact_match")] == [1.0, 1.0, 1.0]


def test_a_sample_that_fails_stops_the_evaluation(checkpoint: Path, data: Path) -> None:
    task = choices(data)

    def broken(doc: dict[str, Any]) -> list[Image.Image]:
        return ["film.mp4"] if doc["answer"] else [doc["image"]]

    task.config.doc_to_visual = broken
    with pytest.raises(UserError, match=r"^colours: sample 1: BadSampleError: film.mp4: cannot read the picture"):
        evaluate(SimpleVLMKit(str(checkpoint), batch_size=4), task)


def test_half_a_picture_of_a_task_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    """lmms-eval tells PIL to fill the rest with grey."""
    whole = png(Image.effect_noise((64, 64), 50))
    rows = {"image": [{"bytes": whole}, {"bytes": whole[:2000]}], "question": [PROMPT] * 2, "answer": [0, 0]}
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("int64")}
    )
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path)
    task = ConfigurableMessagesTask(config=config_of(tmp_path, doc_to_target=lambda doc: "", process_results=exact))
    with pytest.raises(UserError, match=r"^colours: sample 1: OSError: image file is truncated"):
        evaluate(VLMKit(str(checkpoint), batch_size=4), task)


@pytest.mark.slow
def test_the_command_answers_through_the_entry_point(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """As it stands in the installed package's metadata."""
    (tmp_path / "colours.yaml").write_text(
        f"task: colours\ndataset_path: {data}\ndataset_kwargs:\n  load_from_disk: true\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_visual: !function asked.visual\ndoc_to_text: question\n"
        "doc_to_target: answer\nprocess_results: !function asked.exact\ngeneration_kwargs:\n  max_new_tokens: 20\n"
        "metric_list:\n  - metric: right\n    aggregation: mean\n    higher_is_better: true\n"
    )
    (tmp_path / "asked.py").write_text(
        "def visual(doc):\n    return [doc['image'].convert('RGB')]\n\n\n"
        "def exact(doc, results):\n"
        f"    return {{'right': float(results[0] == f\"a {{{COLOURS}[doc['answer']]}} one\")}}\n"
    )
    command = [sys.executable, "-m", "lmms_eval", "--model", "vlmkit"]
    command += ["--model_args", f"pretrained={checkpoint},temperature=0,seed=3", "--tasks", "colours"]
    command += ["--include_path", str(tmp_path), "--batch_size", "2", "--output_path", str(tmp_path / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(
        command, cwd=tmp_path, env=command_environment() | offline, capture_output=True, text=True, timeout=300
    )
    [file] = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(file.read_text())["results"]["colours"]["right,none"] == 1.0, done.stdout + done.stderr


def test_the_entry_point_gives_both_models() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    group = "lmms_eval.models"
    point = EntryPoint("vlmkit", project["entry-points"][group]["vlmkit"], group)
    assert point.load() is manifest
    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    assert MODEL_REGISTRY_V2.get_model_class("vlmkit") is VLMKit
    assert MODEL_REGISTRY_V2.get_model_class("vlmkit", force_simple=True) is SimpleVLMKit


def test_a_model_is_known_by_what_its_checkpoint_holds(
    checkpoint: Path, tmp_path: Path, encoder: ChatEncoder, tiny_model_config: ModelConfig
) -> None:
    """lmms-eval's response cache is keyed by this."""
    first = re.search("fingerprint='.{16}'", repr(VLMKit(str(checkpoint))))
    other = build_model(tiny_model_config, encoder.tokenizer)
    other.save_pretrained(tmp_path)
    save_processor(tmp_path, encoder.tokenizer, encoder.layout)
    second = re.search("fingerprint='.{16}'", repr(VLMKit(str(tmp_path))))
    assert first and second and first[0] != second[0]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"batch_size": "auto"}, "batch_size=auto: must be a whole number above 0"),
        ({"temperature": -1}, "temperature=-1.0: must be 0 or more"),
        ({"pretrained": "/nowhere"}, "pretrained=/nowhere: must be a folder that is there, or a hub id"),
    ],
)
def test_a_wrong_argument_is_told(checkpoint: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        VLMKit(**{"pretrained": str(checkpoint)} | wrong)


def test_several_rounds_are_not_answered(checkpoint: Path) -> None:
    with pytest.raises(NotImplementedError, match="one question at a time"):
        VLMKit(str(checkpoint)).generate_until_multi_round([])


# ---- what requests mean --------------------------------------------------------------------------------

DEFAULTS = GenerationSettings(512, temperature=0.5, top_p=0.9)


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ({}, DEFAULTS),
        ({"until": None, "temperature": None, "max_new_tokens": None, "num_beams": None, "top_p": None}, DEFAULTS),
        ({"temperature": 0}, GenerationSettings(512)),
        ({"temperature": 0, "top_p": 0, "do_sample": True}, GenerationSettings(512)),
        ({"do_sample": False}, GenerationSettings(512)),
        ({"do_sample": False, "temperature": 0.7}, GenerationSettings(512)),
        ({"do_sample": True}, DEFAULTS),
        ({"temperature": "0.2", "top_p": 1}, GenerationSettings(512, temperature=0.2)),
        ({"until": "\n"}, GenerationSettings(512, ("\n",), 0.5, 0.9)),
        ({"until": ["\n\n", "", "USER:"]}, GenerationSettings(512, ("\n\n", "USER:"), 0.5, 0.9)),
        (
            {"max_new_tokens": 16, "num_beams": 2, "temperature": 0, "image_aspect_ratio": "original"},
            GenerationSettings(16, num_beams=2),
        ),
    ],
)
def test_a_task_s_settings_win_over_the_defaults(asked: dict[str, Any], settings: GenerationSettings) -> None:
    assert settings_of(asked, DEFAULTS) == settings


def test_a_task_that_wants_to_draw_does_so_beside_greedy_defaults() -> None:
    assert settings_of({"do_sample": True}, GenerationSettings(5)) == GenerationSettings(5, temperature=1.0)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_new_tokens=0: must be 1 or more"):
        settings_of({"max_new_tokens": 0}, DEFAULTS)


PICTURE = Image.new("RGB", (4, 4))
DOCS = {"t": {"test": [{"picture": PICTURE, "text": "what?", "file": ""}]}}


def instance(kind: str, *arguments: Any) -> Instance:
    where = (0, "t", "test") if len(arguments) > 2 else ()
    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    return Instance(request_type=kind, arguments=(*arguments, *where), idx=0, metadata=metadata)


def asked_parts(kind: str, *arguments: Any) -> list[tuple[str, tuple[Any, ...]]]:
    question = request_of(instance(kind, *arguments), DOCS, DEFAULTS, 3).load()
    return [(message.role, message.parts) for message in question.messages]


def test_messages_keep_their_pictures_in_place(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")

    def to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        shown = [{"type": "image", "url": doc["picture"]}, {"type": "text", "text": doc["text"]}]
        return [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [*shown, {"type": "image", "url": str(tmp_path / "a.png")}]},
        ]

    system, (role, (first, text, second)) = asked_parts("generate_until", "", to_messages, {})
    assert system == ("system", ("Be brief.",))
    assert (role, first, text) == ("user", PICTURE, "what?")
    assert second.size == PICTURE.size


def test_a_simple_request_has_its_pictures_first() -> None:
    parts = asked_parts("generate_until", "what?", {}, lambda doc: [doc["picture"], doc["picture"]])
    assert parts == [("user", (PICTURE, PICTURE, "what?"))]
    assert asked_parts("generate_until", "what?", {}, lambda doc: None) == [("user", ("what?",))]
    assert asked_parts("loglikelihood", "", "yes") == [("user", ("",))]


@pytest.mark.parametrize("content", [{"type": "video", "url": "a.mp4"}, {"type": "audio", "url": {"array": []}}])
def test_films_and_sounds_are_not_answered(content: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"has {content['type']} of type .*: vlmkit answers about pictures and text"):
        asked_parts("generate_until", "", lambda doc: [{"role": "user", "content": [content]}], {})


def test_other_requests_are_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match="t: vlmkit does not answer requests of the type generate_visual_cot"):
        request_of(instance("generate_visual_cot", "", {}, None), DOCS, DEFAULTS, 0)


def test_a_likelihood_is_a_loss_for_choices_and_a_logarithm_for_perplexities() -> None:
    answered = Answered(0, loglikelihood=Loglikelihood(-2.5, True))
    assert likelihood_for(instance("loglikelihood", "", "yes", None), answered) == (2.5, True)
    weighed = instance("loglikelihood", "", lambda doc: doc["text"], None)
    assert likelihood_for(weighed, answered) == (-2.5, True)
    assert request_of(weighed, DOCS, DEFAULTS, 0).continuation == "what?"
