"""Is this folder a model that is safe to load? Decided from bytes alone, before any library touches it.

A model folder is hostile until checked. What passes holds plain JSON, a ``tokenizer.json`` and safetensors whose
headers add up; it names no code, no other place to load from, and no file outside itself. Pickles lying beside
the safetensors (``pytorch_model.bin``, ``rng_state.pth``) are never opened.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from llmrec_core.errors import ModelError, NotFoundError

Kind = Literal["encoder", "decoder"]

#: Architectures that are offered, by the ``model_type`` of their config.json. All of them are built into
#: transformers, read text, and take one attention mask; tests load, tune and pool each of them.
ENCODER_TYPES = frozenset(
    {"albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "ernie", "modernbert", "mpnet", "roberta"}
    | {"xlm-roberta"}
)
DECODER_TYPES = frozenset(
    {"gemma", "gemma2", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "opt", "phi", "phi3", "qwen2"}
    | {"qwen3", "smollm3", "stablelm"}
)
#: Attention code paths of transformers itself; any other value may name a kernel to be downloaded.
ATTENTION_VALUES = frozenset({None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})

#: Keys that make a loader run or fetch what is not in the checked files.
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "custom_generate"})
_REDIRECT_KEYS = frozenset({"transformers_weights", "gguf_file", "use_kernels", "kernel_config", "adapter_config"})
_ATTENTION_KEYS = frozenset({"attn_implementation", "_attn_implementation", "_attn_implementation_internal"})

_MAX_JSON_BYTES = 4_000_000
_MAX_TOKENIZER_BYTES = 100_000_000
_MAX_HEADER_BYTES = 25_000_000
#: Upper bounds of the sizes in config.json. Buffers such as position tables are allocated from these numbers, so an
#: absurd one would exhaust memory before the weights are even compared.
_MAX_SIZES = {
    "hidden_size": 65_536,
    "n_embd": 65_536,
    "dim": 65_536,
    "embedding_size": 65_536,
    "intermediate_size": 1_048_576,
    "head_dim": 4_096,
    "num_hidden_layers": 512,
    "n_layer": 512,
    "n_layers": 512,
    "num_attention_heads": 1_024,
    "num_key_value_heads": 1_024,
    "n_head": 1_024,
    "n_heads": 1_024,
    "vocab_size": 4_000_000,
    "max_position_embeddings": 4_194_304,
    "n_positions": 4_194_304,
    "n_ctx": 4_194_304,
    "type_vocab_size": 1_024,
    "position_buckets": 65_536,
    "max_relative_positions": 4_194_304,
}
_DTYPE_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
_UNSAFE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".joblib", ".h5", ".msgpack"})
_FIX_CONVERT = (
    "Convert the weights to safetensors (save_pretrained of transformers does) on a machine where you trust them."
)


@dataclass(frozen=True)
class ModelFacts:
    """What a checked folder holds. ``n_parameters`` counts stored weights, ``size_bytes`` the safetensors files."""

    folder: Path
    model_type: str
    kind: Kind
    hidden_size: int
    n_layers: int
    max_tokens: int
    n_parameters: int
    size_bytes: int
    weight_files: tuple[str, ...]
    config: dict[str, Any]

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / "tokenizer.json"


def check_model_folder(path: str | Path, *, weights: bool = True) -> ModelFacts:
    """The facts of a model folder that is safe to load; nothing in it is executed or unpickled.

    Args:
        weights: False: configuration and tokenizer alone; its weights lie elsewhere (in an ONNX graph).

    Raises:
        NotFoundError: there is no such folder.
        ModelError: the folder lacks parts, is damaged, of an unknown architecture, or asks for code.
    """
    folder = Path(path)
    try:
        mode = folder.stat().st_mode
    except (OSError, ValueError) as error:
        raise NotFoundError(
            "there is no such model folder.",
            where=str(folder)[:300],
            fix="Check the path, or see `llmrec models list`.",
        ) from error
    if not stat.S_ISDIR(mode):
        raise ModelError("a model must be a folder, this is a file.", where=str(folder), fix="Give its folder.")
    folder = folder.resolve()
    names = _file_names(folder)
    config = read_json_object(folder / "config.json", _MAX_JSON_BYTES, "config.json")
    _refuse_code(config, folder / "config.json")
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        if name in names:
            _refuse_code(read_json_object(folder / name, _MAX_JSON_BYTES, name), folder / name)
    if "adapter_config.json" in names:
        raise ModelError(
            "this folder holds an adapter (adapter_config.json) that would pull in another model.",
            where=str(folder),
            fix="Merge the adapter into its base model and save that.",
        )
    model_type, kind = _architecture(config, folder)
    weight_files = _weight_files(folder, names) if weights else ()
    if "tokenizer.json" not in names:
        raise ModelError(
            "tokenizer.json is missing.",
            where=str(folder),
            fix="Save the model's fast tokenizer into the folder (save_pretrained of a fast tokenizer does).",
        )
    _check_tokenizer_file(folder / "tokenizer.json")
    n_parameters = sum(count_safetensors(folder / name) for name in weight_files)
    return ModelFacts(
        folder=folder,
        model_type=model_type,
        kind=kind,
        hidden_size=_first_size(config, folder, "hidden_size", "n_embd", "dim"),
        n_layers=_first_size(config, folder, "num_hidden_layers", "n_layer", "n_layers"),
        max_tokens=_max_tokens(config, folder, model_type),
        n_parameters=n_parameters,
        size_bytes=sum((folder / name).stat().st_size for name in weight_files),
        weight_files=weight_files,
        config=config,
    )


def read_json_object(path: Path, max_bytes: int, what: str) -> dict[str, Any]:
    """The JSON object in a file of at most ``max_bytes``.

    Raises:
        ModelError: missing, not a regular file, too large, not UTF-8 JSON, nested too deeply, or not an object.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ModelError(f"{what} is not a regular file.", where=str(path))
        if info.st_size > max_bytes:
            raise ModelError(f"{what} is larger than {max_bytes:,} bytes.", where=str(path))
        return parse_json_object(path.read_bytes(), what, str(path))
    except FileNotFoundError as error:
        raise ModelError(
            f"{what} is missing.", where=str(path.parent), fix="Give the folder of a complete Hugging Face model."
        ) from error
    except OSError as error:
        raise ModelError(f"{what} cannot be read: {error.strerror or error}.", where=str(path)) from error


