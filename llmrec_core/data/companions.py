"""What a dataset knows about an item beside its texts: facts, vectors, images, prices, single categories.

:class:`Companions` holds the indexes for many questions about one dataset; the functions below ask a single one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from llmrec_core.contracts import ITEM
from llmrec_core.data._values import parse_numbers
from llmrec_core.data.dataset import Dataset
from llmrec_core.errors import DataError, InputError

Floats = npt.NDArray[np.float32]
#: Stands before a relation whose tail is the item: ("inverse of film.producer", "m.0abc").
INVERSE = "inverse of "


class Companions:
    """Facts, vectors, images, prices and categories of the items of one dataset, indexed when first asked for."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    # ------------------------------------------------------------------------------------------------ facts

    @cached_property
    def _entities(self) -> dict[str, list[str]]:
        """item_id -> its entities; without a table of links an item is its own entity."""
        links = self._dataset.extra("links")
        if links is None:
            return {item: [item] for item in self._dataset.item_ids}
        found: dict[str, list[str]] = {}
        for item, entity in zip(links[ITEM], links["entity"], strict=True):
            if entity not in found.setdefault(item, []):
                found[item].append(entity)
        return found

    @cached_property
    def _facts(self) -> dict[str, list[tuple[str, str]]]:
        """entity -> (relation, other entity), for entities of items alone."""
        table = self._dataset.extra("knowledge")
        found: dict[str, list[tuple[str, str]]] = {}
        if table is None:
            return found
        known = pd.Index([entity for entities in self._entities.values() for entity in entities])
        for own, other, before in (("head", "tail", ""), ("tail", "head", INVERSE)):
            mine = table[table[own].isin(known)]
            for entity, relation, value in zip(mine[own], mine["relation"], mine[other], strict=True):
                found.setdefault(entity, []).append((before + relation, value))
        return found

    def facts(self, item_idx: int) -> list[tuple[str, str]]:
        """(relation, tail) of the item in file order, then (:data:`INVERSE` + relation, head) where it is the tail.

        [] without a knowledge graph, and for an item that no fact is about.
        """
        entities = self._entities.get(str(self._dataset.item_ids[item_idx]), [])
        return [fact for entity in entities for fact in self._facts.get(entity, [])]

    # ------------------------------------------------------------------------------------------------ vectors

    @cached_property
    def vectors(self) -> Floats | None:
        """[n_items, size] float32, rows aligned to ``item_idx``, NaN for items without one; None: there are none.

        Raises:
            DataError: the vectors have different sizes, or hold something else than numbers.
        """
        table = self._dataset.extra("vectors")
        if table is None or table.empty:
            return None
        columns = [c for c in table.columns if c != ITEM]
        texts = table["vector"] if columns == ["vector"] else table[columns].agg(" ".join, axis=1)
        rows = [text.replace(",", " ").split() for text in texts.str.strip("[]() ")]
        sizes = {len(row) for row in rows}
        if len(sizes) != 1:
            raise DataError(f"item vectors have different sizes: {sorted(sizes)[:5]}.", where=self._dataset.name)
        try:
            numbers = np.array(rows, np.float32)
        except ValueError as error:
            raise DataError(f"item vectors hold no numbers ({str(error)[:80]}).", where=self._dataset.name) from None
        index = pd.Index(self._dataset.item_ids).get_indexer(pd.Index(table[ITEM]))
        found = np.full((self._dataset.n_items, numbers.shape[1]), np.nan, np.float32)
        found[index[index >= 0]] = numbers[index >= 0]
        return found

    def vector(self, item_idx: int) -> Floats | None:
        """[size] float32; None where the item has none."""
        if self.vectors is None or np.isnan(self.vectors[item_idx]).any():
            return None
        return self.vectors[item_idx]

    # ------------------------------------------------------------------------------------------------ fields

    def image(self, item_idx: int) -> str:
        """Path or address of the item's picture as the file gave it; "" without one. It is not checked or fetched."""
        return self._text(item_idx, "image")

    @cached_property
    def prices(self) -> npt.NDArray[np.float64]:
        """[n_items], NaN where there is none or it cannot be read ("Currently unavailable")."""
        if "price" not in self._dataset.items.columns:
            return np.full(self._dataset.n_items, np.nan)
        cells = pa.array(self._dataset.items["price"], pa.large_string())
        return np.asarray(parse_numbers(cells, "price", money=True)[0], np.float64)

    def price(self, item_idx: int) -> float | None:
        """The price as a number, in whatever currency the file has; None where there is none."""
        value = float(self.prices[item_idx])
        return None if np.isnan(value) else value

    @cached_property
    def _separators(self) -> dict[str, str]:
        """field -> what stands between several values: a semicolon where any cell has one, since values hold commas."""
        items = self._dataset.items
        fields = [f for f in items.columns if f not in (ITEM, "title")]
        return {f: "; " if items[f].str.contains("; ", regex=False).any() else ", " for f in fields}

    def categories(self, item_idx: int, field: str = "category") -> list[str]:
        """The single values of a multi-valued field, in the file's order; [] where it is empty.

        Raises:
            InputError: there is no such field.
        """
        if field not in self._dataset.items.columns:
            raise InputError(f"items have no field {field[:80]!r}.", where=f"dataset {self._dataset.name}")
        text = self._text(item_idx, field)
        if text.startswith("["):
            try:
                values = json.loads(text)
            except (ValueError, RecursionError):
                values = None
            if isinstance(values, list):
                return [str(value).strip() for value in values if value is not None and str(value).strip()]
        separator = self._separators.get(field, ", ").strip()
        return [part.strip() for part in text.split(separator) if part.strip()]

    def _text(self, item_idx: int, field: str) -> str:
        return self._dataset.item_text(item_idx, field) if field in self._dataset.items.columns else ""


