"""Every kind of source gives the same samples, streamed or by number, and names what it cannot read."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import easy_vqa
import pytest

from tests.conftest import Run
from tests.data.datasets import (
    Row,
    row,
    samples_of,
    some_rows,
    streamed_rows,
    write_hub,
    write_parquet,
    write_saved,
    write_shards,
    write_tar,
)
from vlmkit.config import DatasetConfig, EasyVQAConfig, HubConfig, LocalConfig, MixtureConfig, ShardsConfig
from vlmkit.data.rows import sample_from_row
from vlmkit.data.sources import build_sources
from vlmkit.errors import BadSampleError, ConfigError
from vlmkit.tracking.quiet import quiet_libraries

ROWS = some_rows()
EXPECTED = [sample_from_row(each, "") for each in ROWS]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_libraries()
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def parquet(folder: Path) -> DatasetConfig:
    return LocalConfig(path=str(write_parquet(folder / "a.parquet", ROWS, row_group_size=5)))


def parquet_files(folder: Path) -> DatasetConfig:
    for number in range(3):
        write_parquet(folder / f"part-{number}.parquet", ROWS[8 * number : 8 * number + 8])
    return LocalConfig(path=f"{folder}/part-*.parquet")


def parquet_folder(folder: Path) -> DatasetConfig:
    return LocalConfig(path=str(write_parquet(folder / "sub" / "deep" / "a.parquet", ROWS).parents[1]))


def tars(folder: Path) -> DatasetConfig:
    write_tar(folder / "a.tar", ROWS[:10])
    write_tar(folder / "b.tar", ROWS[10:])
    return LocalConfig(path=str(folder))


def saved(folder: Path) -> DatasetConfig:
    return LocalConfig(path=str(write_saved(folder / "saved", ROWS)))


def shards(folder: Path) -> DatasetConfig:
    return ShardsConfig(path=str(write_shards(folder, ROWS, 12)))


def hub(folder: Path) -> DatasetConfig:
    return HubConfig(repo=str(write_hub(folder, {"first": ROWS[:12], "second": ROWS[12:]})), subsets=["all"])


@pytest.mark.parametrize("streaming", [True, False], ids=["streamed", "by number"])
@pytest.mark.parametrize("make", [parquet, parquet_files, parquet_folder, tars, saved, shards, hub])
def test_every_kind_of_file_gives_the_same_samples(
    tmp_path: Path, make: Callable[[Path], DatasetConfig], streaming: bool
) -> None:
    config = make(tmp_path / "data")
    config.streaming = streaming
    [source] = build_sources(config)
    assert (source.rows is None) == streaming
    assert samples_of(source) == EXPECTED
    assert source.skipped == ()


def test_reading_a_saved_dataset_writes_nothing_beside_it(tmp_path: Path) -> None:
    config = saved(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    [source] = build_sources(config)
    samples_of(source)
    assert sorted(tmp_path.rglob("*")) == before


def test_files_may_differ_in_their_columns(tmp_path: Path) -> None:
    with_ratings = row([], 2, relevance=[3, None])
    write_parquet(tmp_path / "a.parquet", [row([]), row([], 2)])
    write_parquet(tmp_path / "b.parquet", [with_ratings])
    write_parquet(tmp_path / "c.parquet", [{"texts": row()["texts"]}])
    for streaming in (True, False):
        [source] = build_sources(LocalConfig(path=str(tmp_path), streaming=streaming))
        assert [len(sample.turns) for sample in samples_of(source)] == [1, 2, 2, 1]
        assert samples_of(source)[2].turns[0].ratings == (3, None, None, None)


def test_without_a_cache_parquet_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMKIT_CACHE", "/proc/nothing-can-be-made-here")
    [source] = build_sources(parquet_files(tmp_path))
    assert samples_of(source) == EXPECTED


def test_a_name_with_odd_characters_is_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]*b c: 'd'"
    for pattern in (folder, folder / "a.parquet"):
        parquet(folder)
        for streaming in (True, False):
            [source] = build_sources(LocalConfig(path=str(pattern), streaming=streaming))
            assert samples_of(source) == EXPECTED


@pytest.mark.parametrize("make", [parquet, tars, saved, shards])
def test_other_contents_have_another_fingerprint(tmp_path: Path, make: Callable[[Path], DatasetConfig]) -> None:
    config = make(tmp_path)
    [before], [again] = build_sources(config), build_sources(config)
    assert before.fingerprint == again.fingerprint
    changed = next(path for path in sorted(tmp_path.rglob("*")) if path.suffix in (".parquet", ".tar", ".arrow"))
    os.utime(changed, ns=(1, 1))
    newest = max(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    os.utime(changed, ns=(newest + 1, newest + 1))
    [after] = build_sources(config)
    assert after.fingerprint != before.fingerprint


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    config = LocalConfig(path=str(write_parquet(tmp_path / "a.parquet", ROWS[:4])))
    assert samples_of(*build_sources(config)) == EXPECTED[:4]
    write_parquet(tmp_path / "a.parquet", ROWS[4:9])
    assert samples_of(*build_sources(config)) == EXPECTED[4:9]


# ---- what cannot be read -------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
def test_a_broken_shard_is_skipped_and_named(tmp_path: Path, streaming: bool) -> None:
    write_shards(tmp_path, ROWS[:12], 4)
    arrow = next((tmp_path / "shard_1").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    (tmp_path / "shard_2" / "state.json").unlink()
    (tmp_path / "shard_x").mkdir()
    [source] = build_sources(ShardsConfig(path=str(tmp_path), streaming=streaming))
    assert samples_of(source) == EXPECTED[:3] + EXPECTED[9:12]
    assert [text.partition(": ")[0] for text in source.skipped] == [f"{tmp_path}/shard_1", f"{tmp_path}/shard_2"]
    assert all("cannot read the saved dataset" in text and "\n" not in text for text in source.skipped)


@pytest.mark.parametrize("make", [parquet_files, tars])
def test_a_broken_file_is_skipped_and_named(tmp_path: Path, make: Callable[[Path], DatasetConfig]) -> None:
    config = make(tmp_path)
    broken = sorted(tmp_path.iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:-9000])
    [source] = build_sources(config)
    assert [text.partition(": ")[0] for text in source.skipped] == [str(broken)]
    samples = samples_of(source)
    assert samples
    assert samples == EXPECTED[-len(samples) :]


def test_nothing_but_broken_files_is_one_line_that_names_the_key(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.parquet").write_bytes(b"no parquet")
        (tmp_path / "shards" / f"shard_{number}").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"^dataset\.path=.*: none of 2 can be read: .*/0\.parquet: cannot read"):
        build_sources(LocalConfig(path=f"{tmp_path}/*.parquet"))
    with pytest.raises(ConfigError, match=r"^dataset\.path=.*: none of 2 can be read: .*/shard_0: cannot read"):
        build_sources(ShardsConfig(path=str(tmp_path / "shards")))


def test_several_splits_are_not_taken_for_one(tmp_path: Path) -> None:
    split = datasets.Dataset.from_list(ROWS[:1])
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(ValueError, match=r"both: holds several splits \(train, test\): name the folder of one$"):
        build_sources(LocalConfig(path=str(tmp_path / "both")))


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("nowhere", "must be a file, a folder or a glob of files that are there"),
        ("*.parquet", "must be a file, a folder or a glob of files that are there"),
        ("empty", "must be parquet files, webdataset tars, or one save_to_disk folder"),
        ("rows.csv", "must be parquet files, webdataset tars, or one save_to_disk folder"),
        ("mixed/*", "must be parquet files, webdataset tars, or one save_to_disk folder"),
    ],
)
def test_a_wrong_path_is_told_before_anything_is_read(tmp_path: Path, path: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name in ("rows.csv", "mixed/a.parquet", "mixed/b.tar"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"^dataset\.path=") as caught:
        build_sources(LocalConfig(path=str(tmp_path / path)))
    assert told in str(caught.value)


def test_shards_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_shards(tmp_path, ROWS[:12], 12)
    [source] = build_sources(ShardsConfig(path=str(tmp_path), streaming=True))
    assert [file.name for file in source.files] == [f"shard_{number}" for number in range(12)]


# ---- the hub -------------------------------------------------------------------------------------------


@pytest.fixture
def repo(tmp_path: Path) -> str:
    """A folder laid out like FineVision."""
    return str(write_hub(tmp_path / "FineVision", {"sam": ROWS[:12], "coco": ROWS[12:]}))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("subsets", "expected"),
    [
        (["coco"], EXPECTED[12:]),
        (["sam"], EXPECTED[:12]),
        (["coco", "sam"], EXPECTED[12:] + EXPECTED[:12]),
        (["all"], EXPECTED),
    ],
)
def test_subsets_are_those_named(repo: str, subsets: list[str], expected: list[Any], streaming: bool) -> None:
    [source] = build_sources(HubConfig(repo=repo, subsets=subsets, streaming=streaming))
    assert source.name == "FineVision"
    assert samples_of(source) == expected


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"subsets": ["sum"]}, "'sum' not found. Available: ['sam', 'coco']"), ({"split": "trian"}, "train")],
)
def test_a_wrong_subset_or_split_is_one_line_with_the_choices(
    repo: str, wrong: dict[str, Any], told: str, streaming: bool
) -> None:
    options = {"subsets": ["sam"], "streaming": streaming} | wrong
    with pytest.raises(ConfigError, match=r"^dataset\.repo=") as caught:
        build_sources(HubConfig(repo=repo, **options))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_of_a_repository_is_never_run(repo: str, tmp_path: Path) -> None:
    Path(repo, "FineVision.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    for streaming in (True, False):
        try:
            [source] = build_sources(HubConfig(repo=repo, subsets=["sam"], streaming=streaming))
            assert samples_of(source) == EXPECTED[:12]
        except ConfigError as error:
            assert "scripts are no longer supported" in str(error)
    assert not (tmp_path / "was_run").exists()


def test_what_is_not_parquet_does_not_stream(tmp_path: Path) -> None:
    config = "---\nconfigs:\n- config_name: default\n  data_files: rows.jsonl\n---\n"
    (tmp_path / "README.md").write_text(config)
    (tmp_path / "rows.jsonl").write_text('{"texts": [{"user": "q", "assistant": "a"}]}\n')
    with pytest.raises(ConfigError, match=r"default has other files than parquet, .* dataset\.streaming=false"):
        build_sources(HubConfig(repo=str(tmp_path)))
    assert len(samples_of(*build_sources(HubConfig(repo=str(tmp_path), streaming=False)))) == 1


def test_without_a_hub_a_command_ends_with_one_line(vlmkit: Run) -> None:
    done = vlmkit("index", "dataset=finevision", "model=tiny", "dataset.streaming=false", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: dataset.repo=HuggingFaceM4/FineVision: Couldn't reach 'HuggingFaceM4/FineVision' on the Hub "
        "(OfflineModeIsEnabled); offline, use dataset=local"
    )


# ---- several sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
def test_a_mixture_has_a_source_for_each_part(tmp_path: Path, streaming: bool) -> None:
    parts: dict[str, Row] = {
        "files": {"dataset": "local", "weight": 3, "path": str(write_tar(tmp_path / "a.tar", ROWS))},
        "shapes": {"dataset": "easyvqa", "weight": 0.5},
    }
    files, shapes = build_sources(MixtureConfig(parts=parts, streaming=streaming))
    assert (files.name, files.weight, shapes.name, shapes.weight) == ("files", 3.0, "shapes", 0.5)
    assert samples_of(files) == EXPECTED
    assert len(samples_of(shapes)) == 4000
    assert (files.rows is None) == (shapes.rows is None) == streaming


# ---- easy-VQA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
def test_easyvqa_holds_every_training_question_once_and_no_test_picture(streaming: bool) -> None:
    [source] = build_sources(EasyVQAConfig(streaming=streaming))
    samples = samples_of(source)
    asked = [(Path(str(s.images[0])).stem, turn.user, turn.assistant) for s in samples for turn in s.turns]
    questions, answers, pictures = easy_vqa.get_train_questions()
    assert sorted(asked) == sorted(zip(map(str, pictures), questions, answers, strict=True))
    test_paths = set(easy_vqa.get_test_image_paths().values())
    assert not test_paths & {str(image) for sample in samples for image in sample.images}
    assert {str(question.image) for question in source.test} <= test_paths
    assert len(source.test) == 9673


def test_bad_rows_are_named_by_source_and_row(tmp_path: Path) -> None:
    config = LocalConfig(path=str(write_parquet(tmp_path / "a.parquet", [ROWS[0], row() | {"texts": []}])))
    [source] = build_sources(config)
    with pytest.raises(BadSampleError, match=r"^local/1: no texts$"):
        source.sample(1)
    config.streaming = True
    [streamed] = build_sources(config)
    assert len(list(streamed_rows(streamed))) == 2