def parse_json_object(data: bytes, what: str, where: str) -> dict[str, Any]:
    """The JSON object in ``data``; duplicate keys are refused, since two readers may then see two different files."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is not valid JSON: {str(error)[:200]}.", where=where) from error
    if not isinstance(value, dict):
        raise ModelError(f"{what} must hold a JSON object.", where=where)
    return value


def read_safetensors_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor in a safetensors file whose header adds up.

    The file is 8 bytes of header length, a JSON header, then the data; tensors must fill the data without gap,
    overlap or remainder.

    Raises:
        ModelError: anything else.
    """
    where = str(path)

    def damaged(reason: str) -> ModelError:
        return ModelError(
            f"damaged safetensors file: {reason}.", where=where, fix="Fetch or save the model again; do not repair it."
        )

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError("not a regular file.", where=where)
        size = path.stat().st_size
        with path.open("rb") as stream:
            n_header = int.from_bytes(stream.read(8), "little")
            if size < 10 or n_header > min(size - 8, _MAX_HEADER_BYTES) or n_header < 2:
                raise damaged(f"its header would be {n_header:,} bytes long in a file of {size:,}")
            raw = stream.read(n_header)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}.", where=where) from error
    if not raw.startswith(b"{"):
        raise damaged("its header is not a JSON object")
    header = parse_json_object(raw, "the safetensors header", where)
    header.pop("__metadata__", None)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    pieces: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _tensor_entry(name, entry, damaged)
        if (end - begin) * 8 != math.prod(shape) * _DTYPE_BITS[dtype]:
            raise damaged(f"tensor {name[:80]!r} has {end - begin:,} bytes, which does not fit its shape")
        tensors[name] = (dtype, shape)
        pieces.append((begin, end))
    position = 0
    for begin, end in sorted(pieces):
        if begin != position:
            raise damaged("its tensors overlap or leave gaps")
        position = end
    if position != size - 8 - n_header:
        raise damaged(f"its tensors need {position:,} bytes and the file holds {size - 8 - n_header:,}")
    return tensors


def count_safetensors(path: Path) -> int:
    """Number of values stored in a (checked) safetensors file."""
    return sum(math.prod(shape) for _, shape in read_safetensors_header(path).values())


