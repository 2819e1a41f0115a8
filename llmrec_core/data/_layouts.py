"""How a table is laid out, and the long tables that it becomes: one row per interaction, item, user or fact."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec_core.data._roles import Corrections, Kind, guess
from llmrec_core.data._sources import Source


@dataclass(frozen=True)
class PlannedTable:
    """One long table that a source gives.

    Attributes:
        source: what is read: the file itself, or an adapter whose rows carry the line of the file they came from.
        kind: what its rows are.
        roles: role -> column of ``source``.
        layout: how the file is laid out ("rows", "matrix", "histories", "impressions", "instructions", "knowledge",
            "links", "vectors").
        notes: what a person should know about this reading of the file.
        reasons: role -> why that column was taken, in words.
    """

    source: Source
    kind: Kind
    roles: dict[str, str]
    layout: str = "rows"
    notes: tuple[str, ...] = ()
    reasons: dict[str, str] | None = None


def expand(source: Source, corrections: Corrections) -> list[PlannedTable]:
    """The long tables of one source, guessed from names and first rows, and corrected by what a person said."""
    kind, roles = guess(source.name, source.columns, source.sample(), corrections)
    return [PlannedTable(source, kind, roles)]
