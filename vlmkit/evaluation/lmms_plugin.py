"""Makes ``lmms-eval --model vlmkit`` known: lmms-eval calls ``manifest`` through the entry point in pyproject.toml."""

from typing import Any


def manifest() -> Any:
    """Where the models are: an ``lmms_eval.models.registry_v2.ModelManifest``."""
    # Imported here: importing any part of lmms-eval loads all entry points, this module among them.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="vlmkit",
        chat_class_path="vlmkit.evaluation.lmms_model.VLMKit",
        simple_class_path="vlmkit.evaluation.lmms_model.SimpleVLMKit",
    )
