"""A checkpoint is asked: about one picture, several, a folder, none; what goes wrong is a line."""

import io
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import Run, composed, png
from vlmkit.config import GenerateConfig, ModelConfig
from vlmkit.data.worker import Loaded, build_batch
from vlmkit.errors import ConfigError
from vlmkit.generate import generate, main, quoted
from vlmkit.model.answer import GenerationSettings, Question, load_answerer
from vlmkit.model.build import build_model
from vlmkit.model.packed import PackedVLM
from vlmkit.preflight import check_generation
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.processor import save_processor
from vlmkit.types import Sample, Turn

PROMPT = "what is it, and where?"
COLOURS = {"blue": "a blue square in there", "red": "a red square in there"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_config: ModelConfig, encoder: ChatEncoder) -> Path:
    """A run directory with two checkpoints, the newer of which has learnt to tell two colours; their pictures."""
    root = tmp_path_factory.mktemp("generate")
    torch.manual_seed(0)
    model = PackedVLM(build_model(tiny_model_config, encoder.tokenizer), encoder.layout)
    save(model, encoder, root / "run" / "checkpoints" / "step_9")
    samples = []
    (root / "pictures").mkdir()
    for colour, answer in COLOURS.items():
        picture = png(Image.new("RGB", (64, 64), colour))
        (root / "pictures" / f"{colour}.png").write_bytes(picture)
        samples.append(Sample(colour, (picture,), (Turn(PROMPT, answer),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = build_batch([[Loaded(sample, ()) for sample in samples]], encoder)
    for _ in range(150):
        loss = model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5  # summed over some 20 tokens
    save(model, encoder, root / "run" / "checkpoints" / "step_10")
    return root


def save(model: PackedVLM, encoder: ChatEncoder, checkpoint: Path) -> None:
    model.hf.save_pretrained(checkpoint)
    save_processor(checkpoint, encoder.tokenizer, encoder.layout)


def asked(folder: Path, **changed: object) -> GenerateConfig:
    ckpt = str(folder / "run" / "checkpoints" / "step_10")
    return GenerateConfig(**{"ckpt": ckpt, "prompt": PROMPT, "max_new_tokens": 40} | changed)  # type: ignore[arg-type]


def test_the_answer_ends_with_its_turn_and_is_all_of_standard_output(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(asked(folder, image=str(folder / "pictures" / "red.png"))) == 0
    assert capsys.readouterr() == ("a red square in there\n", "")


def test_every_picture_of_a_folder_is_answered_in_order_and_a_broken_one_is_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("red.png", "blue.png"):
        (pictures / name).write_bytes((folder / "pictures" / name).read_bytes())
    (pictures / "broken.png").write_bytes(b"not a picture")
    (pictures / "notes.txt").write_text("none either, but not called one")
    out = tmp_path / "answers.jsonl"
    assert generate(asked(folder, image=str(pictures), out=str(out))) == 1
    printed, errors = capsys.readouterr()
    assert printed == "blue.png: a blue square in there\nbroken.png: \nred.png: a red square in there\n"
    [line] = errors.splitlines()
    assert line.startswith(f"error: {pictures / 'broken.png'}: cannot read the picture")
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"images": [str(pictures / f"{colour}.png")], "prompt": PROMPT, "answer": COLOURS[colour]}
        for colour in ("blue", "red")
    ]


def test_several_pictures_stand_in_one_prompt_and_none_is_allowed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [str(folder / "pictures" / f"{colour}.png") for colour in COLOURS]
    for image in (both, both[::-1], None):
        assert generate(asked(folder, image=image)) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_run_directory_stands_for_its_newest_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(asked(folder, ckpt=str(folder / "run"), image=str(folder / "pictures" / "red.png"))) == 0
    printed, told = capsys.readouterr()
    assert printed == "a red square in there\n"
    assert told == f"asking {folder}/run/checkpoints/step_10\n"


def test_drawn_answers_are_those_of_their_seed(folder: Path) -> None:
    untrained = load_answerer(str(folder / "run" / "checkpoints" / "step_9"))

    def answer(seed: int = 0, **changed: float) -> str:
        settings = GenerationSettings(40, **changed)
        prompt = untrained.prepare(Question.about((), PROMPT), settings)
        return untrained.answer([prompt], settings, [seed])[0].text

    drawn = {"temperature": 1.0, "top_p": 0.99}
    assert answer(**drawn, seed=1) == answer(**drawn, seed=1) != answer(**drawn, seed=2)
    assert answer(temperature=1.0, top_p=1e-6) == answer() == answer(temperature=1e-4)


def test_the_answer_streams(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed leaves piece by piece, each as soon as it is there: words or less, as transformers has it."""
    flushed: list[str] = []

    class Pipe(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Pipe())
    generate(asked(folder, image=str(folder / "pictures" / "red.png")))
    texts = [text for text in dict.fromkeys(flushed) if text]
    assert texts[-1] == "a red square in there\n"
    assert all(later.startswith(text) for text, later in pairwise(texts))
    assert {"a", "a red", "a red square", "a red square in"} <= {text.rstrip() for text in texts}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image": "/nowhere.png"}, "image=/nowhere.png: must be a file that is there"),
        ({"image": ["{folder}/pictures/red.png", "/nowhere.png"]}, "image=/nowhere.png: must be a file that is there"),
        ({"image": "{folder}/run"}, "image={folder}/run: must be a folder with pictures"),
        ({"ckpt": "/nowhere"}, "ckpt=/nowhere: must be a folder that is there, or a hub id"),
        ({"ckpt": "{folder}/pictures"}, "ckpt={folder}/pictures: cannot read its config.json"),
        ({"out": "{folder}"}, "out={folder}: must be a file"),
        ({"image": ""}, "image=: must be a file, a folder, or a list of files"),
        ({"image": 3}, "image=3: must be a file, a folder, or a list of files"),
        ({"temperature": -1.0}, "temperature=-1.0: must be 0 or more"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0"),
    ],
)
def test_a_mistake_is_found_before_the_model_is_loaded(folder: Path, changed: dict[str, object], told: str) -> None:
    def filled(value: object) -> object:
        return value.format(folder=folder) if isinstance(value, str) else value

    values = {key: [*map(filled, v)] if isinstance(v, list) else filled(v) for key, v in changed.items()}
    with pytest.raises(ConfigError, match=told.format(folder=folder)):
        check_generation(asked(folder, **values))


def test_an_answer_longer_than_the_model_can_take_is_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(asked(folder, max_new_tokens=5000)) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("error: max_new_tokens=5000: must be at most 40")


def test_a_damaged_checkpoint_is_a_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command, with a prompt that Hydra's grammar would take apart."""
    for file in (folder / "run" / "checkpoints" / "step_9").iterdir():
        kept = 5000 if file.suffix == ".safetensors" else None
        (tmp_path / file.name).write_bytes(file.read_bytes()[:kept])
    monkeypatch.setattr(sys, "argv", ["generate", f"ckpt={tmp_path}", "prompt=what's (that), 'it'?"])
    with pytest.raises(SystemExit, match=f"^error: {tmp_path}: cannot read its weights: [^\n]+$"):
        main()


def test_nothing_heavy_is_imported_before_a_mistake_is_answered(tmp_path: Path, vlmkit: Run) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = vlmkit("generate", "ckpt=nothing", "prompt=hello")
    assert done.stderr.startswith("error: ckpt=nothing: must be a folder that is there, or a hub id")


ODD = "'yes' or 'no': what does ${x} cost? ${oc.env:HOME}"


@settings(max_examples=60)
@given(prompt=st.text("abc '\"\\${}[],:=~é\n", max_size=12) | st.just(ODD))
def test_a_prompt_reaches_the_command_as_it_was_written(prompt: str) -> None:
    assert composed("generate", "ckpt=run", quoted(f"prompt={prompt}")).prompt == prompt
