"""What a checkpoint says of its tokens and pixels, for vlmkit and, where its processor does the same, transformers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmkit.config import Layout
from vlmkit.paths import PROCESSOR
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer

PIL_LANCZOS = 1


def save_processor(folder: Path, tokenizer: ChatTokenizer, layout: ImageLayout) -> None:
    """Write the tokenizer and the layout into a checkpoint.

    With the layout idefics3 ``AutoProcessor.from_pretrained(folder)`` then gives transformers' Idefics3Processor,
    whose ids and pixels are ours. No processor of transformers makes those of the layout nanovlm.
    """
    tokenizer.save(folder)
    _write(folder / PROCESSOR, asdict(layout) | {"kind": layout.kind.value})
    if layout.kind is Layout.idefics3:
        _write(folder / "preprocessor_config.json", _image_processor(layout))
        processor = {"processor_class": "Idefics3Processor", "image_seq_len": layout.tokens_per_tile}
        _write(folder / "processor_config.json", processor)


def _image_processor(layout: ImageLayout) -> dict[str, Any]:
    """The config of transformers' Idefics3ImageProcessor."""
    return {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": layout.max_img_size},
        "resample": PIL_LANCZOS,
        "do_image_splitting": True,
        "max_image_size": {"longest_edge": layout.tile_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [layout.mean] * 3,
        "image_std": [layout.std] * 3,
        "do_pad": True,
    }


def _write(path: Path, contents: dict[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n")
