"""Blocks on their way: cut to one size, made ahead, and looked at by several threads, always in order."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmrec_core.data._raw import RawTable, Rejects

BLOCK_ROWS = 524_288
_WORKERS = 2
Block = TypeVar("Block")
Result = TypeVar("Result")


def even_blocks(blocks: Iterator[RawTable], name: str) -> Iterator[RawTable]:
    """The same rows in blocks of :data:`BLOCK_ROWS`, each with the lines that were refused up to the next one."""
    waiting: list[pa.Table] = []
    lines: list[npt.NDArray[np.int64]] = []
    rejects = Rejects(name, limit=None)
    n_waiting = 0
    given = False

    def take(n_rows: int) -> RawTable:
        nonlocal waiting, lines, rejects, n_waiting
        table = pa.concat_tables(waiting)
        numbers = np.concatenate(lines) if lines else None
        mine, later = rejects, Rejects(name, limit=None)
        if numbers is not None and n_rows < len(numbers):
            mine, later = _parted(rejects, int(numbers[n_rows]))
        # Columns stay in pieces: most of them are never needed as one, and those that are, are joined by the workers.
        block = RawTable(table.slice(0, n_rows), None if numbers is None else numbers[:n_rows], mine)
        waiting, n_waiting = [table.slice(n_rows)], n_waiting - n_rows
        lines = [] if numbers is None else [numbers[n_rows:]]
        rejects = later
        return block

    for block in blocks:
        waiting.append(block.table)
        if block.lines is not None:
            lines.append(block.lines)
        n_waiting += len(block.table)
        rejects.take(block.rejects)
        while n_waiting >= BLOCK_ROWS:
            given = True
            yield take(BLOCK_ROWS)
    if waiting and (n_waiting or rejects.count or not given):
        yield take(n_waiting)


def _parted(rejects: Rejects, line: int) -> tuple[Rejects, Rejects]:
    """Those before a line, and those after it."""
    before, after = Rejects(rejects.file, limit=None), Rejects(rejects.file, limit=None)
    for at, reason in rejects.listed:
        (before if at < line else after).add(at, reason, rejects.texts.get(at, ""))
    return before, after


def prefetched(blocks: Iterator[Block], ahead: int = 2) -> Generator[Block]:
    """The same blocks, made by a thread of their own while earlier ones are looked at."""
    waiting: queue.Queue[Block | BaseException | None] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(item: Block | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for block in blocks:
                if not put(block):
                    return
            put(None)
        except BaseException as error:
            put(error)

    reader = threading.Thread(target=read, name="import-reader", daemon=True)
    reader.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        reader.join()


def mapped(look: Callable[[Block], Result], blocks: Iterator[Block], *, alone: bool = False) -> Iterator[Result]:
    """``look`` of every block in order; a few are looked at while the next are made, unless ``alone``."""
    if alone:
        yield from map(look, blocks)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="import") as pool:
        try:
            for block in blocks:
                waiting.append(pool.submit(look, block))
                if len(waiting) > _WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