def item_facts(dataset: Dataset, item_idx: int) -> list[tuple[str, str]]:
    """(relation, tail) of one item; see :meth:`Companions.facts`."""
    return Companions(dataset).facts(item_idx)


def item_vectors(dataset: Dataset) -> Floats | None:
    """[n_items, size] float32; see :attr:`Companions.vectors`."""
    return Companions(dataset).vectors


def item_vector(dataset: Dataset, item_idx: int) -> Floats | None:
    """[size] float32 of one item, or None; see :meth:`Companions.vector`."""
    return Companions(dataset).vector(item_idx)


def item_image(dataset: Dataset, item_idx: int) -> str:
    """Path or address of an item's picture, or ""; see :meth:`Companions.image`."""
    return Companions(dataset).image(item_idx)


def item_price(dataset: Dataset, item_idx: int) -> float | None:
    """The price of an item as a number, or None; see :meth:`Companions.price`."""
    return Companions(dataset).price(item_idx)


def item_categories(dataset: Dataset, item_idx: int, field: str = "category") -> list[str]:
    """The single values of a multi-valued field of an item; see :meth:`Companions.categories`."""
    return Companions(dataset).categories(item_idx, field)


def coverage_notes(item_ids: pa.Array, tables: Mapping[str, Path]) -> list[str]:
    """How many of the items the further tables know: facts, links and vectors.

    Args:
        tables: name of a further table -> its Parquet file.
    """
    n_items, notes = len(item_ids), []
    with duckdb.connect(config={"autoinstall_known_extensions": "false", "threads": "2"}) as database:
        database.register("items", pa.table({"id": item_ids}))
        paths = {name: str(path) for name, path in tables.items()}
        if "knowledge" in tables:
            linked = "SELECT id, id AS entity FROM items"
            if "links" in tables:
                linked = "SELECT i.id, l.entity FROM items i JOIN read_parquet($links) l ON l.item_id = i.id"
            told = {name: paths[name] for name in ("knowledge", "links") if name in paths}
            found = database.execute(
                f"WITH linked AS ({linked}), ends AS (SELECT head AS entity FROM read_parquet($knowledge) "
                "UNION ALL SELECT tail FROM read_parquet($knowledge)) SELECT count(DISTINCT id), "
                "(SELECT count(*) FROM read_parquet($knowledge)) FROM linked SEMI JOIN ends USING (entity)",
                told,
            ).fetchone()
            n_known, n_facts = found or (0, 0)
            notes.append(f"{n_known:,} of {n_items:,} items have facts ({n_facts:,} facts in all)")
        for name, what in (("links", "are linked to an entity"), ("vectors", "have a vector")):
            if name in tables:
                found = database.execute(
                    "SELECT count(*) FROM items SEMI JOIN read_parquet($path) t ON t.item_id = items.id",
                    {"path": paths[name]},
                ).fetchone()
                notes.append(f"{(found or (0,))[0]:,} of {n_items:,} items {what}")
    return notes
