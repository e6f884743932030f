import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlmkit.config import ModelConfig, TrainerConfig
from vlmkit.data.sources import read_easyvqa, read_easyvqa_test
from vlmkit.distributed import Ranks
from vlmkit.evaluation.exact_match import load_test, question_only_exact_match, run_test
from vlmkit.interrupt import StopSignal
from vlmkit.model.build import build_model
from vlmkit.model.packed import PackedVLM
from vlmkit.paths import RunPaths
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.processor import save_processor
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.tracking.console import Screen

TRAIN, TEST = read_easyvqa("train"), read_easyvqa_test()


def save(model: PackedVLM, encoder: ChatEncoder, folder: Path) -> None:
    model.hf.save_pretrained(folder)
    save_processor(folder, encoder.tokenizer, encoder.layout)


def test_the_question_only_baseline_of_easyvqa_is_67_percent() -> None:
    assert question_only_exact_match(TRAIN, TEST) == pytest.approx(0.6700, abs=5e-5)


def test_a_model_is_asked_every_question_and_its_answers_are_kept(
    tiny_model_config: ModelConfig, tokenizer: ChatTokenizer, encoder: ChatEncoder, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = PackedVLM(build_model(tiny_model_config, tokenizer), encoder.layout)
    few, paths = TEST[:20], RunPaths(tmp_path)
    save(model, encoder, paths.checkpoint(3))
    result = run_test(paths, 3, few, TRAIN, Ranks(TrainerConfig(), 0), Screen(is_main=False), StopSignal())
    assert result is not None
    assert [answer.question for answer in result.answered] == [question.text for question in few]
    right = [answer.answer in answer.right_answers for answer in result.answered]
    assert result.exact_match == sum(right) / 20
    assert load_test(paths, 3) == replace(result, answered=())
    assert load_test(paths, 4) is None
    lines = [json.loads(line) for line in paths.test_samples(3).read_text().splitlines()]
    assert [line["answer"] for line in lines] == [answer.answer for answer in result.answered]


def test_a_signal_leaves_the_test_unfinished(
    tiny_model_config: ModelConfig, tokenizer: ChatTokenizer, encoder: ChatEncoder, tmp_path: Path
) -> None:
    model, paths = PackedVLM(build_model(tiny_model_config, tokenizer), encoder.layout), RunPaths(tmp_path)
    save(model, encoder, paths.checkpoint(3))
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGUSR2)
        assert run_test(paths, 3, TEST, TRAIN, Ranks(TrainerConfig(), 0), Screen(False), stop) is None
    assert load_test(paths, 3) is None
