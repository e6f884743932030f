"""Names of run directories."""

import pytest

from tests.conftest import composed
from vlmkit.config import BestFitConfig, read_group
from vlmkit.run_directory import choose_run_dir, plain_config, sweep_subdir


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["seed=0", "filter.relevance_min_rating=1"], "filter.relevance_min_rating=1,seed=0"),
        (["seed=0", "cluster=example_gpu", "+cluster.environment.A=1", "evals=slurm", "evals.gpus=[0]"], "seed=0"),
        (["eval_suite=full"], "eval_suite=full"),
        (["dataset=local", "dataset.path=/data/a"], "dataset.path=_data_a,dataset=local"),
        ([], "run"),
        (["cluster=local"], "run"),
    ],
)
def test_a_directory_of_a_sweep_is_named_after_what_makes_its_run(overrides: list[str], name: str) -> None:
    assert sweep_subdir(overrides) == name


def test_a_name_that_is_too_long_for_a_folder_is_cut_and_stays_another_for_other_runs() -> None:
    names = {sweep_subdir([f"dataset.path={'ä' * 200}", f"seed={seed}"]) for seed in range(3)}
    assert len(names) == 3
    assert all(240 < len(name.encode()) <= 255 for name in names)
    assert sweep_subdir([f"a={'x' * 253}"]) == f"a={'x' * 253}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["packing=bfd"], ["packing=none"]),
        (["dataset=local", "dataset.path=/data/a"], ["dataset=shards", "dataset.path=/data/a"]),
    ],
)
def test_options_with_the_same_keys_are_other_configs_and_have_directories_of_their_own(
    one: list[str], other: list[str]
) -> None:
    configs = [composed("train", *overrides) for overrides in (one, other)]
    assert plain_config(configs[0]) != plain_config(configs[1])
    names = {"dataset": "local", "model": "tiny"}
    assert len({choose_run_dir(config, names, None).root for config in configs}) == 2


def test_what_is_written_of_a_group_is_read_as_its_class() -> None:
    written = plain_config(composed("train", "packing=bfd", "packing.seq_length=77"))["packing"]
    assert written["kind"] == "bfd"
    assert read_group(BestFitConfig, written) == BestFitConfig(seq_length=77)
