"""Reading a column as an import does, for tests of numbers and of times."""

from __future__ import annotations

import itertools
from typing import TypeVar

import pyarrow as pa

from llmrec_core.data._values import NumberFormat, TimeFormat

Format = TypeVar("Format", NumberFormat, TimeFormat)


def in_blocks(found: Format, cells: list[str], cuts: list[int]) -> tuple[Format, list[str]]:
    """Block by block, anew as soon as a refused cell changes the format: (the last format, every value and verdict)."""
    edges = [0, *sorted({cut % (len(cells) + 1) for cut in cuts}), len(cells)]
    while True:
        out: list[str] = []
        better = found
        for start, stop in itertools.pairwise(edges):
            block = pa.array(cells[start:stop], pa.string())
            values, bad = found.numbers(block) if isinstance(found, NumberFormat) else found.times(block)
            out += [repr((v, b)) for v, b in zip(values.tolist(), bad.tolist(), strict=True)]
            better = better.reconsider(block.filter(pa.array(bad)))
            if better != found:
                break
        if better == found:
            return better, out
        found = better
