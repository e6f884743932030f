"""Streams are read from many places, and then looked at like everything else."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.reporting.conftest import Look
from tests.reporting.rated_data import rated_rows, write_rated
from vlmkit.errors import DataError
from vlmkit.reporting.statistics import Statistics, compute_statistics


def statistics_of(look: Look, *overrides: str, path: Path) -> Statistics:
    config, encoder, survey = look(*overrides, path=path)
    return compute_statistics(survey, config, encoder.layout)


def test_a_stream_that_is_read_to_its_end_has_the_same_figures(look: Look, tmp_path: Path) -> None:
    files = write_rated(tmp_path, num_files=3)
    streamed = statistics_of(look, "dataset.streaming=true", path=files)
    by_number = statistics_of(look, path=files)
    assert streamed.streamed
    for name in ("rows", "samples", "turns", "pictures", "trained"):
        assert getattr(streamed, name) == getattr(by_number, name)
    without = {"sources": (), "streamed": False, "bad": (), "packs": None, "grids": (), "picture_sizes": ()}
    assert replace(streamed, **without, left_out=()) == replace(by_number, **without, left_out=())
    assert {(bad.reason, bad.count) for bad in streamed.bad} == {(bad.reason, bad.count) for bad in by_number.bad}
    assert set(streamed.left_out) == set(by_number.left_out)


def test_of_a_stream_so_many_rows_are_read_from_all_its_files(look: Look, tmp_path: Path) -> None:
    files = write_rated(tmp_path, num_files=4)  # 10 rows each
    _, _, survey = look("dataset.streaming=true", "max_rows=12", path=files)
    [one] = survey.sources
    assert one.names is not None
    assert len(one.names) == len(set(one.names)) == 12
    assert {name.split("/")[1] for name in one.names} == {f"{file}.parquet" for file in range(4)}
    rows = rated_rows()
    for name, row in zip(one.names, one.source.rows or (), strict=True):
        _, file, number = name.split("/")
        assert row["texts"] == rows[int(file.removesuffix(".parquet")) * 10 + int(number)]["texts"]


def test_a_broken_file_of_a_stream_is_skipped_and_named(look: Look, tmp_path: Path) -> None:
    files = write_rated(tmp_path, num_files=2)
    (files / "1.parquet").write_bytes(b"PAR1 and no more")
    statistics = statistics_of(look, "dataset.streaming=true", path=files)
    assert statistics.rows == 20
    [skipped] = statistics.sources[0].skipped
    assert skipped.startswith(f"{files}/1.parquet: cannot read the parquet file")


def test_a_stream_without_a_whole_file_is_an_error(look: Look, tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"local: no file can be read: .*0\.parquet"):
        look("dataset.streaming=true", path=tmp_path)
