"""How many interactions repeat an earlier one exactly: 64 bits of each row are kept and sorted, never the rows."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmrec_core.contracts import RATING, TIME
from llmrec_core.data.dataset import ITEM_IDX, USER_IDX

#: Rows that several passes are made over in one go, so that they stay in the processor's cache.
_CACHED_ROWS = 32_768


class Repeats:
    """Counts rows that equal an earlier one in user, item, rating and time."""

    def __init__(self) -> None:
        self._marks: list[npt.NDArray[np.uint64]] = []

    def add(self, columns: Mapping[str, pa.Array]) -> None:
        self._marks.append(_marks(columns))

    def count(self) -> int:
        if not self._marks:
            return 0
        marks = np.concatenate(self._marks)
        self._marks = []
        low = marks < np.uint64(1 << 63)
        with ThreadPoolExecutor(2) as pool:
            return sum(pool.map(_n_equal, (marks[low], marks[~low])))


def _n_equal(marks: npt.NDArray[np.uint64]) -> int:
    marks.sort()
    return int((marks[1:] == marks[:-1]).sum())


def _marks(columns: Mapping[str, pa.Array]) -> npt.NDArray[np.uint64]:
    """64 bits that tell rows apart. Ten million rows collide by chance with a probability of three in a million."""
    cells = [columns[name].to_numpy(zero_copy_only=False) for name in (USER_IDX, ITEM_IDX, RATING, TIME)]
    marks = np.empty(len(cells[0]), np.uint64)
    for start in range(0, len(marks), _CACHED_ROWS):
        rows = slice(start, start + _CACHED_ROWS)
        user, item, *numbers = (column[rows] for column in cells)
        found = user.astype(np.uint64) << np.uint64(32)
        found |= item.astype(np.uint64)
        _mix(found)
        for values in numbers:
            same = values.astype(np.float64)
            # One kind of NaN and of zero.
            same[np.isnan(same)] = np.nan
            same += 0.0
            found ^= same.view(np.uint64)
            _mix(found)
        marks[rows] = found
    return marks


def _mix(marks: npt.NDArray[np.uint64]) -> None:
    """The finaliser of MurmurHash3, in place: every bit of the outcome hangs on every bit that went in."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        marks ^= marks >> np.uint64(33)
        marks *= np.uint64(factor)
    marks ^= marks >> np.uint64(33)
