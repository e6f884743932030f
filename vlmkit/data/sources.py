"""Where rows come from: one function for each dataset option, read by number or as files that stream.

A ``Source`` has either ``rows`` (all of them, by number: an index can be made and the order planned) or ``files``
(read one group at a time: nothing but names is known in advance).
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, get_dataset_config_names, load_dataset, load_dataset_builder

from vlmkit.config import (
    DatasetConfig,
    EasyVQAConfig,
    EasyVQARatedConfig,
    HubConfig,
    LocalConfig,
    MixtureConfig,
    ShardsConfig,
)
from vlmkit.data.files import (
    ArrowFile,
    ArrowRows,
    JoinedRows,
    ParquetFile,
    RowFile,
    RowsFile,
    TarFile,
    open_saved,
)
from vlmkit.data.rated import rated_rows
from vlmkit.data.rows import Row, read_row, sample_from_row
from vlmkit.errors import ConfigError, DataError
from vlmkit.local_files import find_files, find_shards
from vlmkit.paths import cache_dir, is_writable
from vlmkit.types import Sample

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a test part, with the answers that count as right."""

    image: Path | bytes
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one dataset."""

    name: str
    rows: Sequence[Row] | None = None  # by number; None if streamed
    files: Sequence[RowFile] = ()  # if streamed
    folder: Path | None = None  # where the paths of pictures lead from
    weight: float | None = None  # share in a mixture; None: as large as it is
    fingerprint: str = ""  # changes if the files may have changed: place, size and time of each
    contents: str = ""  # the same for a copy of the files elsewhere: name and size of each
    skipped: tuple[str, ...] = ()  # files that cannot be read, each with the reason
    test: Sequence[Question] = field(default=(), repr=False)
    validation: "Source | None" = None  # the same rows as they are validated on; None: as they are

    def all_rows(self) -> Iterator[Row]:
        """Every row once, in the order of the files."""
        yield from self.rows or ()
        for file in self.files:
            opened = file.open()
            for number, size in enumerate(opened.group_sizes):
                group = opened.group(number)
                yield from (group.row(row) for row in range(size))

    def sample(self, row: int) -> Sample:
        """The sample of a row, if rows have numbers.

        Raises:
            BadSampleError: There is none.
        """
        assert self.rows is not None
        name = f"{self.name}/{row}"
        return sample_from_row(read_row(self.rows.__getitem__, row, name), name, self.folder)


def build_sources(config: DatasetConfig) -> list[Source]:
    """The sources that the config names: the parts of a mixture, else one.

    Raises:
        ConfigError: The config names nothing that is there.
    """
    if not isinstance(config, MixtureConfig):
        return [_build_source(config, "dataset")]
    return [
        _build_source(part.dataset, f"dataset.parts.{name}", name, part.weight)
        for name, part in config.typed_parts.items()
    ]


def _build_source(config: DatasetConfig, key: str, name: str | None = None, weight: float | None = None) -> Source:
    match config:
        case EasyVQARatedConfig():
            return _read_easyvqa_rated(config, name or "easyvqa_rated", weight)
        case EasyVQAConfig():
            return _easyvqa_source(read_easyvqa("train"), config, name or "easyvqa", weight)
        case ShardsConfig():
            return _read_shards(config, key, name or "shards", weight)
        case LocalConfig():
            return _read_local(config, key, name or "local", weight)
        case HubConfig():
            return _read_hub(config, key, name or config.repo.rsplit("/", 1)[-1], weight)
        case _:
            raise AssertionError(f"no reader for {type(config).__name__}")


# ---- folders and files on this machine -----------------------------------------------------------------


def _read_shards(config: ShardsConfig, key: str, name: str, weight: float | None) -> Source:
    """Folders that ``save_to_disk`` wrote; broken ones are skipped and named."""
    whole, skipped = _readable(find_shards(config.path, key), open_saved, f"{key}.path={config.path}")
    return Source(
        name,
        None if config.streaming else JoinedRows([ArrowRows(dataset) for dataset in whole.values()]),
        [ArrowFile(folder) for folder in whole] if config.streaming else (),
        folder=Path(config.path).expanduser(),
        weight=weight,
        fingerprint=_fingerprint([_stamp(folder) for folder in whole]),
        contents=_fingerprint([_name_and_size(folder) for folder in whole]),
        skipped=skipped,
    )


def _read_local(config: LocalConfig, key: str, name: str, weight: float | None) -> Source:
    """Parquet files, webdataset tars, or a folder written by ``save_to_disk``; broken files are skipped and named."""
    paths = find_files(config.path, key)
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    if config.streaming:  # what is broken is met, skipped and named on the way
        files = [_row_file(path) for path in paths]
        contents = _fingerprint([_name_and_size(path) for path in paths])
        return Source(name, files=files, folder=folder, weight=weight, contents=contents)
    shown = f"{key}.path={config.path}"
    rows: Sequence[Row]
    match paths[0].suffix:
        case ".parquet":
            schemas, skipped = _readable(paths, _read_schema, shown)
            whole = list(schemas)
            rows = _load_parquet(schemas)
        case ".tar":
            tars, skipped = _readable(paths, lambda path: TarFile(path).rows(), shown)
            whole = list(tars)
            rows = JoinedRows(list(tars.values()))
        case _:
            whole, skipped = paths, ()
            rows = ArrowRows(open_saved(paths[0]))
    return Source(
        name,
        rows,
        folder=folder,
        weight=weight,
        fingerprint=_fingerprint([_stamp(path) for path in whole]),
        contents=_fingerprint([_name_and_size(path) for path in whole]),
        skipped=skipped,
    )


def _row_file(path: Path) -> RowFile:
    match path.suffix:
        case ".parquet":
            return ParquetFile(str(path))
        case ".tar":
            return TarFile(path)
        case _:
            return ArrowFile(path)


def _readable(paths: Sequence[Path], read: Callable[[Path], T], shown: str) -> tuple[dict[Path, T], tuple[str, ...]]:
    """What is read of each file, and why the others cannot be read.

    Raises:
        ConfigError: None can.
    """
    whole, skipped = {}, []
    for path in paths:
        try:
            whole[path] = read(path)
        except DataError as error:
            skipped.append(str(error))
    if not whole:
        raise ConfigError(f"{shown}: none of {len(paths)} can be read: {skipped[0]}")
    return whole, tuple(skipped)


def _stamp(path: Path) -> tuple[str, int, int]:
    """Changes with the contents: place, size and time of a file, or of what is in a folder."""
    _, size = _name_and_size(path)
    return str(path.resolve()), size, max(file.stat().st_mtime_ns for file in [path, *_inside(path)])


def _name_and_size(path: Path) -> tuple[str, int]:
    """Of a file, or of a folder with what is in it."""
    return path.name, sum(file.stat().st_size for file in _inside(path) or [path])


def _inside(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _read_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot read the parquet file: {error}") from error


def _load_parquet(schemas: dict[Path, pa.Schema]) -> Sequence[Row]:
    """Parquet files as Arrow files in our cache: any row can be read by itself. Without a cache they are in memory."""
    cache = cache_dir()
    if not is_writable(cache):
        return JoinedRows([ArrowRows(Dataset(pq.read_table(path))) for path in schemas])
    alike = groupby(schemas, key=lambda path: schemas[path])  # one load takes files with the same columns
    groups = [[escape(str(path)) for path in paths] for _, paths in alike]
    options = {"split": "train", "cache_dir": str(cache / "datasets")}
    return JoinedRows([ArrowRows(load_dataset("parquet", data_files=paths, **options)) for paths in groups])


# ---- the hub -------------------------------------------------------------------------------------------


def _read_hub(config: HubConfig, key: str, name: str, weight: float | None) -> Source:
    """Subsets of a repository of parquet files on the Hugging Face hub; of a folder laid out like one, too."""
    try:
        subsets = get_dataset_config_names(config.repo) if config.subsets == ["all"] else config.subsets
        if config.streaming:
            urls = [url for subset in subsets for url in _parquet_urls(config, subset)]
            return Source(name, files=[ParquetFile(url) for url in urls], weight=weight, contents=_fingerprint(urls))
        parts = [load_dataset(config.repo, subset, split=config.split) for subset in subsets]
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{key}.repo={config.repo}: {reason}; offline, use dataset=local") from error
    rows = JoinedRows([ArrowRows(part) for part in parts])
    fingerprint = _fingerprint([part._fingerprint for part in parts])
    return Source(name, rows, weight=weight, fingerprint=fingerprint, contents=fingerprint)


def _parquet_urls(config: HubConfig, subset: str) -> list[str]:
    """Where the files of a subset's split are."""
    files = load_dataset_builder(config.repo, subset).config.data_files
    if config.split not in files:
        raise ValueError(f"{subset} has no split {config.split}, but {', '.join(files)}")
    urls = [str(url) for url in files[config.split]]
    if not all(url.endswith(".parquet") for url in urls):
        raise ValueError(f"{subset} has other files than parquet, which do not stream: dataset.streaming=false")
    return urls


