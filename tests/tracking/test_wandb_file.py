"""What wandb's own service wrote is read back, also up to where the file was torn."""

from pathlib import Path

import pytest
import wandb

from vlmkit.tracking.wandb_file import BLOCK, read_records
from vlmkit.tracking.wandb_sink import read_wandb_file

ROWS = 200


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of several blocks, with a record that is longer than a block."""
    folder = tmp_path_factory.mktemp("wandb_file")
    run = wandb.init(dir=folder, mode="offline", settings=wandb.Settings(silent=True, console="off"))
    for number in range(ROWS):
        run.log({"number": number, "text": "x" * (3 * BLOCK if number == 100 else 300)})
    run.finish()
    wandb.teardown()
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    return path


def test_all_rows_are_there_also_those_that_cross_blocks(written: Path) -> None:
    rows = list(read_wandb_file(written))
    assert [int(row["number"]) for row in rows] == list(range(ROWS))
    assert len(rows[100]["text"]) == 3 * BLOCK + 2  # with its quotes
    assert written.stat().st_size > 4 * BLOCK


def test_of_a_torn_or_damaged_file_what_stands_before_is_read(written: Path, tmp_path: Path) -> None:
    whole, torn = list(read_records(written)), tmp_path / "torn.wandb"
    content = written.read_bytes()
    for end in [*range(40), *range(40, len(content), 4999)]:
        torn.write_bytes(content[:end])
        found = list(read_records(torn))
        assert found == whole[: len(found)]
        torn.write_bytes(content[:end] + b"\xff" + content[end + 1 :] if end >= 7 else content)
        found = list(read_records(torn))
        assert found == whole[: len(found)]


def test_another_format_is_told(tmp_path: Path) -> None:
    (tmp_path / "new.wandb").write_bytes(b"SQLite format 3")
    with pytest.raises(ValueError, match=r"new\.wandb is of an unknown format"):
        list(read_records(tmp_path / "new.wandb"))