def _tensor_entry(name: str, entry: Any, damaged: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        raise damaged(f"tensor {name[:80]!r} has no description")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise damaged(f"tensor {name[:80]!r} has the unknown type {str(dtype)[:20]!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(f"tensor {name[:80]!r} has an impossible shape or position")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)


def _file_names(folder: Path) -> frozenset[str]:
    """Names in the folder; a link that leads out of it is refused (a part could then change or leak unseen)."""
    names = set()
    try:
        for entry in folder.iterdir():
            if entry.is_symlink() and not entry.resolve().is_relative_to(folder):
                raise ModelError(
                    f"{entry.name[:80]!r} is a link that leaves the folder.",
                    where=str(folder),
                    fix="Copy the files themselves into the folder.",
                )
            names.add(entry.name)
    except OSError as error:
        raise ModelError(f"the folder cannot be read: {error.strerror or error}.", where=str(folder)) from error
    return frozenset(names)


def _keys(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) at any depth."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield from node.items()
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _refuse_code(config: dict[str, Any], path: Path) -> None:
    for key, value in _keys(config):
        if key in _CODE_KEYS and value:
            raise ModelError(
                f"{key!r} asks to run code that comes with the model; that is never done.",
                where=str(path),
                fix="Use a model of an architecture that transformers itself knows.",
            )
        if key in _REDIRECT_KEYS and value:
            raise ModelError(
                f"{key!r} points the loader at something other than the checked files.",
                where=str(path),
                fix="Remove the key, or save the model again with plain safetensors.",
            )
        if key in _ATTENTION_KEYS:
            for choice in value.values() if isinstance(value, dict) else [value]:
                if not isinstance(choice, str | None) or choice not in ATTENTION_VALUES:
                    raise ModelError(
                        f"{key!r} is {str(choice)[:80]!r}, which is not an attention implementation of transformers.",
                        where=str(path),
                        fix="Remove the key; LLMRec Studio chooses the implementation for your device.",
                    )
        if key == "quantization_config" and value:
            raise ModelError(
                "quantised weights cannot be fine-tuned here.",
                where=str(path),
                fix="Use the model's unquantised weights.",
            )
        if key in _MAX_SIZES and value is not None and not (type(value) is int and -1 <= value <= _MAX_SIZES[key]):
            raise ModelError(f"{key!r} has the impossible value {str(value)[:40]}.", where=str(path))


def _architecture(config: dict[str, Any], folder: Path) -> tuple[str, Kind]:
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in ENCODER_TYPES and not config.get("is_decoder"):
        return model_type, "encoder"
    if isinstance(model_type, str) and model_type in DECODER_TYPES:
        return model_type, "decoder"
    raise ModelError(
        f"model_type {str(model_type)[:80]!r} is not a text model known here.",
        where=str(folder / "config.json"),
        fix=f"Known are {', '.join(sorted(ENCODER_TYPES | DECODER_TYPES))}.",
    )


def _weight_files(folder: Path, names: frozenset[str]) -> tuple[str, ...]:
    """The files that hold the weights: one, or those that the index of a sharded model names."""
    if "model.safetensors" in names:
        return ("model.safetensors",)
    index_name = "model.safetensors.index.json"
    if index_name in names:
        index = read_json_object(folder / index_name, _MAX_HEADER_BYTES, index_name).get("weight_map")
        if isinstance(index, dict) and index and all(isinstance(name, str) for name in index.values()):
            shards = sorted(set(index.values()))
            for shard in shards:
                if shard not in names or not shard.endswith(".safetensors"):
                    raise ModelError(f"the shard {shard[:80]!r} is missing.", where=str(folder / index_name))
            return tuple(shards)
        raise ModelError("weight_map must name the file of every tensor.", where=str(folder / index_name))
    pickles = sorted(
        name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"))
    )
    if pickles:
        raise ModelError(
            f"only {', '.join(pickles[:3])} and no safetensors; such files can run code when opened.",
            where=str(folder),
            fix=_FIX_CONVERT,
        )
    raise ModelError("no model.safetensors.", where=str(folder), fix="Give the folder of a model saved as safetensors.")


def _first_size(config: dict[str, Any], folder: Path, *keys: str) -> int:
    for key in keys:
        value = config.get(key)
        if type(value) is int and value >= 1:
            return value
    raise ModelError(f"none of {', '.join(keys)} is given.", where=str(folder / "config.json"))


def _check_tokenizer_file(path: Path) -> None:
    """A regular file of bearable size that starts like JSON; its megabytes are parsed once, by the tokenizer."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > _MAX_TOKENIZER_BYTES:
            raise ModelError(f"not a regular file of at most {_MAX_TOKENIZER_BYTES:,} bytes.", where=str(path))
        with path.open("rb") as stream:
            if stream.read(100).lstrip()[:1] != b"{":
                raise ModelError("tokenizer.json must hold a JSON object.", where=str(path))
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}.", where=str(path)) from error


def _max_tokens(config: dict[str, Any], folder: Path, model_type: str) -> int:
    n_positions = _first_size(config, folder, "max_position_embeddings", "n_positions", "n_ctx")
    if model_type in {"roberta", "xlm-roberta", "camembert", "mpnet"}:
        # These count positions from behind the padding id, so that many entries of the table are never used.
        padding = config.get("pad_token_id", 1)
        n_positions -= (padding if type(padding) is int and padding >= 0 else 1) + 1
    return max(1, n_positions)
