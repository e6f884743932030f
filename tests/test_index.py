"""The command that measures a dataset ahead: what it says, and what is left of it when it is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Run, command_environment
from tests.data.datasets import picture, row, some_rows, turn, write_parquet, write_shards
from vlmkit.config import LocalConfig
from vlmkit.data.index import ARRAYS, load_or_build_index
from vlmkit.data.sources import build_sources
from vlmkit.processing.chat import ChatEncoder


def start(cache: Path, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vlmkit.index", "dataset=local", f"dataset.path={path}"],
        env=command_environment() | {"VLMKIT_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return output


def test_it_says_where_each_index_is_and_what_is_in_it(vlmkit: Run, tmp_path: Path) -> None:
    rows = [*some_rows(), {"texts": []}, row([b"no picture"]), {"texts": None}]
    write_parquet(tmp_path / "data" / "a.parquet", rows)
    write_shards(tmp_path / "shards", some_rows(6), 3)
    next((tmp_path / "shards" / "shard_1").glob("*.arrow")).write_bytes(b"")
    command = [
        "index",
        "dataset=mixture",
        "+dataset.parts.files={dataset: local, weight: 1, path: data}",
        "+dataset.parts.folders={dataset: shards, weight: 3, path: shards}",
    ]
    cache = tmp_path / "cache"
    done = vlmkit(*command, VLMKIT_CACHE=str(cache))
    assert (done.returncode, done.stderr) == (0, "")
    [files], [folders] = cache.glob("files-*"), cache.glob("folders-*")
    lines = re.sub(r"\d:\d\d:\d\d", "TIME", done.stdout).splitlines()
    assert lines.pop(-2).startswith("  skipped shards/shard_1: cannot read the saved dataset: ")
    assert lines == [
        "measuring files …",
        "files: 23 samples, in TIME",
        "  3 cannot be read: no texts (2), cannot read the picture (1); the first is files/23: no texts",
        f"  {files}",
        "measuring folders …",
        "folders: 4 samples, in TIME",
        f"  {folders}",
    ]
    other_choices = ["model.vision.tile_size=32", "model.image.max_img_size=128", "model.vision.patch_size=8"]
    other_choices += ["filter.relevance_min_rating=3", "dataset.max_images_per_example=1", "packing.seq_length=512"]
    other = vlmkit(*command, *other_choices, VLMKIT_CACHE=str(cache))
    assert (other.returncode, other.stderr) == (0, "")
    assert "measuring" not in other.stdout


def test_a_stream_needs_none(vlmkit: Run) -> None:
    done = vlmkit("index", "dataset=finevision")
    assert done.stdout.splitlines() == [
        "nothing to do: a dataset that is streamed needs no index (dataset.streaming=true)"
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dataset=local", "dataset.path=/nowhere"], "dataset.path=/nowhere: must be a file"),
        (["dataset=local"], "dataset.path: "),
        (["dataset=shards", "dataset.path=/nowhere"], "dataset.path=/nowhere: must be a folder with folders shard_0"),
        (["dataset=mixture", "+dataset.parts.a={dataset: local, weight: 1, path: /nowhere}"], "dataset.parts.a.path="),
        (["model.tokenizer=/nowhere"], "model.tokenizer=/nowhere"),
        (["VLMKIT_CACHE"], "VLMKIT_CACHE=/proc/nowhere: must be a folder that can be written to"),
    ],
)
def test_a_mistake_is_one_line_before_anything_heavy_is_imported(
    vlmkit: Run, tmp_path: Path, arguments: list[str], told: str
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    if arguments == ["VLMKIT_CACHE"]:
        done = vlmkit("index", VLMKIT_CACHE="/proc/nowhere")
    else:
        done = vlmkit("index", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {told}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_stopped_even_if_two_go_on_at_once(
    encoder: ChatEncoder, tmp_path: Path
) -> None:
    path, cache = tmp_path / "a.parquet", tmp_path / "cache"
    rows = [{"images": [], "texts": [turn(f"question {number}") for _ in range(3)]} for number in range(6000)]
    write_parquet(path, [*rows, row([picture()]), row([b"no picture"])], row_group_size=1000)
    process = start(cache, path)
    parts = wait_for_a_part(cache)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (parts.parent / "index.json").exists()

    finished = next(parts.glob("*/index.json")).parent
    lengths = np.load(finished / "later_lengths.npy")
    np.save(finished / "later_lengths.npy", lengths + 1000)  # so it shows whether this part is measured again
    for output in [finish(process) for process in [start(cache, path), start(cache, path)]]:
        assert "local: 6,001 samples" in output
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)  # they end with their parent

    [source] = build_sources(LocalConfig(path=str(path)))
    expected = load_or_build_index(source, encoder, tmp_path / "other", lambda starts: starts, processes=1)
    [folder] = cache.glob("local-*")
    assert {path.name for path in folder.iterdir()} == {"index.json", ".lock", *(f"{name}.npy" for name in ARRAYS)}
    for name in ARRAYS:
        found, wanted = np.load(folder / f"{name}.npy"), np.array(getattr(expected, name))
        if name == "later_lengths":
            first = 3 * int(finished.name)
            wanted[first : first + len(lengths)] += 1000
        assert np.array_equal(found, wanted), name


def wait_for_a_part(cache: Path) -> Path:
    """Wait until a part is finished, and give the folder of the parts."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if finished := list(cache.glob("local-*/parts/*/index.json")):
            return finished[0].parents[1]
        time.sleep(0.005)
    raise TimeoutError("no part was finished")


def children(process: int) -> list[int]:
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
