"""Whose turn it is: the SQLite index beside the run folders.

It knows request keys, the order of the queue and which process holds which run. What happened in a run is told by its
folder alone; a lost index is made again from the folders.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmrec_core.errors import LLMRecError
from llmrec_core.runs.processes import ProcessId

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL UNIQUE,
    request_key TEXT UNIQUE,
    parent_run TEXT,
    device TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'claimed', 'ended')),
    pid INTEGER, pid_started_at REAL, boot TEXT,
    owner_pid INTEGER, owner_started_at REAL, owner_boot TEXT
)
"""
_WAIT_S = 30.0


@dataclass(frozen=True)
class QueueRow:
    """One run in the index.

    Attributes:
        state: "queued", "claimed" (a worker was started) or "ended" (nothing left to do for it).
        device: device asked for.
        worker: the claimed run's worker.
        owner: the process that started the worker and alone can learn its exit code.
    """

    run_id: str
    parent_run: str | None
    device: str
    state: Literal["queued", "claimed", "ended"]
    worker: ProcessId | None
    owner: ProcessId | None


class Transaction:
    """Reads and writes under the one write lock of the index; nothing else changes until it ends."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def by_key(self, request_key: str) -> str | None:
        """Run submitted under that key."""
        found = self._connection.execute("SELECT run_id FROM runs WHERE request_key = ?", (request_key,)).fetchone()
        return None if found is None else str(found[0])

    def get(self, run_id: str) -> QueueRow | None:
        rows = _rows(self._connection, "WHERE run_id = ?", run_id)
        return rows[0] if rows else None

    def live(self) -> list[QueueRow]:
        """Queued and claimed runs in order of submission."""
        return _rows(self._connection, "WHERE state != 'ended' ORDER BY seq")

    def known(self) -> set[str]:
        """Ids of all runs in the index."""
        return {str(row[0]) for row in self._connection.execute("SELECT run_id FROM runs")}

    def add(
        self,
        run_id: str,
        *,
        state: Literal["queued", "ended"],
        device: str,
        parent_run: str | None,
        request_key: str | None,
    ) -> None:
        self._connection.execute(
            "INSERT INTO runs (run_id, request_key, parent_run, device, state) VALUES (?, ?, ?, ?, ?)",
            (run_id, request_key, parent_run, device, state),
        )

    def claim(self, run_id: str, worker: ProcessId, owner: ProcessId | None) -> None:
        """The run is being worked on by ``worker``, started by ``owner``."""
        self._connection.execute(
            "UPDATE runs SET state = 'claimed', pid = ?, pid_started_at = ?, boot = ?,"
            " owner_pid = ?, owner_started_at = ?, owner_boot = ? WHERE run_id = ?",
            (
                worker.pid,
                worker.started_at,
                worker.boot,
                owner and owner.pid,
                owner and owner.started_at,
                owner and owner.boot,
                run_id,
            ),
        )

    def end(self, run_id: str) -> None:
        self._connection.execute("UPDATE runs SET state = 'ended' WHERE run_id = ?", (run_id,))

    def remove(self, run_id: str) -> None:
        self._connection.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))


class Queue:
    """The index file; every use opens its own short connection, so threads and processes share nothing but the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Holds the write lock; commits at the end, rolls back on an exception.

        Raises:
            LLMRecError: the file is damaged or cannot be written.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(connection)
            except BaseException:
                # After some faults, a full disk for one, SQLite has rolled back by itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def live(self) -> list[QueueRow]:
        """Queued and claimed runs in order of submission, without taking the write lock."""
        with self._connection() as connection:
            return _rows(connection, "WHERE state != 'ended' ORDER BY seq")

    def by_key(self, request_key: str) -> str | None:
        """Run submitted under that key, without taking the write lock."""
        with self._connection() as connection:
            return Transaction(connection).by_key(request_key)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)) as connection:
                _prepare(connection)
                yield connection
        except sqlite3.Error as error:
            raise LLMRecError(
                f"the list of runs cannot be used: {error}.",
                where=str(self.path),
                fix="Check the disk. If the file is damaged, stop the app and delete it: the runs are found again.",
            ) from error


def _prepare(connection: sqlite3.Connection) -> None:
    """Write-ahead logging and the table. Many processes may meet a new file at once."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone():
                connection.execute(_SCHEMA)
            return
        except sqlite3.OperationalError as error:
            # Turning the log on needs the file alone and does not wait for its turn as other statements do.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _rows(connection: sqlite3.Connection, where: str, *values: str) -> list[QueueRow]:
    columns = "run_id, parent_run, device, state, pid, pid_started_at, boot, owner_pid, owner_started_at, owner_boot"
    return [
        QueueRow(row[0], row[1], row[2], row[3], _process(*row[4:7]), _process(*row[7:10]))
        for row in connection.execute(f"SELECT {columns} FROM runs {where}", values)
    ]


def _process(pid: int | None, started_at: float | None, boot: str | None) -> ProcessId | None:
    return None if pid is None or started_at is None else ProcessId(pid, started_at, boot or "")
