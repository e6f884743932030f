"""Mixtures from the command's words to the banner, and what a run is told of data that cannot be read."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import composed
from tests.data.datasets import some_rows, write_parquet, write_shards
from vlmkit.config import HubConfig, LocalConfig, MixtureConfig, TrainConfig
from vlmkit.data.pipeline import TrainingData, build_training_data
from vlmkit.errors import ConfigError, DataError
from vlmkit.local_files import check_files
from vlmkit.processing.chat import ChatEncoder
from vlmkit.tracking.quiet import quiet_libraries


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 rows in a parquet file, three of them bad, and 20 in four shards, one of them broken."""
    quiet_libraries()
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "cache"))
    rows = some_rows(40)
    for number in (3, 5, 8):
        rows[number]["texts"] = []
    write_parquet(tmp_path / "a.parquet", rows)
    write_shards(tmp_path / "shards", some_rows(20), 4)
    next((tmp_path / "shards" / "shard_2").glob("*.arrow")).write_bytes(b"broken")
    return tmp_path


def mixture(folder: Path, *more: str) -> TrainConfig:
    config: TrainConfig = composed(
        "train",
        "dataset=mixture",
        f"+dataset.parts.files={{dataset: local, weight: 3, path: {folder}/a.parquet}}",
        f"+dataset.parts.folders={{dataset: shards, weight: 1, path: {folder}/shards}}",
        "dataset.val_size=4",
        "packing.seq_length=2048",
        "trainer.gradient_accumulation_steps=1",
        *more,
    )
    return config


def build(config: TrainConfig, encoder: ChatEncoder) -> TrainingData:
    return build_training_data(config, encoder, 0, 1, lambda starts: starts)


def test_the_banner_tells_share_and_epochs_of_each_source_and_what_is_left_out(
    folder: Path, encoder: ChatEncoder
) -> None:
    data = build(mixture(folder), encoder)
    text = data.describe()
    # Of 40 + 15 rows 3 are bad and 2 + 1 held out; of the 35 + 14 that are left, 49 are drawn 3 to 1: 37 + 12.
    assert text.startswith("files (75.5%, 1.06 times through) + folders (24.5%, 0.86 times through): 49 samples")
    assert "left out: 3 no texts" in text
    assert f"1 file(s) skipped, the first is {folder}/shards/shard_2: cannot read the saved dataset" in text
    assert [error.name for error in data.bad] == ["files/3", "files/5", "files/8"]


def test_where_no_index_can_be_kept_each_source_is_measured_once(
    folder: Path, encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMKIT_CACHE", "/proc/nothing-can-be-made-here")
    watched: list[list[int]] = []

    def watch(starts: Iterable[int]) -> list[int]:
        watched.append(list(starts))
        return watched[-1]

    build_training_data(mixture(folder), encoder, 0, 1, watch)
    assert len(watched) == 2


def test_the_banner_of_a_streamed_mixture_tells_the_shares_aimed_at(folder: Path, encoder: ChatEncoder) -> None:
    text = build(mixture(folder, "dataset.streaming=true"), encoder).describe()
    assert text.startswith("files (75.0%) + folders (25.0%): streamed from 4 file(s); 1 file(s) skipped")


def test_one_source_has_no_share_to_tell(folder: Path, encoder: ChatEncoder) -> None:
    one = composed(
        "train", "dataset=local", f"dataset.path={folder}/a.parquet", "dataset.val_size=4", "packing.seq_length=2048"
    )
    assert build(one, encoder).describe().startswith("local: 33 samples an epoch")


def test_too_many_bad_samples_in_the_index_end_the_run_before_it_starts(folder: Path, encoder: ChatEncoder) -> None:
    with pytest.raises(
        DataError,
        match=r"^3 of 55 samples cannot be read, more than dataset\.max_bad_share=0\.05: no texts \(3\); "
        r"the first is files/3: no texts$",
    ):
        build(mixture(folder, "dataset.max_bad_share=0.05"), encoder)


# ---- the config ----------------------------------------------------------------------------------------


def test_a_part_is_the_option_of_that_name_with_its_own_keys() -> None:
    parts = {
        "a": {"dataset": "finevision_concat", "weight": 2},
        "b": {"dataset": "finevision", "weight": 1, "split": "test"},
        "c": {"dataset": "local", "weight": 0.5, "path": "x"},
    }
    typed = MixtureConfig(parts=parts, streaming=True).typed_parts
    assert typed["a"].dataset == HubConfig(repo="HuggingFaceM4/FineVision_concat_shuffled_2")
    assert typed["b"].dataset == HubConfig(subsets=["all"], split="test")
    assert typed["c"].dataset == LocalConfig(path="x", streaming=True)
    assert [part.weight for part in typed.values()] == [2, 1, 0.5]
    assert not any(part.dataset.streaming for part in MixtureConfig(parts=parts).typed_parts.values())


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"weight": 1}, "dataset.parts.a.dataset=None: must be one of easyvqa, easyvqa_rated, finevision, "),
        ({"dataset": "easyvqq", "weight": 1}, "dataset.parts.a.dataset=easyvqq: must be one of easyvqa, "),
        ({"dataset": "mixture", "weight": 1}, "dataset.parts.a.dataset=mixture: must be one of easyvqa, "),
        ({"dataset": ["easyvqa"], "weight": 1}, "dataset.parts.a.dataset=['easyvqa']: must be one of easyvqa, "),
        ({"dataset": "easyvqa"}, "dataset.parts.a.weight=None: must be a number above 0"),
        ({"dataset": "easyvqa", "weight": 0}, "dataset.parts.a.weight=0: must be a number above 0"),
        ({"dataset": "easyvqa", "weight": -1}, "dataset.parts.a.weight=-1: must be a number above 0"),
        ({"dataset": "easyvqa", "weight": "1"}, "dataset.parts.a.weight=1: must be a number above 0"),
        ({"dataset": "easyvqa", "weight": True}, "dataset.parts.a.weight=True: must be a number above 0"),
        ({"dataset": "easyvqa", "weight": float("nan")}, "dataset.parts.a.weight=nan: must be a number above 0"),
        ({"dataset": "easyvqa", "weight": float("inf")}, "dataset.parts.a.weight=inf: must be a number above 0"),
        ({"dataset": "local", "weight": 1}, "dataset.parts.a.path: "),
        ({"dataset": "local", "weight": 1, "pth": "x"}, "dataset.parts.a.pth: Key 'pth' not in 'LocalConfig'"),
        ({"dataset": "local", "weight": 1, "path": "/nowhere"}, "dataset.parts.a.path=/nowhere: must be a file, "),
        ({"dataset": "finevision", "weight": 1, "subsets": []}, "dataset.parts.a.subsets=[]: must be a list of"),
        ({"dataset": "easyvqa", "weight": 1, "val_size": 3}, "dataset.parts.a.val_size=3: must be set for the whole "),
    ],
)
def test_a_wrong_part_is_one_line_with_the_full_key(part: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_files(MixtureConfig(parts={"a": part}))
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
