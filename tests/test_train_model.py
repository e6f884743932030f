"""Runs that start from a checkpoint."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

from tests.conftest import QUICK, Run
from vlmkit.model.build import load_checkpoint

NANOVLM = Path(__file__).parent / "golden" / "checkpoint"
SHORT = [each for each in QUICK if not each.startswith("model.")] + [
    "trainer.max_training_steps=1",
    "trainer.eval_interval=1",
]


@pytest.mark.slow
def test_a_run_starts_from_a_nanovlm_checkpoint_and_another_from_its_own(vlmkit: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    done = vlmkit("train", "model=checkpoint", f"model.init_from={NANOVLM}", f"run_dir={first}", *SHORT)
    assert done.returncode == 0, done.stderr
    stated = yaml.safe_load((first / "config.yaml").read_text())["model"]
    assert (stated["language"]["num_layers"], stated["image"]["mean"]) == (3, 0.0)

    begun = load_checkpoint(str(NANOVLM)).model.state_dict()
    trained = AutoModelForImageTextToText.from_pretrained(first / "checkpoints" / "step_1").state_dict()
    assert all(torch.allclose(trained[name], begun[name], atol=0.02) for name in begun)  # one step away
    assert not torch.equal(trained["lm_head.weight"], begun["lm_head.weight"])

    own = f"model.init_from={first}/checkpoints/step_1"
    done = vlmkit("train", "model=checkpoint", own, f"run_dir={second}", "optimizer.lr_vision=0", *SHORT)
    assert done.returncode == 0, done.stderr
    restated = yaml.safe_load((second / "config.yaml").read_text())["model"]
    changed = {"init_from": restated["init_from"], "tokenizer": f"{first}/checkpoints/step_1"}
    assert restated == stated | changed
    kept = AutoModelForImageTextToText.from_pretrained(second / "checkpoints" / "step_1").state_dict()
    frozen = [name for name in kept if ".vision_model." in name]
    assert frozen
    assert all(torch.equal(kept[name], trained[name]) for name in frozen)
