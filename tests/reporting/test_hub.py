"""The model card of a run, and its upload, to a small server that speaks what the hub's client asks."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.test_configs import composed
from vlmkit.config import ModelConfig, TrainConfig
from vlmkit.errors import ConfigError, UserError
from vlmkit.model.build import build_model, count_parameters
from vlmkit.paths import RunPaths
from vlmkit.preflight import check_hub_token
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.reporting.hub import publish
from vlmkit.tracking.console import Screen
from vlmkit.tracking.jsonl import JsonlTracker
from vlmkit.tracking.provenance import record_start

TOKEN = "hf_" + "a" * 30


class Hub(BaseHTTPRequestHandler):
    """Takes files into ``server.files`` (path → bytes), all of them in the commit itself."""

    def do_GET(self) -> None:
        self._answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.asked.append((self.path, self.headers["Authorization"]))
        if self.path == "/api/repos/create":
            made = json.loads(body)
            self.server.private = made.get("private") or made.get("visibility") == "private"
            self._answer({"url": f"{self.server.url}/me/model"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            lines = [json.loads(line)["value"] for line in body.splitlines()]
            self.server.files |= {line["path"]: base64.b64decode(line["content"]) for line in lines if "path" in line}
            self._answer({"commitUrl": f"{self.server.url}/me/model/commit/0", "commitOid": "0" * 40})
        else:
            self._answer({"errors": [], "warnings": []})

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.files, server.asked, server.private = {}, [], None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def paths(tmp_path: Path, tiny_model_config: ModelConfig, tokenizer: ChatTokenizer) -> RunPaths:
    """A run directory as a run of 8 steps leaves it, with what the card is made from."""
    paths = RunPaths(tmp_path / "my run")
    checkpoint = paths.checkpoint(8)
    build_model(tiny_model_config, tokenizer).save_pretrained(checkpoint)
    (checkpoint / "trainer_state").mkdir()
    (checkpoint / "trainer_state" / "optimizer.pt").write_text("large")
    metrics = JsonlTracker(paths.metrics, 0)
    metrics.write(7, {"batch_loss": 0.75, "val_loss": 0.8})
    metrics.write(8, {"batch_loss": 0.5, "run_stats/filtered_ratio": 0.125, "run_stats/utilisation": 0.9})
    metrics.write(8, {"test_exact_match": 0.9751})
    metrics.close()
    record_start(paths, 0, 2, "cpu", {})
    return paths


def run_config(**changed: object) -> TrainConfig:
    names = [f"{key}={value}" for key, value in changed.items()]
    return composed("dataset=finevision", "trainer.max_training_steps=8", "filter=recommended", "seed=5", *names)


def card_of(paths: RunPaths) -> tuple[dict[str, object], str]:
    _, front, text = (paths.checkpoint(8) / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_tells_data_training_results_and_use(
    paths: RunPaths, tiny_model_config: ModelConfig, tokenizer: ChatTokenizer
) -> None:
    publish(run_config(), paths, 8, 123456, "FineVision: a|b", Screen(False))
    front, text = card_of(paths)
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vlmkit"],
        "datasets": ["HuggingFaceM4/FineVision"],
        "base_model": ["google/siglip2-base-patch16-512", "HuggingFaceTB/SmolLM2-360M-Instruct"],
    }
    parameters = sum(count_parameters(build_model(tiny_model_config, tokenizer)).values())
    for told in (
        "# my run",
        f"{parameters:,} parameters",
        "| read | FineVision: a\\|b |",
        "relevance 3, image_correspondence 3, visual_dependency 2, formatting 3",
        "12.50% of the samples",
        "8 of 32 packs",
        "knapsack, up to",
        "90.0% of the tokens used",
        "| tokens seen | 123,456 |",
        "| seed | 5 |",
        "| training loss of the last step | 0.5000 |",
        "| validation loss | 0.8000 |",
        "| exact match on the test questions | 0.9751 |",
        "python -m vlmkit.generate",
        "torch 2.",
    ):
        assert told in text, told
    assert "None" not in text
    (paths.checkpoint(8) / "preprocessor_config.json").write_text("{}")
    publish(composed("model=tiny"), paths, 8, 123456, "easyvqa", Screen(False))
    front, text = card_of(paths)
    assert "base_model" not in front
    assert "| weights at the start | random |" in text
    assert 'AutoProcessor.from_pretrained("FOLDER")' in text


def test_the_checkpoint_is_uploaded_privately_without_trainer_state_and_again_without_harm(
    paths: RunPaths, hub: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        publish(run_config(push_to_hub="me/model"), paths, 8, 1, "FineVision", Screen())
        assert capsys.readouterr().out == f"uploaded    {hub.url}/me/model\n"
    assert hub.private is True
    assert {header for _, header in hub.asked} == {f"Bearer {TOKEN}"}
    folder = paths.checkpoint(8)
    there = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert hub.files == there
    assert "# me/model" in there["README.md"].decode()


def test_an_upload_that_fails_is_one_line_and_the_checkpoint_stays(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match=r"^push_to_hub=me/model: .*Connection refused.*the same command tries again$"):
        publish(run_config(push_to_hub="me/model"), paths, 8, 1, "FineVision", Screen(False))
    assert (paths.checkpoint(8) / "model.safetensors").is_file()


def test_a_missing_token_and_a_bad_name_are_told_before_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="push_to_hub=me/model: needs a token of the hub: set HF_TOKEN"):
        check_hub_token("me/model")
    (tmp_path / "token").write_text(TOKEN)
    check_hub_token("me/model")
    with pytest.raises(ConfigError, match="push_to_hub=model: must be a repository"):
        composed("push_to_hub=model")
