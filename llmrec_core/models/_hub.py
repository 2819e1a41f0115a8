"""Downloads of model files from the Hugging Face hub: safetensors, JSON and vocabularies of one repository, no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from llmrec_core.errors import ModelError, NotFoundError

_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model"})
#: Free space left on the disk after a download.
_RESERVE_BYTES = 500_000_000


def download_from_hub(hub_id: str, folder: Path, say: Callable[[str], None], *, endpoint: str | None = None) -> str:
    """Fills ``folder`` with the files of a model's newest revision and returns that revision's hash.

    Only files in the top folder with known suffixes are taken: pickles, code and other frameworks' weights stay away.

    Args:
        endpoint: address of the hub; None for the usual one (or ``HF_ENDPOINT``).

    Raises:
        NotFoundError: the hub is out of reach, or has no such model, or wants a login.
        ModelError: the model has no safetensors, or does not fit on the disk.
    """
    # Late: importing the client takes a while, and listing models needs none of it.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The client changed its HTTP library between releases; its own error derives from that library's base error.
    unreachable: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError, HFValidationError)
    try:
        say(f"asking the hub for {hub_id}")
        info = HfApi(endpoint=endpoint).model_info(hub_id, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = _wanted(sizes, hub_id)
        n_bytes = sum(sizes[name] for name in wanted)
        if n_bytes + _RESERVE_BYTES > shutil.disk_usage(folder).free:
            raise ModelError(f"{hub_id} needs {n_bytes / 1e6:,.0f} MB, more than the disk has free.", where=str(folder))
        say(f"downloading {hub_id}, {n_bytes / 1e6:,.0f} MB")
        snapshot_download(
            hub_id, revision=info.sha, local_dir=folder, allow_patterns=sorted(wanted), endpoint=endpoint, max_workers=4
        )
    except unreachable as error:
        raise NotFoundError(
            f"{hub_id} could not be fetched from the hub: {type(error).__name__}: {_first_line(error)}",
            fix="Check the network, the name and (for gated models) your login; or give the path of a local folder.",
        ) from error
    # The client keeps its book-keeping beside the files.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return str(info.sha)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:200]


def _wanted(sizes: dict[str, int], hub_id: str) -> list[str]:
    """Top-level files to take; one set of weights if both one file and shards are there."""
    top = [name for name in sizes if "/" not in name and PurePosixPath(name).suffix in _SUFFIXES]
    weights = {name for name in top if name.endswith(".safetensors")}
    if not weights:
        raise ModelError(
            f"{hub_id} has no safetensors; other formats can run code when opened.",
            fix="Choose a model whose page lists safetensors, or convert it where you trust it.",
        )
    if "model.safetensors" in weights:
        dropped = weights - {"model.safetensors"} | {"model.safetensors.index.json"}
        return [name for name in top if name not in dropped]
    return top
