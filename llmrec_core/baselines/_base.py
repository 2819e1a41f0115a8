"""What every baseline shares: what it offers, whose catalogue it knows, and its way to disk and back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec_core.baselines._storage import read_parts, write_parts
from llmrec_core.contracts import Capabilities, FitContext, Recommender
from llmrec_core.errors import InputError, ModelError
from llmrec_core.saved import catalogue_sha256
from llmrec_core.specs import Spec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

Arrays = Mapping[str, npt.NDArray[Any]]


class Baseline(Recommender):
    """A recommender whose fitted state is a handful of arrays.

    A subclass names its spec and its arrays, hands them out when it is saved, and takes them back when it is loaded.
    """

    spec_type: ClassVar[type[Spec]]
    #: Name -> dtype of what lies on disk.
    dtypes: ClassVar[Mapping[str, str]]
    #: Of ``spec_type``.
    spec: Any

    def __init__(self, spec: Any = None) -> None:
        self.spec = spec or self.spec_type()
        self._item_index: Mapping[str, int] | None = None
        self._catalogue = ""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(tasks=frozenset(), full_catalogue=True)

    @property
    def n_items(self) -> int:
        return len(self._known_items())

    @abstractmethod
    def _arrays(self) -> Arrays:
        """The fitted state, under the names of ``dtypes``."""

    @abstractmethod
    def _take(self, arrays: Arrays, n_items: int) -> None:
        """Puts :meth:`_arrays` back.

        Raises:
            ValueError: they do not fit together or the catalogue.
        """

    def _know(self, dataset: Dataset) -> None:
        """Fitted on, or loaded for, this catalogue."""
        self._item_index = dataset.item_index
        self._catalogue = catalogue_sha256(dataset.item_ids)

    def _known_items(self) -> Mapping[str, int]:
        """Item id -> item_idx of the catalogue it was fitted on.

        Raises:
            InputError: it is not fitted.
        """
        if self._item_index is None:
            raise InputError("this recommender is not fitted yet.", fix="Call fit, or load a saved one.")
        return self._item_index

    def save(self, folder: Path) -> None:
        self._known_items()
        write_parts(folder, family=self.family, spec=self.spec, catalogue_sha256=self._catalogue, arrays=self._arrays())

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> Self:
        spec, arrays = read_parts(
            folder,
            family=cls.family,
            spec_type=cls.spec_type,
            catalogue_sha256=catalogue_sha256(dataset.item_ids),
            arrays=cls.dtypes,
        )
        loaded = cls(spec)
        try:
            loaded._take(arrays, dataset.n_items)
        except (ValueError, TypeError, IndexError):
            # Whatever SciPy makes of crafted indices, it is the folder that was wrong.
            raise ModelError("its arrays do not fit the catalogue.", where=str(folder), fix="Train it again.") from None
        loaded._know(dataset)
        return loaded


def demand(sound: bool) -> None:
    """Raises: ValueError where loaded arrays are not what they should be."""
    if not sound:
        raise ValueError("the arrays do not fit")


#: Arrays of a sparse matrix on disk.
SPARSE = {"similarity_data": "float32", "similarity_indices": "int64", "similarity_indptr": "int64"}


def sparse_arrays(matrix: Any) -> dict[str, npt.NDArray[Any]]:
    """A CSR matrix as the arrays of ``SPARSE``."""
    return {
        "similarity_data": matrix.data,
        "similarity_indices": matrix.indices.astype(np.int64),
        "similarity_indptr": matrix.indptr.astype(np.int64),
    }


def sparse_matrix(arrays: Arrays, shape: tuple[int, int]) -> Any:
    """:func:`sparse_arrays` back as a CSR matrix of finite numbers.

    Raises:
        ValueError, TypeError, IndexError: they are none.
    """
    data = arrays["similarity_data"]
    matrix = sp.csr_array((data, arrays["similarity_indices"], arrays["similarity_indptr"]), shape=shape)
    # SciPy's loops do not check bounds; a crafted index would read foreign memory.
    matrix.check_format(full_check=True)
    demand(bool(np.isfinite(data).all()))
    return matrix
