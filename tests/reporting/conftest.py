"""A survey of the rated data, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reporting.rated_data import SETTINGS, composed_inspect, write_rated
from vlmkit.config import InspectConfig
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import load_tokenizer
from vlmkit.reporting.survey import Survey, take_survey

Look = Callable[..., tuple[InspectConfig, ChatEncoder, Survey]]


@pytest.fixture(scope="session")
def rated_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rated(tmp_path_factory.mktemp("rated"))


@pytest.fixture(scope="session")
def look(rated_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Look:
    """Survey the rated data with some keys set."""
    cache = tmp_path_factory.mktemp("cache")

    def look_at(*overrides: str, path: Path = rated_data) -> tuple[InspectConfig, ChatEncoder, Survey]:
        config = composed_inspect(*SETTINGS, f"dataset.path={path}", *overrides)
        tokenizer = load_tokenizer(config.model.tokenizer, config.model.image.layout)
        encoder = ChatEncoder(tokenizer, ImageLayout.from_config(config.model))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLMKIT_CACHE", str(cache / "index"))
            patch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "datasets")
            return config, encoder, take_survey(config, encoder, iter)

    return look_at
