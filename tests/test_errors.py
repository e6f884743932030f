"""What a user gets wrong is told in one line, at once."""

from pathlib import Path

import pytest
import yaml

from tests.conftest import QUICK, Run, composed
from vlmkit.run_directory import plain_config

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dataset=easyvqq"], ["dataset=easyvqq", "choose from", "easyvqa"]),
        (["filter.relevance_min_ratin=3"], ["filter.relevance_min_ratin", "did you mean filter.relevance_min_rating?"]),
        (["batch_size=3"], ["batch_size", "unknown key", "trainer"]),
        (["trainer.batchsize=3"], ["trainer.batchsize", "did you mean trainer.batch_size?"]),
        (["model.vision.foo=3"], ["model.vision.foo", "tile_size"]),
        (["packing=bfd", "packing.pool_size=3"], ["packing.pool_size", "not a key of the chosen packing option"]),
        (["dataset=local"], ["dataset.path"]),
        (["dataset=local", "dataset.path=/nowhere/*.parquet"], ["dataset.path=/nowhere/*.parquet", "that are there"]),
        (["dataset=shards", "dataset.path=/tmp"], ["dataset.path=/tmp", "shard_0"]),
        (["filter.relevance_min_rating=7"], ["filter.relevance_min_rating=7", "1, 2, 3, 4 or 5"]),
        (["filter.formatting_min_rating=0"], ["filter.formatting_min_rating=0", "1, 2, 3, 4 or 5"]),
        (["trainer.batch_size=two"], ["trainer.batch_size=two", "Integer"]),
        (["logger.wandb=maybe"], ["logger.wandb=maybe", "auto", "offline"]),
        (["trainer.max_training_steps=0"], ["trainer.max_training_steps=0", "above 0"]),
        (["model.vision.num_heads=5"], ["model.vision.num_heads=5", "model.vision.hidden_size=128"]),
        (["dataset.max_sample_length=5000"], ["dataset.max_sample_length=5000", "packing.seq_length"]),
        (["model.tokenizer=/nowhere"], ["model.tokenizer=/nowhere", "tokenizer.json"]),
        (["model=checkpoint"], ["model.init_from", "must name a checkpoint"]),
        (["model=checkpoint", "model.init_from=/nowhere"], ["model.init_from=/nowhere", "org/name[@revision]"]),
        (["model.language.pretrained=/nowhere"], ["model.language.pretrained=/nowhere", "a folder that is there"]),
        (
            ["model=checkpoint", f"model.init_from={GOLDEN / 'checkpoint'}", "model.language.num_layers=4"],
            ["model.language.num_layers=4: must be 3, as in model.init_from="],
        ),
        (["model.vision.pretrained=.", "model.vision.num_heads=2"], ["model.vision.pretrained=.", "no *.safetensors"]),
        (["optimizer.beta1=1"], ["optimizer.beta1=1", "below 1"]),
        (["evals=local", "evals.schedule=[{tasks: [mme]}]"], ["evals.schedule[0].tasks=mme", "[easyvqa]"]),
        (["evals=local", "evals.schedule=[{every: 7}]"], ["evals.schedule[0].every=7", "trainer.eval_interval=300"]),
        (["logger.wandb=online"], ["logger.wandb=online", "WANDB_API_KEY"]),
        (["run_dir=/dev/null/run"], ["run_dir=/dev/null/run", "cannot write"]),
        (["-m", "run_dir=x", "seed=0,1"], ["run_dir", "hydra.sweep.dir"]),
        (["resume=/nowhere"], ["resume=/nowhere", "auto, never, or"]),
        (["packing.seq_length="], ["packing.seq_length"]),
        (["seed=[1"], ["seed=[1"]),
        (["--cfg", "jobb"], ["jobb"]),
        (["dataset=mixture"], ["dataset.parts={}", "at least one"]),
        (
            ["dataset=mixture", "dataset.parts.a={dataset: easyvqa, weight: 1}"],
            ["dataset.parts", "+dataset.parts.NAME"],
        ),
        (["dataset=mixture", "+dataset.parts.a={dataset: easyvqq, weight: 1}"], ["dataset.parts.a.dataset", "easyvqa"]),
        (["dataset=mixture", "+dataset.parts.a={dataset: easyvqa}"], ["dataset.parts.a.weight"]),
        (["dataset=local", "dataset.path=/nowhere/*.tar"], ["dataset.path=/nowhere/*.tar", "files that are there"]),
        (["dataset.path=/nowhere"], ["dataset.path", "not a key of the chosen dataset option"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_heavy_is_imported(
    vlmkit: Run, tmp_path: Path, arguments: list[str], told: list[str]
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = vlmkit("train", *arguments)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert all(text in last for text in told), done.stderr
    assert "Traceback" not in done.stderr
    assert "torch was imported" not in done.stderr


def test_a_traceback_comes_only_if_asked_for(vlmkit: Run) -> None:
    done = vlmkit("train", "filter.relevance_min_rating=9", HYDRA_FULL_ERROR="1")
    assert "Traceback" in done.stderr


def test_a_missing_package_is_named(vlmkit: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.machinery as machinery\n"
        "find = machinery.PathFinder.find_spec\n"
        "machinery.PathFinder.find_spec = classmethod(\n"
        "    lambda cls, name, *rest, **more: None if name == 'easy_vqa' else find(name, *rest, **more))\n"
    )
    done = vlmkit("train", PYTHONPATH=str(tmp_path))
    assert done.stderr.strip() == (
        "error: dataset=easyvqa: needs the package easy-vqa, which is not installed: pip install easy-vqa"
    )


def test_a_hub_that_cannot_be_reached_is_one_line(vlmkit: Run, tmp_path: Path) -> None:
    done = vlmkit("train", "model=smolvlm_256m", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: model.init_from=HuggingFaceTB/SmolVLM-256M-Instruct: is no folder here and cannot")
    assert line.endswith("name a folder with its files, or fetch it once where there is a network")


def test_a_run_directory_of_another_config_is_refused(vlmkit: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(plain_config(composed("train", "seed=3", *QUICK))))
    done = vlmkit("train", f"run_dir={run}", "seed=4", *QUICK)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"error: run_dir={run} holds a different config (seed=3 there, 4 here): choose another run_dir"
    )


def test_a_file_as_run_directory_is_refused(vlmkit: Run, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    done = vlmkit("train", "run_dir=run", *QUICK)
    assert "must be a directory, not a file" in done.stderr
