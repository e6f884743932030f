"""Weights from files into a model: every tensor is used, or an error names it as its file does."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Idefics3ForConditionalGeneration

from vlmkit.config import LanguageConfig, ModelConfig
from vlmkit.errors import UserError
from vlmkit.model.convert import Origin, origin_in_nanovlm
from vlmkit.pretrained.configs import check_backbones
from vlmkit.pretrained.files import SMOLLM2, find_folder, find_gguf
from vlmkit.processing.tokenizer import ChatTokenizer

EMBEDDING = "model.text_model.embed_tokens.weight"
HEAD = "lm_head.weight"
COMPUTED = ("rotary_embd.inv_freq", "rotary_emb.inv_freq", "embeddings.position_ids")  # no weights; old files have them


@dataclass(frozen=True, slots=True)
class Stored:
    """The tensors of a file, under its own names."""

    source: str  # the file or folder, for messages
    tensors: dict[str, torch.Tensor]
    origin: Callable[[str], Origin]  # Idefics3's name of a parameter → where the file keeps it
    num_rows: int  # of embedding and head
    num_kept: int  # of these rows belong to tokens that are known; the others are replaced by new ones


def load_weights(hf: Idefics3ForConditionalGeneration, config: ModelConfig, tokenizer: ChatTokenizer) -> None:
    """Put the weights that the config names into a model; parts that it names none for stay as they are.

    Raises:
        ConfigError: They are not there, or a backbone has other sizes than the config.
        UserError: A tensor is missing, left over or of the wrong shape.
    """
    if config.init_from is not None:
        folder = find_folder(config.init_from, "model.init_from", with_weights=True)
        load_checkpoint_weights(hf, folder, config.language.vocab_size)
        return
    check_backbones(config)
    if config.vision.pretrained is not None:
        _load_vision(hf, config.vision.pretrained)
    if config.language.pretrained is not None:
        _load_language(hf, config.language, tokenizer.num_known)


def load_checkpoint_weights(hf: Idefics3ForConditionalGeneration, folder: Path, vocab_size: int | None = None) -> None:
    """Put a checkpoint's weights into a model of its sizes.

    Args:
        hf: The model.
        folder: With safetensors of a vlmkit, Idefics3, SmolVLM or nanoVLM checkpoint.
        vocab_size: Rows of the checkpoint's embedding, if the model has more: those after them are new.

    Raises:
        UserError: A tensor is missing, left over or of the wrong shape; or there are no safetensors.
    """
    tensors = read_tensors(folder)
    is_nanovlm = any(name.startswith("vision_encoder.") for name in tensors)
    rows = vocab_size or hf.config.text_config.vocab_size
    stored = Stored(str(folder), tensors, origin_in_nanovlm if is_nanovlm else Origin, rows, rows)
    _fill(hf, "", stored)


def _load_vision(hf: Idefics3ForConditionalGeneration, name: str) -> None:
    """SigLIP's tower without its pooling head; where there is a text tower beside it, its names have a prefix."""
    folder = find_folder(name, "model.vision.pretrained", with_weights=True)
    tensors = read_tensors(folder)
    prefix = "vision_model." if any(each.startswith("vision_model.") for each in tensors) else ""
    seen = {
        each: tensor
        for each, tensor in tensors.items()
        if each.startswith(prefix) and not each.startswith(f"{prefix}head.")
    }
    part = "model.vision_model."
    _fill(hf, part, Stored(str(folder), seen, lambda each: Origin(prefix + each.removeprefix(part)), 0, 0))


def _load_language(hf: Idefics3ForConditionalGeneration, config: LanguageConfig, num_known: int) -> None:
    """Llama with its head; tokens that its own tokenizer lacks get new rows, also where its embedding is padded."""
    assert config.pretrained is not None and config.vocab_size is not None  # check_backbones has seen both
    if config.pretrained == SMOLLM2:
        file = find_gguf("model.language.pretrained")
        source = str(file)
        llama = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tensors = llama.state_dict()
    else:
        folder = find_folder(config.pretrained, "model.language.pretrained", with_weights=True)
        source, tensors = str(folder), read_tensors(folder)
    rows = config.vocab_size
    stored = Stored(source, tensors, lambda each: Origin(each.replace(".text_model.", ".")), rows, min(rows, num_known))
    _fill(hf, ("model.text_model.", HEAD), stored)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's ``model.safetensors``, or of the files that ``model.safetensors.index.json`` lists.

    Raises:
        UserError: There are none, or a file is missing or damaged.
    """
    try:
        tensors = {key: value for file in _weight_files(folder) for key, value in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot read its weights: {' '.join(str(error).split())}") from error
    return {key: value for key, value in tensors.items() if not key.endswith(COMPUTED)}


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder}: cannot read its {index.name} ({type(error).__name__})") from error
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder}: has no {absent[0]}; weights in other formats are not read")
    return [folder / name for name in names]


def _fill(hf: Idefics3ForConditionalGeneration, part: str | tuple[str, ...], stored: Stored) -> None:
    """Copy the stored tensors into the parameters whose names start with ``part``; weights become float32.

    Raises:
        UserError: The names or a shape differ; the first such tensor is named.
    """
    tensors = _tied(stored) if hf.config.tie_word_embeddings else stored.tensors
    text = hf.config.text_config
    used = set()
    for name, parameter in hf.named_parameters():
        if not name.startswith(part):
            continue
        has_rows = name in (EMBEDDING, HEAD)
        origin = stored.origin(name)
        shape = origin.shape([stored.num_rows, *parameter.shape[1:]] if has_rows else list(parameter.shape))
        tensor = origin.cut(_of_shape(shape, origin.name, tensors, stored.source))
        if has_rows:
            tensor = _with_new_rows(tensor[: stored.num_kept], len(parameter), text.initializer_range)
        with torch.no_grad():
            parameter.copy_(tensor)
        used.add(origin.name)
    if left_over := sorted(tensors.keys() - used):
        raise UserError(f"{stored.source}: tensor {left_over[0]} is left over: the model has no such part")


def _tied(stored: Stored) -> dict[str, torch.Tensor]:
    """The tensors without the head, which is the embedding; a file may have either name or both."""
    tensors = dict(stored.tensors)
    embedding, head = stored.origin(EMBEDDING).name, stored.origin(HEAD).name
    if head in tensors:
        weight = tensors.pop(head)
        if not torch.equal(tensors.setdefault(embedding, weight), weight):
            raise UserError(
                f"{stored.source}: tensor {head} is not {embedding}, but its config says that they are tied"
            )
    return tensors


def _of_shape(shape: list[int], name: str, tensors: Mapping[str, torch.Tensor], source: str) -> torch.Tensor:
    if name not in tensors:
        raise UserError(f"{source}: tensor {name} is missing; the model needs it with shape {shape}")
    if list(tensors[name].shape) != shape:
        raise UserError(f"{source}: tensor {name} has shape {list(tensors[name].shape)}; the model needs {shape}")
    return tensors[name]


def _with_new_rows(kept_VD: torch.Tensor, num_rows: int, std: float) -> torch.Tensor:
    """The rows and, up to this number, new ones: the mean of the rows plus noise of this standard deviation.

    In a head that is tied to the embedding, a new row of the usual random kind can get a larger logit than every
    token that the model knows. With the mean its logit is about the mean of theirs, and the model goes on as if the
    row were not there.
    """
    num_new = num_rows - len(kept_VD)
    if not num_new:
        return kept_VD
    mean_D = kept_VD.float().mean(0)
    return torch.cat([kept_VD.float(), mean_D + std * torch.randn(num_new, len(mean_D))])
