"""Which files on this machine an option names; nothing heavy is imported, so a wrong path is told at once."""

from collections.abc import Sequence
from glob import has_magic
from pathlib import Path

from vlmkit.config import DatasetConfig, EasyVQAConfig, LocalConfig, MixtureConfig, ShardsConfig, require
from vlmkit.paths import RunPaths


def parts_of(config: DatasetConfig) -> dict[str, DatasetConfig]:
    """The full key of each dataset that a config names → its config: one, or the parts of a mixture."""
    if isinstance(config, MixtureConfig):
        return {f"dataset.parts.{name}": part.dataset for name, part in config.typed_parts.items()}
    return {"dataset": config}


def check_files(config: DatasetConfig) -> None:
    """Raise ConfigError if a path names nothing."""
    for key, part in parts_of(config).items():
        if isinstance(part, LocalConfig):
            find_files(part.path, key)
        elif isinstance(part, ShardsConfig):
            find_shards(part.path, key)


def uses_easyvqa(config: DatasetConfig) -> bool:
    """Whether the package easy-vqa is needed."""
    return any(isinstance(part, EasyVQAConfig) for part in parts_of(config).values())


def find_files(pattern: str, key: str) -> list[Path]:
    """Parquet files, tars, or one save_to_disk folder.

    Args:
        pattern: A file, a glob, or a folder: that stands for the parquet files in it, else its tars, else itself.
        key: Of the dataset, for the message.

    Raises:
        ConfigError: It names nothing, or files of other kinds.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.tar")) or [path]
    elif has_magic(pattern) and not path.exists():
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    else:
        found = [path] if path.exists() else []
    require(bool(found), f"{key}.path", pattern, "a file, a folder or a glob of files that are there")
    require(
        _kinds(found) in ({".parquet"}, {".tar"}) or (found == [path] and _is_saved(path)),
        f"{key}.path",
        pattern,
        "parquet files, webdataset tars, or one save_to_disk folder",
    )
    return found


def find_shards(root: str, key: str) -> list[Path]:
    """Folders shard_0, shard_1, … in the order of their numbers.

    Raises:
        ConfigError: There are none.
    """
    folders = [path for path in Path(root).expanduser().glob("shard_*") if path.name[6:].isdecimal() and path.is_dir()]
    require(bool(folders), f"{key}.path", root, "a folder with folders shard_0, shard_1, …")
    return sorted(folders, key=lambda path: int(path.name[6:]))


PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def find_pictures(image: str | list[str] | None) -> list[list[Path]]:
    """The pictures of each question: of a file one, of a list all together, of a folder each; of None none.

    Raises:
        ConfigError: One is not there, or a folder has none.
    """
    if image is None:
        return [[]]
    paths = [Path(name).expanduser() for name in ([image] if isinstance(image, str) else image)]
    if isinstance(image, str) and paths[0].is_dir():
        found = sorted(path for path in paths[0].iterdir() if path.suffix.lower() in PICTURES)
        require(bool(found), "image", image, f"a folder with pictures ({', '.join(PICTURES)})")
        return [[path] for path in found]
    for path in paths:
        require(path.is_file(), "image", path, "a file that is there")
    return [paths]


def newest_of_run(name: str) -> str:
    """The newest checkpoint, if a run directory is named; any other name as it is."""
    return str(RunPaths(Path(name).expanduser()).newest_checkpoint or name)


def _is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote it: a dataset, or several splits."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _kinds(paths: Sequence[Path]) -> set[str]:
    return {path.suffix for path in paths}
