"""Hostile and damaged model folders are refused from their bytes alone; sound ones give true facts."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import VOCABULARY, write_tiny_bert, write_tiny_llama

from llmrec_core.errors import ModelError, NotFoundError
from llmrec_core.models import checking
from llmrec_core.models.checking import check_model_folder, read_safetensors_header


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("sound") / "bert")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def edit_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**values, **changes}))


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_facts_of_a_sound_encoder(sound: Path) -> None:
    facts = check_model_folder(sound)
    assert (facts.kind, facts.model_type, facts.hidden_size, facts.n_layers) == ("encoder", "bert", 32, 2)
    assert facts.max_tokens == 512
    embeddings = (len(VOCABULARY) + 512 + 2) * 32 + 2 * 32
    layer = 4 * (32 * 32 + 32) + 2 * (2 * 32) + (32 * 64 + 64) + (64 * 32 + 32)
    pooler = 32 * 32 + 32
    assert facts.n_parameters == embeddings + 2 * layer + pooler
    assert facts.size_bytes == (sound / "model.safetensors").stat().st_size


def test_facts_of_a_sound_decoder(tmp_path: Path) -> None:
    assert check_model_folder(write_tiny_llama(tmp_path / "llama")).kind == "decoder"


def test_positions_behind_the_padding_id_do_not_count(folder: Path) -> None:
    edit_config(folder, model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    assert check_model_folder(folder).max_tokens == 512


def test_no_folder_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", "/nul\0l", tmp_path / ("x" * 5000)):
        with pytest.raises(NotFoundError):
            check_model_folder(path)


def test_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="must be a folder"):
        check_model_folder(folder / "config.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auto_map": {"AutoModel": "modeling_evil.Evil"}}, "auto_map"),
        ({"vision_config": {"deep": [{"auto_map": {"AutoModel": "x.Y"}}]}}, "auto_map"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"attn_implementation": "evil-org/kernel"}, "attn_implementation"),
        ({"_attn_implementation": "kernels-community/flash-attn"}, "attn_implementation"),
        ({"_attn_implementation_internal": {"": "evil/kernel@main:fn"}}, "attn_implementation"),
        ({"transformers_weights": "../other/model.safetensors"}, "transformers_weights"),
        ({"quantization_config": {"quant_method": "custom"}}, "quantised"),
        ({"model_type": "evil"}, "model_type"),
        ({"model_type": ["bert"]}, "model_type"),
        ({"model_type": "t5"}, "model_type"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_config_refused(folder: Path, change: dict[str, Any], said: str) -> None:
    edit_config(folder, **change)
    with pytest.raises(ModelError) as caught:
        check_model_folder(folder)
    assert said in str(caught.value)
    assert "config.json" in caught.value.where
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_code_in_the_other_json_files_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))
    with pytest.raises(ModelError, match="auto_map"):
        check_model_folder(folder)


def test_known_attention_values_pass(folder: Path) -> None:
    edit_config(folder, attn_implementation="sdpa", _attn_implementation=None)
    check_model_folder(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", "[" * 100_000, '{"model_type": "bert", "model_type": "gpt2"}', '{"a": "\udcff"}'],
    ids=["empty", "cut", "list", "null", "nested", "twice", "not-utf-8"],
)
def test_config_that_is_not_an_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError):
        check_model_folder(folder)


def test_oversized_config_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("ab") as stream:
        stream.truncate(5_000_000)
    with pytest.raises(ModelError, match="larger than"):
        check_model_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_parts(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        check_model_folder(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_does_not_hang(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match="regular file"):
        check_model_folder(folder)


def test_pickle_only_folder_is_refused_and_never_opened(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin") as caught:
        check_model_folder(folder)
    assert "safetensors" in caught.value.fix
    assert not canary.exists()
    # The canary is alive: unpickling it would have shown.
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert canary.exists()


@pytest.mark.parametrize("target", ["file", "folder"])
def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    if target == "file":
        shutil.move(folder / "model.safetensors", outside)
        (folder / "model.safetensors").symlink_to(outside)
    else:
        outside.mkdir()
        (folder / "more").symlink_to(outside)
    with pytest.raises(ModelError, match="leaves the folder"):
        check_model_folder(folder)


def test_links_inside_the_folder_are_fine(folder: Path) -> None:
    (folder / "blob").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("blob")
    check_model_folder(folder)


def test_adapters_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/base"}')
    with pytest.raises(ModelError, match="adapter"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    "weight_map", [{}, [], {"a": 1}, {"a": "../model-1.safetensors"}, {"a": "gone.safetensors"}, {"a": "config.json"}]
)
def test_index_of_shards_names_files_of_the_folder(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError):
        check_model_folder(folder)


def test_sharded_model(folder: Path) -> None:
    whole = check_model_folder(folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"embeddings.word_embeddings.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    facts = check_model_folder(folder)
    assert facts.weight_files == ("model-1.safetensors",)
    assert facts.n_parameters == whole.n_parameters


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_sound_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"__metadata__": {"format": "pt"}, "b": tensor(8, 12, [2], "F16"), "a": tensor(0, 8, [1, 2])}
    path.write_bytes(safetensors_bytes(header, bytes(12)))
    assert read_safetensors_header(path) == {"b": ("F16", (2,)), "a": ("F32", (1, 2))}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**6) + b"{}" + bytes(100),
        safetensors_bytes(b"[]", b""),
        safetensors_bytes(b"{" * 20, b""),
        safetensors_bytes({"a": tensor(0, 8, [2])}, bytes(7)),  # cut
        safetensors_bytes({"a": tensor(0, 8, [2])}, bytes(9)),  # something behind
        safetensors_bytes({"a": tensor(0, 8, [3])}, bytes(8)),  # shape
        safetensors_bytes({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),  # overlap
        safetensors_bytes({"a": tensor(0, 8, [2]), "b": tensor(12, 20, [2])}, bytes(20)),  # gap
        safetensors_bytes({"a": tensor(8, 0, [2])}, bytes(8)),
        safetensors_bytes({"a": tensor(0, 8, [-2])}, bytes(8)),
        safetensors_bytes({"a": tensor(0, 8, [2], "PICKLE")}, bytes(8)),
        safetensors_bytes({"a": tensor(0, 8, [2], ["F32"])}, bytes(8)),  # type: ignore[arg-type]
        safetensors_bytes({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        safetensors_bytes({"a": tensor(0, 1, [True], "U8")}, bytes(1)),
        safetensors_bytes({"a": "F32"}, bytes(8)),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_damaged_headers(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        read_safetensors_header(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 3000), value=st.integers(0, 255), cut=st.booleans())
def test_any_damage_is_a_model_error_or_harmless(
    sound: Path, tmp_path: Path, position: int, value: int, cut: bool
) -> None:
    content = bytearray((sound / "model.safetensors").read_bytes())
    if cut:
        del content[position:]
    else:
        content[position] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    try:
        found = read_safetensors_header(path)
    except ModelError:
        return
    assert not cut
    # A changed name or dtype of equal width stays readable; sizes cannot have changed.
    assert sum(_n_bytes(*entry) for entry in found.values()) == sum(
        _n_bytes(*entry) for entry in read_safetensors_header(sound / "model.safetensors").values()
    )


def _n_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    n_bits = checking._DTYPE_BITS[dtype]
    for n in shape:
        n_bits *= n
    return n_bits // 8