# ---- easy-VQA ------------------------------------------------------------------------------------------


def read_easyvqa(part: str) -> list[Row]:
    """One row per picture of the PyPI package easy-vqa, its questions as turns; part is train or test."""
    rows: dict[int, dict[str, Any]] = defaultdict(lambda: {"images": [], "texts": []})
    for picture, path, question, answer in _easyvqa_questions(part):
        rows[picture]["images"] = [path]
        rows[picture]["texts"].append({"user": question, "assistant": answer})
    return [rows[picture] for picture in sorted(rows)]


def read_easyvqa_test() -> list[Question]:
    """The test questions of the package, as they stand there."""
    return [Question(path, question, (answer,)) for _, path, question, answer in _easyvqa_questions("test")]


def _read_easyvqa_rated(config: EasyVQARatedConfig, name: str, weight: float | None) -> Source:
    """The rows with faults and ratings; those held out of training are validated on as the package has them."""
    rows = read_easyvqa("train")
    rated = rated_rows(rows, config)
    named = [{**row, "images": [path.name for path in row["images"]]} for row in rated]  # wherever the package is
    clean = _easyvqa_source(rows, config, name, weight)
    return replace(_easyvqa_source(rated, config, name, weight, made_of=named), validation=clean)


def _easyvqa_source(
    rows: Sequence[Row], config: DatasetConfig, name: str, weight: float | None, made_of: object = None
) -> Source:
    """Rows in memory, with the package's test; ``made_of`` is what they depend on besides the package."""
    fingerprint = _fingerprint(version("easy-vqa"), len(rows), *([] if made_of is None else [made_of]))
    return Source(
        name,
        None if config.streaming else rows,
        [RowsFile("train", rows)] if config.streaming else (),
        weight=weight,
        fingerprint=fingerprint,
        contents=fingerprint,
        test=read_easyvqa_test(),
    )


def _easyvqa_questions(part: str) -> list[tuple[int, Path, str, str]]:
    """(picture number, picture file, question, answer) of each question of a part."""
    import easy_vqa

    questions = easy_vqa.get_train_questions() if part == "train" else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if part == "train" else easy_vqa.get_test_image_paths()
    return [(picture, Path(paths[picture]), text, answer) for text, answer, picture in zip(*questions, strict=True)]


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
